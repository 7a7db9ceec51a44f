/** Where each picture of a gallery is, in some bytes a picture: it may hold a million. */

import { boxes, justified, UNKNOWN_ASPECT } from "./justified.js";

/**
 * @typedef {object} Heading what stands above a row that begins a section
 * @property {string} text
 * @property {string} kind its class
 * @property {string} [href] that it leads to
 */

const HEADING_HEIGHT = 44;

export class Layout {
  /** @param {import("./justified.js").Frame} frame */
  constructor(frame) {
    this.frame = frame;
    this.count = 0;
    /** Of the rows as they are, and as they become when the rows are made again; 0: not known. */
    this.aspects = new Float32Array(256);
    this.known = new Float32Array(256);
    /** @type {Map<number, Heading>} */
    this.headings = new Map();
    this.rows = 0;
    this.firsts = new Uint32Array(64);
    this.tops = new Float64Array(64);
    this.heights = new Uint16Array(64);
    this.fulls = new Uint8Array(64);
    /** How many pictures are in rows: the others wait for those that complete their row. */
    this.laid = 0;
    this.isWhole = false;
  }

  /** @returns {number} of the last row, in pixels from the top of the gallery */
  get bottom() {
    return this.rows ? this.tops[this.rows - 1] + this.heights[this.rows - 1] : 0;
  }

  /**
   * @param {number[]} aspects 0: not known
   * @param {Map<number, Heading>} headings by place
   * @param {boolean} isWhole whether no more come; else the last row waits until it is full
   */
  append(aspects, headings, isWhole) {
    this.aspects = grown(this.aspects, this.count + aspects.length);
    this.known = grown(this.known, this.count + aspects.length);
    this.known.set(aspects, this.count);
    for (const [place, heading] of headings) this.headings.set(place, heading);
    this.count += aspects.length;
    this.isWhole = isWhole;
    this.#remake(this.rows);
  }

  /**
   * The size of a picture has become known. Its row stays as it is until it is made again.
   * @param {number} place
   * @param {number} aspect
   * @returns {boolean} whether it was not known before
   */
  learn(place, aspect) {
    if (this.known[place]) return false;
    this.known[place] = aspect;
    return true;
  }

  /**
   * Make the rows again from the first one below a line.
   * @param {number} line in pixels from the top of the gallery
   */
  remakeBelow(line) {
    let row = this.rowAt(line);
    while (row < this.rows && this.blockTop(row) < line) row++;
    if (row < this.rows) this.#remake(row);
  }

  /** @param {import("./justified.js").Frame} frame */
  remakeAll(frame) {
    this.frame = frame;
    this.#remake(0);
  }

  /** @param {number} row from which on they are made */
  #remake(row) {
    const from = row < this.rows ? this.firsts[row] : this.laid;
    for (let place = from; place < this.count; place++) this.aspects[place] = this.known[place] || UNKNOWN_ASPECT;
    const made = justified(this.aspects, from, this.count, this.frame, (place) => this.headings.has(place));
    if (!this.isWhole && made.length && !made[made.length - 1].full) made.pop();
    this.#reserve(row + made.length);
    this.rows = row;
    for (const { from: first, height, full } of made) {
      const above = this.rows ? this.bottom + this.frame.gap : 0;
      this.tops[this.rows] = above + (this.headings.has(first) ? HEADING_HEIGHT : 0);
      this.firsts[this.rows] = first;
      this.heights[this.rows] = height;
      this.fulls[this.rows] = Number(full);
      this.rows += 1;
    }
    this.laid = made.length ? made[made.length - 1].to : from;
  }

  /** @param {number} rows */
  #reserve(rows) {
    this.firsts = grown(this.firsts, rows);
    this.tops = grown(this.tops, rows);
    this.heights = grown(this.heights, rows);
    this.fulls = grown(this.fulls, rows);
  }

  /**
   * @param {number} line in pixels from the top of the gallery
   * @returns {number} the last row that begins at it or above; 0 if none does
   */
  rowAt(line) {
    return lastAtMost(this.tops, this.rows, line);
  }

  /** @param {number} place */
  rowOf(place) {
    return lastAtMost(this.firsts, this.rows, place);
  }

  /**
   * @param {number} row
   * @returns {number} where it begins, with its heading
   */
  blockTop(row) {
    return this.tops[row] - (this.headings.has(this.firsts[row]) ? HEADING_HEIGHT : 0);
  }

  /**
   * @param {number} top
   * @param {number} bottom
   * @returns {[number, number]} the first row that is between these lines, and the one after the last
   */
  rowsBetween(top, bottom) {
    if (this.rows === 0) return [0, 0];
    let first = this.rowAt(top);
    if (this.tops[first] + this.heights[first] <= top) first += 1;
    let end = Math.min(first, this.rows);
    while (end < this.rows && this.blockTop(end) < bottom) end++;
    return [first, end];
  }

  /**
   * @param {number} row
   * @returns {{place: number, left: number, top: number, width: number, height: number}[]}
   */
  boxesOf(row) {
    const from = this.firsts[row];
    const whole = { from, to: this.#end(row), height: this.heights[row], full: this.fulls[row] === 1 };
    const made = boxes(this.aspects, whole, this.frame);
    return made.map((box, at) => ({ place: from + at, top: this.tops[row], height: this.heights[row], ...box }));
  }

  /**
   * @param {number} place
   * @param {number} step 1: to the row below, -1: above
   * @returns {number} the place there whose middle is nearest; without a row, the same place
   */
  beside(place, step) {
    const row = this.rowOf(place);
    const next = row + step;
    if (next < 0 || next >= this.rows) return place;
    const own = middle(this.boxesOf(row)[place - this.firsts[row]]);
    let nearest = { place, away: Infinity };
    for (const box of this.boxesOf(next)) {
      const away = Math.abs(middle(box) - own);
      if (away < nearest.away) nearest = { place: box.place, away };
    }
    return nearest.place;
  }

  /** @param {number} row */
  #end(row) {
    return row + 1 < this.rows ? this.firsts[row + 1] : this.laid;
  }
}

/** @param {{left: number, width: number}} box */
function middle(box) {
  return box.left + box.width / 2;
}

/**
 * @template {Float32Array | Float64Array | Uint32Array | Uint16Array | Uint8Array} T
 * @param {T} array
 * @param {number} length
 * @returns {T} itself, or a copy that has room for more
 */
function grown(array, length) {
  if (length <= array.length) return array;
  const larger = new /** @type {any} */ (array.constructor)(Math.max(length, 2 * array.length));
  larger.set(array);
  return larger;
}

/**
 * @param {ArrayLike<number>} sorted
 * @param {number} count
 * @param {number} limit
 */
function lastAtMost(sorted, count, limit) {
  let low = 0;
  let high = count;
  while (high - low > 1) {
    const between = (low + high) >> 1;
    if (sorted[between] <= limit) low = between;
    else high = between;
  }
  return low;
}
