/** Sizes, dates and paths in words. */

const UNITS = ["KB", "MB", "GB", "TB"];
const CONTROL = /[\u0000-\u001f\u007f]/g;

/**
 * @param {number} bytes
 * @returns {string} such as "340 KB", "2.3 MB"
 */
export function fileSize(bytes) {
  if (bytes < 1000) return `${bytes} bytes`;
  let unit = 0;
  let size = bytes / 1000;
  for (; size >= 999.5 && unit < UNITS.length - 1; unit++) size /= 1000;
  return `${size.toLocaleString("en", { maximumFractionDigits: size < 9.95 ? 1 : 0 })} ${UNITS[unit]}`;
}

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
 * @returns {string} such as "May 2, 2021"
 */
export function date({ modified }) {
  return modified ? new Date(modified).toLocaleDateString("en", { dateStyle: "medium" }) : "";
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
