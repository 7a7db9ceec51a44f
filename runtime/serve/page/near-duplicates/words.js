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
 * @returns {string}
 */
export function facts({ width, height, bytes, modified }) {
  const pixels = width && height ? `${width.toLocaleString("en")} × ${height.toLocaleString("en")}` : "";
  const date = modified ? new Date(modified).toLocaleDateString("en", { dateStyle: "medium" }) : "";
  return [pixels, fileSize(bytes), date].filter(Boolean).join(" · ");
}

/**
 * @param {import("./choices.js").Picture} picture
 * @returns {string} a line of the list
 */
export function line({ root, relative }) {
  return `${root}/${relative}`.replace(CONTROL, (character) => `\\x${character.charCodeAt(0).toString(16).padStart(2, "0")}`);
}
