/** What is said beside the results: to screen readers alone, or in a strip at the foot of the page. */

import { byId } from "./dom.js";

const STAYS = 6000;
/** @type {number | undefined} */
let timer;

/** @param {string} sentence for screen readers */
export function announce(sentence) {
  byId("live").textContent = sentence;
}

/** @param {string} sentence for everybody, for some seconds */
export function say(sentence) {
  const strip = byId("strip");
  strip.textContent = sentence;
  strip.classList.add("shown");
  clearTimeout(timer);
  timer = setTimeout(() => strip.classList.remove("shown"), STAYS);
}
