/** The bar at the foot of the page: how many pictures are selected, and what can be done with them. */

import { say } from "../announce.js";
import { copy } from "../clipboard.js";
import { byId, counted, make } from "../dom.js";
import { pathOf } from "./facts.js";

/** A mean of more is refused by the server. */
export const MOST = 100;

export class SelectionBar {
  /**
   * @param {import("./selection.js").Selection} selection
   * @param {(ids: number[]) => void} search
   */
  constructor(selection, search) {
    this.selection = selection;
    this.bar = byId("selection");
    this.search = byId("selection-search");
    selection.addEventListener("change", () => this.#show());
    this.search.addEventListener("click", () => this.#search(search));
    byId("selection-copy").addEventListener("click", () => copy(this.#list(), counted(selection.size, "path")));
    byId("selection-save").addEventListener("click", () => this.#save());
    byId("selection-clear").addEventListener("click", () => this.#clear());
    this.bar.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
      if (event.key === "Escape") this.#clear();
    });
  }

  #show() {
    const { size } = this.selection;
    const held = this.bar.contains(document.activeElement);
    this.bar.hidden = size === 0;
    document.documentElement.classList.toggle("selecting", size > 0);
    byId("selection-count").textContent = `${size.toLocaleString("en")} selected`;
    if (held && size === 0) byId("main").focus();
  }

  /** @param {(ids: number[]) => void} search */
  #search(search) {
    const ids = this.selection.items.map(({ id }) => id);
    if (ids.length > MOST) say(`${counted(ids.length, "picture")} are selected. Search with at most ${MOST}.`);
    else search(ids);
  }

  #clear() {
    this.selection.clear();
    say("Nothing is selected.");
  }

  /** @returns {string} a path on each line */
  #list() {
    return this.selection.items.map((item) => `${pathOf(item)}\n`).join("");
  }

  #save() {
    const url = URL.createObjectURL(new Blob([this.#list()], { type: "text/plain" }));
    make("a", { href: url, download: "pictures.txt" }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10_000);
  }
}
