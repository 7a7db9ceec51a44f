/** The hits of a search as a source: more of them are asked for as the user scrolls. */

/** How many are asked for, one after the other. */
const STEPS = [200, 1000, 3000];

export class Hits {
  /**
   * @param {import("./tile.js").Item[]} hits
   * @param {number} k how many were asked for
   * @param {number} most that may be asked for; as many as k, where no more are to come
   * @param {(k: number) => Promise<import("./tile.js").Item[]>} search
   */
  constructor(hits, k, most, search) {
    this.hits = hits;
    this.k = k;
    this.most = most;
    this.search = search;
    this.ahead = 0.5; // each further search costs more than a page of the wall
  }

  /** @returns {boolean} whether no more come */
  get isWhole() {
    return this.hits.length < this.k || this.k >= this.most;
  }

  get length() {
    return this.hits.length + Number(!this.isWhole);
  }

  /**
   * @param {number} from
   * @param {number} to
   */
  async range(from, to) {
    if (from >= this.hits.length && !this.isWhole) await this.#grow();
    return this.hits.slice(from, to);
  }

  async #grow() {
    const k = Math.min(this.most, STEPS.find((step) => step > this.k) ?? this.most);
    const hits = await this.search(k);
    // What an approximate search finds with another k may differ in the order: what is shown stays.
    const shown = new Set(this.hits.map(({ id }) => id));
    const others = hits.filter(({ id }) => !shown.has(id));
    this.hits.push(...others.map((hit, at) => ({ ...hit, rank: shown.size + at + 1 })));
    this.k = hits.length < k ? Infinity : k;
  }
}
