/** Sizes, dates and paths in words. */

import { fileSize } from "../dom.js";

const CONTROL = /[\u0000-\u001f\u007f]/g;

/**
 * @param {import("./choices.js").Picture} picture
 * @returns {string} such as "4,032 × 3,024 · 2.3 MB"
 */
export function dimensions({ width, height, bytes }) {
  const pixels = width && height ? `${width.toLocaleString("en")} × ${height.toLocaleString("en")}` : "";
  return [pixels, fileSize(bytes)].filter(Boolean).join(" · ");
}

/**
 * @param {import("./choices.js").Picture} picture
 * @returns {string} such as "2 May 2021"
 */
export function date({ modified }) {
  return modified ? new Date(modified).toLocaleDateString("en-GB", { dateStyle: "medium" }) : "";
}

/**
 * @param {import("./choices.js").Picture} picture
 * @returns {string} how far it is from the picture that the server keeps
 */
export function difference({ distance, identical }) {
  if (distance === undefined) return "the largest file";
  return identical ? "same content" : `distance ${distance.toFixed(4)}`;
}

/**
 * @param {import("./choices.js").Picture} picture
 * @returns {string} a line of the list
 */
export function line({ root, relative }) {
  return `${root}/${relative}`.replace(CONTROL, (character) => `\\x${character.charCodeAt(0).toString(16).padStart(2, "0")}`);
}
