/** A picture of a group in large; the arrows flip to the next in the same place, so that differences show. */

import { byId, make } from "../dom.js";
import { date, difference, dimensions } from "./words.js";

const SIZE = 1024;

export class Enlarged {
  /**
   * @param {() => import("./choices.js").Choices} choices
   * @param {import("./group.js").Actions} actions
   * @param {() => void} changed
   */
  constructor(choices, actions, changed) {
    this.choices = choices;
    this.actions = actions;
    this.changed = changed;
    this.dialog = byId("large");
    /** @type {import("./choices.js").Group | null} */
    this.group = null;
    this.place = 0;
    byId("large-previous").addEventListener("click", () => this.#move(-1));
    byId("large-next").addEventListener("click", () => this.#move(1));
    byId("large-mark").addEventListener("click", () => this.#mark());
    byId("large-keep").addEventListener("click", () => this.#keep());
    this.dialog.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => this.#press(event));
  }

  /**
   * @param {import("./choices.js").Group} group
   * @param {number} id
   */
  open(group, id) {
    this.group = group;
    this.place = this.#pictures().findIndex((picture) => picture.id === id);
    this.#show();
    this.dialog.showModal();
  }

  #pictures() {
    return this.group ? [this.group.kept, ...this.group.others] : [];
  }

  /** @param {number} by */
  #move(by) {
    const { length } = this.#pictures();
    this.place = (this.place + by + length) % length;
    this.#show();
  }

  #mark() {
    const { id } = this.#pictures()[this.place];
    if (!this.group || this.choices().kept(this.group) === id) return;
    this.actions.mark(this.group, id, !this.choices().isMarked(this.group, id));
    this.#changed();
  }

  #keep() {
    if (!this.group) return;
    this.actions.keep(this.group, this.#pictures()[this.place].id);
    this.#changed();
  }

  #changed() {
    this.changed();
    this.#show();
  }

  /** @param {KeyboardEvent} event */
  #press(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const action = {
      ArrowLeft: () => this.#move(-1),
      ArrowRight: () => this.#move(1),
      m: () => this.#mark(),
      k: () => this.#keep(),
    }[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  }

  #show() {
    if (!this.group) return;
    const pictures = this.#pictures();
    const picture = pictures[this.place];
    const kept = this.choices().kept(this.group) === picture.id;
    const marked = this.choices().isMarked(this.group, picture.id);
    const state = kept ? "kept" : marked ? "marked" : "";
    byId("large-title").textContent = picture.path;
    byId("large-facts").textContent = [
      `${this.place + 1} of ${pictures.length}`,
      dimensions(picture),
      date(picture),
      difference(picture),
      state,
    ]
      .filter(Boolean)
      .join(" · ");
    const source = `v1/items/${picture.id}/thumbnail?size=${SIZE}`;
    const image = byId("large-picture").querySelector("img") ?? make("img");
    if (image.getAttribute("src") !== source) image.src = source;
    image.alt = picture.path;
    byId("large-picture").replaceChildren(image);
    byId("large-mark").setAttribute("aria-pressed", String(marked));
    byId("large-mark").textContent = marked ? "Marked" : "Mark";
    byId("large-mark").disabled = byId("large-keep").disabled = kept;
  }
}
