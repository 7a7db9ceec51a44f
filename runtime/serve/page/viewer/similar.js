/** The pictures similar to the large one, below it. */

import { byId } from "../dom.js";

const PICTURES = 30;
/** One who steps on at once needs no answer. */
const PAUSE_MS = 220;

export class Similar {
  /**
   * @param {import("../api.js").Api} api
   * @param {{show: (items: any[], options?: any) => void}} gallery
   * @param {(query: string) => void} learnMarks
   */
  constructor(api, gallery, learnMarks) {
    this.api = api;
    this.gallery = gallery;
    this.learnMarks = learnMarks;
    this.section = byId("viewer-similar-section");
    this.text = byId("viewer-similar-text");
    /** @type {import("./facts.js").Item[]} */
    this.items = [];
    /** @type {string | undefined} the hash of the large picture */
    this.query = undefined;
    this.running = new AbortController();
    /** @type {number | null | undefined} */
    this.id = undefined;
  }

  /** @param {number | null} id of the large picture; null: it is not in the index */
  show(id) {
    if (id === this.id) return;
    this.id = id;
    this.query = undefined;
    this.running.abort();
    this.running = new AbortController();
    this.section.hidden = id === null;
    if (id === null) return this.#fill([], "");
    this.section.setAttribute("aria-busy", "true");
    this.#search(id, this.running.signal);
  }

  /**
   * @param {number} id
   * @param {AbortSignal} signal
   */
  async #search(id, signal) {
    await new Promise((resolve) => setTimeout(resolve, this.items.length ? PAUSE_MS : 0));
    if (signal.aborted) return;
    try {
      const body = new FormData();
      body.set("id", String(id));
      const parameters = new URLSearchParams({ k: String(PICTURES), leave_out_query: "1", sizes: "1", hashes: "1" });
      const answer = await this.api.json(`v1/search?${parameters}`, { method: "POST", body, signal });
      const { hits, sha256 } = answer.results[0];
      this.learnMarks(sha256);
      this.query = sha256;
      this.#fill(hits, hits.length ? "" : "The index has no other picture.", answer.unrelated_distance);
    } catch (error) {
      if (!signal.aborted) this.#fill([], error instanceof Error ? error.message : "");
    }
  }

  /**
   * @param {import("./facts.js").Item[]} items
   * @param {string} text
   * @param {number} [unrelatedDistance]
   */
  #fill(items, text, unrelatedDistance) {
    this.items = items;
    this.text.textContent = text;
    this.text.hidden = !text;
    this.section.setAttribute("aria-busy", "false");
    this.gallery.show(items, { unrelatedDistance, query: this.query });
  }
}
