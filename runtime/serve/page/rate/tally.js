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

/** @param {{own: Agreement, raters: Agreement}} agreement */
export function showAgreement({ own, raters }) {
  const texts = [share("Repeated answers", own), share("Different raters", raters)];
  byId("agreement").textContent = texts.filter(Boolean).join(" ");
}

/**
 * @typedef {{compared: number, agreed: number}} Agreement
 * @param {string} what
 * @param {Agreement} agreement
 * @returns {string} empty where nothing was compared
 */
function share(what, { compared, agreed }) {
  return compared ? `${what} agree in ${agreed.toLocaleString("en")} of ${counted(compared, "case")}.` : "";
}
