/** One result at a time, large, beside the query picture. */

import { copy } from "./clipboard.js";
import { byId, rows } from "./dom.js";
import { described } from "./gallery/tile.js";
import { thumbnail } from "./thumbnails.js";

const SIDE = 1024;

export class Viewer {
  /**
   * @param {import("./api.js").Api} api
   * @param {import("./query-panel.js").QueryPanel} queryPanel
   * @param {import("./gallery/gallery.js").Gallery} gallery
   * @param {(id: number) => void} search
   */
  constructor(api, queryPanel, gallery, search) {
    this.api = api;
    this.queryPanel = queryPanel;
    this.gallery = gallery;
    /** @type {any} */
    this.hit = null;
    this.dialog = byId("viewer");
    this.place = 0;
    byId("viewer-previous").addEventListener("click", () => this.#go(-1));
    byId("viewer-next").addEventListener("click", () => this.#go(1));
    byId("viewer-copy").addEventListener("click", () => copy(`${this.hit.root}/${this.hit.relative}`, "Path"));
    byId("viewer-search").addEventListener("click", () => {
      this.dialog.close();
      search(this.hit.id);
    });
    this.dialog.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => this.#key(event));
    this.dialog.addEventListener("close", () => this.gallery.focus(this.place));
  }

  /** @param {number} place */
  open(place) {
    this.place = place;
    byId("viewer-query").querySelector(".picture").replaceChildren(...this.queryPanel.copies());
    this.#show();
    this.dialog.showModal();
  }

  async #show() {
    const { place } = this;
    const hit = await this.gallery.at(place);
    if (place !== this.place) return;
    this.hit = hit;
    byId("viewer-title").textContent = `${place + 1} of ${this.gallery.length.toLocaleString("en")}`;
    const image = thumbnail(this.api, hit.id, described(hit), SIDE);
    byId("viewer-hit").querySelector(".picture").replaceChildren(image);
    byId("viewer-hit").querySelector("figcaption").textContent =
      hit.distance === undefined || hit.similarity === undefined
        ? ""
        : `Distance ${hit.distance.toFixed(4)}, similarity ${hit.similarity.toFixed(4)}`;
    byId("viewer-facts").replaceChildren(...rows({ Label: hit.label ?? "none", Path: hit.relative, Folder: hit.root }));
    byId("viewer-previous").disabled = place === 0;
    byId("viewer-next").disabled = place === this.gallery.length - 1;
  }

  /** @param {number} step */
  #go(step) {
    const next = this.place + step;
    if (next < 0 || next >= this.gallery.length) return;
    this.place = next;
    this.#show();
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (step === undefined || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    this.#go(step);
  }
}
