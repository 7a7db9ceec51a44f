/** The pictures that are selected, whatever the page shows of them. */

/** @typedef {import("./facts.js").Item} Item */

export class Selection extends EventTarget {
  constructor() {
    super();
    /** @type {Map<number, Item>} in the order in which they were selected */
    this.chosen = new Map();
  }

  get size() {
    return this.chosen.size;
  }

  /** @returns {Item[]} */
  get items() {
    return [...this.chosen.values()];
  }

  /** @param {number} id */
  has(id) {
    return this.chosen.has(id);
  }

  /** @param {Item} item */
  toggle(item) {
    if (!this.chosen.delete(item.id)) this.chosen.set(item.id, item);
    this.#tell();
  }

  /** @param {Item[]} items */
  add(items) {
    for (const item of items) this.chosen.set(item.id, item);
    this.#tell();
  }

  clear() {
    this.chosen.clear();
    this.#tell();
  }

  #tell() {
    this.dispatchEvent(new Event("change"));
  }
}
