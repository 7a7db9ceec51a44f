/** Elements: found by id, and made from text that is never read as HTML; numbers in words. */

const UNITS = ["kB", "MB", "GB", "TB"];

/**
 * @param {string} id
 * @returns {any} the element of index.html with this id
 */
export function byId(id) {
  return document.getElementById(id);
}

/**
 * Make an element. Properties are set as they are; children are elements or text.
 * @param {string} tag
 * @param {Record<string, unknown>} [properties]
 * @param {...(Node|string)} children
 * @returns {any}
 */
export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/**
 * @param {string} name of a symbol in index.html, without "i-"
 * @returns {SVGSVGElement}
 */
export function icon(name) {
  const namespace = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(namespace, "svg");
  const use = document.createElementNS(namespace, "use");
  use.setAttribute("href", `#i-${name}`);
  svg.setAttribute("aria-hidden", "true");
  svg.append(use);
  return svg;
}

/**
 * @param {Record<string, string>} facts
 * @returns {HTMLElement[]} the rows of a description list
 */
export function rows(facts) {
  return Object.entries(facts).map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value)));
}

/**
 * @param {string} text
 * @param {number} [most] characters
 * @returns {string} the text, without its middle if it is longer
 */
export function shortened(text, most = 60) {
  const characters = [...text];
  if (characters.length <= most) return text;
  const half = Math.floor((most - 1) / 2);
  return `${characters.slice(0, half).join("")}…${characters.slice(-half).join("")}`;
}

/**
 * @param {number} count
 * @param {string} one
 * @param {string} [many]
 * @returns {string} for example "1 picture", "2,400 pictures"
 */
export function counted(count, one, many = `${one}s`) {
  return `${count.toLocaleString("en")} ${count === 1 ? one : many}`;
}

/**
 * @param {number} bytes
 * @returns {string} such as "812 bytes", "45.2 kB", "3 MB"
 */
export function fileSize(bytes) {
  if (bytes < 1000) return counted(bytes, "byte");
  let unit = 0;
  let size = bytes / 1000;
  for (; size >= 999.95 && unit < UNITS.length - 1; unit++) size /= 1000;
  return `${size.toLocaleString("en", { maximumFractionDigits: 1 })} ${UNITS[unit]}`;
}
