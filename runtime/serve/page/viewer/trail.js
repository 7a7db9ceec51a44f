/** The way through large pictures: each entry of the browser's history knows the list that its picture is from. */

/**
 * @typedef {import("./facts.js").Item} Item
 * @typedef {object} List
 * @property {number} length
 * @property {boolean} [grows] whether the last place stands for more than one picture
 * @property {(place: number) => Promise<Item | undefined> | Item | undefined} at
 * @property {(place: number) => void} [focus] the page's own list has it: the focus goes back to it
 *
 * @typedef {object} Stop
 * @property {List} list
 * @property {number} place
 * @property {Item | null} from the picture that the list is similar to; null: the list is the page's own
 * @property {string} [query] the hash of that picture, or of the page's query
 * @property {Item} [item] where it is known already
 * @property {import("./viewer.js").Local} [local] a picture that is not in the index
 *
 * @typedef {{key: string, depth: number}} Mark in the state of an entry; depth: steps back to the page without it
 */

/** What a mark of an earlier life of this page never is. */
const LIFE = performance.timeOrigin.toString(36);

/** @type {Map<string, Stop>} */
const stops = new Map();

/** @returns {Mark | null} of the current entry */
function mark() {
  return history.state?.large ?? null;
}

/** @returns {number} */
export function depth() {
  return mark()?.depth ?? 0;
}

/** @returns {Stop | undefined} of the current entry, unless another life of the page made it */
export function current() {
  return stops.get(mark()?.key ?? "");
}

/**
 * @param {Stop} stop
 * @returns {{large: Mark}} the state of a new entry
 */
export function further(stop) {
  return { large: { key: kept(stop, `${LIFE}-${stops.size}`), depth: depth() + 1 } };
}

/**
 * @param {Stop} stop
 * @returns {{large: Mark}} the state of the current entry, with another stop
 */
export function instead(stop) {
  const key = mark()?.key ?? "";
  return { large: { key: kept(stop, stops.has(key) ? key : `${LIFE}-${stops.size}`), depth: depth() } };
}

/**
 * @param {Stop} stop
 * @param {string} key
 */
function kept(stop, key) {
  stops.set(key, stop);
  return key;
}
