/** A source of any number of pictures that come page by page: few pages are kept, each other one is fetched again. */

export const PAGE = 200;
const KEPT = 12;

/**
 * @typedef {import("./tile.js").Item} Item
 * @typedef {{items: Item[], total: number, next: string | null}} Page
 */

export class Pages {
  /** @param {(cursor: string | null, limit: number) => Promise<Page>} fetchPage */
  constructor(fetchPage) {
    this.fetchPage = fetchPage;
    /** How many pictures there are, as the latest page says. */
    this.length = Infinity;
    /** @type {{cursor: string | null, first: number, count: number, last: number}[]} of each page, with its last id */
    this.index = [];
    /** @type {string | null | undefined} of the next page that is not known; undefined: there is none */
    this.next = null;
    /** @type {Map<number, (Item | null)[]>} the latest pages, by number */
    this.kept = new Map();
    /** @type {Promise<void>} */
    this.growing = Promise.resolve();
  }

  /**
   * @param {number} from
   * @param {number} to
   * @returns {Promise<(Item | null)[]>} fewer at the end alone; null where a picture has left the index meanwhile
   */
  async range(from, to) {
    while (this.known < to && this.next !== undefined) {
      this.growing = this.growing.catch(() => {}).then(() => this.#grow(to));
      await this.growing;
    }
    const items = [];
    for (let at = this.#pageOf(from); at < this.index.length && this.index[at].first < to; at++) {
      const { first } = this.index[at];
      items.push(...(await this.#page(at)).slice(Math.max(0, from - first), to - first));
    }
    return items;
  }

  /** @returns {number} of how many pictures the page is known */
  get known() {
    const last = this.index.at(-1);
    return last ? last.first + last.count : 0;
  }

  /**
   * Fetch the page that follows, unless another call has done so.
   * @param {number} to
   */
  async #grow(to) {
    if (this.known >= to || this.next === undefined) return;
    const cursor = this.next;
    const { items, total, next } = await this.fetchPage(cursor, PAGE);
    const first = this.known;
    if (items.length) {
      this.index.push({ cursor, first, count: items.length, last: items[items.length - 1].id });
      this.#keep(this.index.length - 1, items);
    }
    this.next = next ?? undefined;
    this.length = next === null ? this.known : Math.max(total, this.known + 1);
  }

  /**
   * @param {number} at
   * @returns {Promise<(Item | null)[]>}
   */
  async #page(at) {
    const kept = this.kept.get(at);
    if (kept) return kept;
    const { cursor, count, last } = this.index[at];
    const { items } = await this.fetchPage(cursor, PAGE);
    // Where pictures have left the index, the page would go on into the next one.
    const end = items.findIndex((item) => item.id === last);
    const own = items.slice(0, end < 0 ? count : Math.min(count, end + 1));
    /** @type {(Item | null)[]} */
    const padded = [...own, ...Array(count - own.length).fill(null)];
    this.#keep(at, padded);
    return padded;
  }

  /**
   * @param {number} at
   * @param {(Item | null)[]} items
   */
  #keep(at, items) {
    this.kept.delete(at);
    this.kept.set(at, items);
    for (const oldest of this.kept.keys()) {
      if (this.kept.size <= KEPT) break;
      this.kept.delete(oldest);
    }
  }

  /**
   * @param {number} place
   * @returns {number} the page that holds it
   */
  #pageOf(place) {
    let low = 0;
    let high = this.index.length;
    while (high - low > 1) {
      const between = (low + high) >> 1;
      if (this.index[between].first <= place) low = between;
      else high = between;
    }
    return low;
  }
}
