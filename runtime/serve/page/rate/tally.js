/** How many ratings there are, how much they agree, and what to do once they are enough. */

import { byId, counted } from "../dom.js";

/** So many teach: see docs/training.md. */
const ENOUGH = 200;
let closed = false;

/**
 * @param {number} ratings
 * @param {string} index its name
 */
export function showCount(ratings, index) {
  byId("count").textContent = counted(ratings, "rating");
  byId("gauge").max = ENOUGH;
  byId("gauge").value = Math.min(ratings, ENOUGH);
  byId("gauge").textContent = `${ratings} of ${ENOUGH}`;
  byId("lesson").hidden = ratings < ENOUGH || closed;
  byId("lesson-command").textContent = `deeprank teach --index ${index}`;
}

/** Leave its room to the pictures while this page lives. */
export function closeLesson() {
  closed = true;
  byId("lesson").hidden = true;
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
