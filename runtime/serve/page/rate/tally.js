/** How many ratings there are, how much they agree, and what to do once they are enough. */

import { byId, counted } from "../dom.js";

/** So many teach: see docs/training.md. */
export const ENOUGH = 200;

/**
 * @param {number} ratings
 * @param {string} index its name
 */
export function showCount(ratings, index) {
  byId("count").textContent = counted(ratings, "rating");
  byId("gauge").max = ENOUGH;
  byId("gauge").value = Math.min(ratings, ENOUGH);
  byId("gauge").textContent = `${ratings} of ${ENOUGH}`;
  byId("lesson").hidden = ratings < ENOUGH;
  byId("lesson-command").textContent = `deeprank teach --index ${index}`;
}

/** @param {{own: Share, between: Share}} agreement */
export function showAgreement({ own, between }) {
  const texts = [share("Repeated answers", own), share("Different raters", between)];
  byId("agreement").textContent = texts.filter(Boolean).join(" ");
}

/**
 * @typedef {{agreeing: number, count: number}} Share
 * @param {string} what
 * @param {Share} of
 * @returns {string} empty where nothing was compared
 */
function share(what, { agreeing, count }) {
  return count ? `${what} agree in ${agreeing.toLocaleString("en")} of ${counted(count, "case")}.` : "";
}
