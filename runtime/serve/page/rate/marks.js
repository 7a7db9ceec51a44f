/** Marks of hits: more like this, or less like this. They are kept in the index, by the hash of each file. */

import { onOtherRater, rater } from "./rater.js";

/**
 * @typedef {import("../gallery/tile.js").Item} Item
 * @typedef {{sha256?: string}} Hashed
 */

/** Tells `change` when marks have come or were set. */
export class Marks extends EventTarget {
  /**
   * @param {import("../api.js").Api} api
   * @param {import("./outbox.js").Outbox} outbox
   */
  constructor(api, outbox) {
    super();
    this.api = api;
    this.outbox = outbox;
    /** Whether the server takes ratings. */
    this.allowed = false;
    /** @type {Map<string, Map<string, boolean>>} by the query's hash and the rater, then by the picture's */
    this.known = new Map();
    /** @type {Set<string>} queries whose marks were asked for */
    this.learnt = new Set();
    onOtherRater(() => this.#learnAgain());
    outbox.addEventListener("refused", (event) => this.#refuse(/** @type {CustomEvent} */ (event).detail));
  }

  /**
   * @param {string | undefined} query
   * @param {Hashed} picture
   * @returns {boolean} whether the picture can be marked as a hit of the query
   */
  takes(query, { sha256 }) {
    return this.allowed && Boolean(query && sha256) && query !== sha256;
  }

  /**
   * @param {string} query
   * @param {Hashed} picture
   * @returns {boolean | null} whether more like it is wished, or less; null: neither
   */
  of(query, { sha256 }) {
    return this.known.get(keyOf(query))?.get(sha256 ?? "") ?? null;
  }

  /**
   * Mark a picture, or take its mark back where it has the same.
   * @param {string} query
   * @param {Hashed} picture
   * @param {boolean} more
   */
  toggle(query, picture, more) {
    if (!this.takes(query, picture)) return;
    const next = this.of(query, picture) === more ? null : more;
    this.#set(query, String(picture.sha256), next);
    this.outbox.mark({ query, picture: String(picture.sha256), more: next, rater: rater() });
  }

  /**
   * Have the marks of a query.
   * @param {string | undefined} query
   */
  async learn(query) {
    const name = rater();
    const key = keyOf(query, name);
    if (!this.allowed || !query || this.known.has(key)) return;
    this.learnt.add(query);
    this.known.set(key, new Map());
    const parameters = new URLSearchParams({ query, ...(name ? { rater: name } : {}) });
    try {
      const { marks } = await this.api.json(`v1/ratings?${parameters}`, { tries: 1 }); // searches go on without them
      const set = this.known.get(key) ?? []; // while those of the server were asked for
      const all = new Map([...marks.map((/** @type {any} */ { sha256, more }) => [sha256, more]), ...set]);
      for (const { mark } of this.outbox.entries) {
        if (!mark || keyOf(mark.query, mark.rater) !== key) continue;
        if (mark.more === null) all.delete(mark.picture);
        else all.set(mark.picture, mark.more);
      }
      this.known.set(key, all);
    } catch {
      this.known.delete(key); // asked for again with the next search
    }
    this.dispatchEvent(new Event("change"));
  }

  /**
   * @param {string} query
   * @param {string} picture
   * @param {boolean | null} more
   */
  #set(query, picture, more) {
    const marks = this.known.get(keyOf(query)) ?? new Map();
    this.known.set(keyOf(query), marks);
    if (more === null) marks.delete(picture);
    else marks.set(picture, more);
    this.dispatchEvent(new Event("change"));
  }

  /** @param {{entry: import("./outbox.js").Entry}} refused */
  #refuse({ entry: { mark } }) {
    if (!mark) return;
    this.known.delete(keyOf(mark.query, mark.rater));
    this.learn(mark.query);
  }

  /** Show the marks of another rater, as whom another tab has signed. */
  #learnAgain() {
    this.dispatchEvent(new Event("change"));
    for (const query of this.learnt) this.learn(query);
  }
}

/**
 * @param {string | undefined} query
 * @param {string | undefined} name of the rater
 * @returns {string} by which the marks are known
 */
function keyOf(query, name = rater()) {
  return `${query} ${name ?? ""}`;
}

/**
 * Let the keys m and l mark the tile that has the focus.
 * @param {HTMLElement} list
 * @param {import("../gallery/gallery.js").Gallery} gallery
 * @param {() => boolean} keysAreOn
 */
export function markByKeys(list, gallery, keysAreOn) {
  list.addEventListener("keydown", (event) => {
    if (!["m", "l"].includes(event.key) || !keysAreOn() || event.ctrlKey || event.metaKey || event.altKey) return;
    const tile = event.target instanceof Element ? event.target.closest(".tile") : null;
    if (tile instanceof HTMLElement && gallery.mark(Number(tile.dataset.place), event.key === "m")) event.preventDefault();
  });
}
