/** Justified rows: pictures of one height in each row, from edge to edge. Pure: numbers in, numbers out. */

/** Wider or higher pictures are cut to this; one whose size is not known yet has the aspect of most cameras. */
export const LOWEST_ASPECT = 0.45;
export const HIGHEST_ASPECT = 3.2;
export const UNKNOWN_ASPECT = 4 / 3;

/**
 * @typedef {object} Frame
 * @property {number} width of a row, in CSS pixels
 * @property {number} height that rows aim at
 * @property {number} gap between pictures
 *
 * @typedef {object} Row the pictures from one place up to another
 * @property {number} from
 * @property {number} to
 * @property {number} height in whole pixels
 * @property {boolean} full whether it reaches both edges; the last row of a section does not
 */

/**
 * @param {number | null | undefined} width
 * @param {number | null | undefined} height
 * @returns {number} the aspect that a picture has in a row; 0 if its size is not known
 */
export function aspectOf(width, height) {
  if (!width || !height) return 0;
  return Math.min(HIGHEST_ASPECT, Math.max(LOWEST_ASPECT, width / height));
}

/**
 * A row takes pictures until it is at most as high as intended, and leaves the last one to the next row where the
 * height is nearer to the intention without it. So no row depends on pictures behind its own and the next one.
 * @param {ArrayLike<number>} aspects
 * @param {number} from the place of the first picture of the first row
 * @param {number} to
 * @param {Frame} frame
 * @param {(place: number) => boolean} [breaks] whether a section begins here
 * @returns {Row[]}
 */
export function justified(aspects, from, to, frame, breaks = () => false) {
  /** @type {Row[]} */
  const rows = [];
  let start = from;
  let sum = 0;
  const close = (/** @type {number} */ end, /** @type {boolean} */ full) => {
    const height = full ? heightOf(sum, end - start, frame) : frame.height;
    rows.push({ from: start, to: end, height: Math.max(1, Math.round(height)), full });
    start = end;
    sum = 0;
  };
  for (let place = from; place < to; place++) {
    if (place > start && breaks(place)) close(place, false);
    const taken = heightOf(sum + aspects[place], place + 1 - start, frame);
    const left = heightOf(sum, place - start, frame);
    if (taken <= frame.height && place > start && left * taken < frame.height ** 2) close(place, true);
    sum += aspects[place];
    if (heightOf(sum, place + 1 - start, frame) <= frame.height) close(place + 1, true);
  }
  if (start < to) close(to, false);
  return rows;
}

/**
 * @param {ArrayLike<number>} aspects
 * @param {Row} row
 * @param {Frame} frame
 * @returns {{left: number, width: number}[]} of each picture, in whole pixels
 */
export function boxes(aspects, row, { width, height, gap }) {
  let sum = 0;
  for (let place = row.from; place < row.to; place++) sum += aspects[place];
  const scale = row.full ? (width - gap * (row.to - row.from - 1)) / sum : height;
  const made = [];
  let before = 0;
  for (let place = row.from; place < row.to; place++) {
    const shift = gap * (place - row.from);
    const left = Math.round(before * scale);
    before += aspects[place];
    made.push({ left: left + shift, width: Math.round(before * scale) - left });
  }
  return made;
}

/**
 * @param {number} sum of aspects
 * @param {number} count
 * @param {Frame} frame
 * @returns {number} of a row that reaches both edges
 */
function heightOf(sum, count, { width, gap }) {
  return (width - gap * (count - 1)) / sum;
}
