/** What is said beside the results: to screen readers alone, or in a strip at the foot of the page. */

import { byId } from "./dom.js";

const STAYS = 6000;
/** @type {number | undefined} */
let timer;

/** @param {string} sentence for screen readers */
export function announce(sentence) {
  above().append(byId("live"));
  byId("live").textContent = sentence;
}

/** @returns {Element} what is above all else: what stands outside an open dialog is neither seen nor read out */
export function above() {
  const dialogs = document.querySelectorAll("dialog:modal");
  return document.fullscreenElement ?? dialogs[dialogs.length - 1] ?? document.body;
}

/** @param {string} sentence for everybody, for some seconds */
export function say(sentence) {
  const strip = byId("strip");
  above().append(strip);
  strip.textContent = sentence;
  strip.classList.add("shown");
  clearTimeout(timer);
  timer = setTimeout(() => strip.classList.remove("shown"), STAYS);
}
