/** Two pictures side by side; what enlarges or moves one does so to the other. */

import { byId, make } from "../dom.js";
import { Frame } from "./frame.js";
import { Gestures } from "./gestures.js";
import { FITTED, held, scaled } from "./zoom.js";

const CLOSE_UP = 2.5;

/**
 * @typedef {object} Choice
 * @property {string} name
 * @property {import("./frame.js").Picture} picture
 * @property {import("./region.js").Box | null} [box] the part of it that is searched with
 * @property {File} [file] of a picture that is not in the index
 */

export class Compare {
  /**
   * @param {HTMLElement} element
   * @param {import("../api.js").Api} api
   */
  constructor(element, api) {
    this.element = element;
    this.zoom = FITTED;
    /** @type {Choice[]} */
    this.choices = [];
    this.chosen = "";
    this.select = byId("compare-with");
    this.name = byId("compare-name");
    this.panes = [...element.querySelectorAll(".pane-picture")].map((box) => this.#pane(box, api));
    this.select.addEventListener("change", () => this.#choose(this.select.value));
    new ResizeObserver(() => this.#set(this.zoom)).observe(element);
  }

  get isOpen() {
    return !this.element.hidden;
  }

  /**
   * @param {Choice[]} choices what it can be compared with, the best one first
   * @param {Choice} own
   */
  show(choices, own) {
    this.element.hidden = false;
    this.choices = choices;
    const options = choices.map(({ name, picture }) => make("option", { value: picture.key }, name));
    this.select.replaceChildren(...options);
    this.name.textContent = this.name.title = own.name;
    this.panes[1].show(own.picture);
    const kept = choices.some(({ picture }) => picture.key === this.chosen);
    this.#choose(kept ? this.chosen : choices[0].picture.key);
    this.#set(FITTED);
  }

  close() {
    this.element.hidden = true;
    for (const pane of this.panes) pane.show(null);
  }

  /** @param {string} key of a picture */
  #choose(key) {
    this.chosen = this.select.value = key;
    this.panes[0].show(this.choices.find(({ picture }) => picture.key === key)?.picture ?? null);
    this.#set(this.zoom);
  }

  /**
   * @param {Element} element
   * @param {import("../api.js").Api} api
   * @returns {Frame}
   */
  #pane(element, api) {
    const box = /** @type {HTMLElement} */ (element);
    const frame = new Frame(api, () => this.#set(this.zoom));
    box.append(frame.element);
    new Gestures(box, {
      isZoomed: () => this.zoom.scale > 1.001,
      move: (x, y) => this.#set({ ...this.zoom, x: this.zoom.x + x, y: this.zoom.y + y }),
      zoom: (factor, point) => this.#set(scaled(this.zoom, this.zoom.scale * factor, point)),
      toggle: (point) => this.#set(this.zoom.scale > 1.001 ? FITTED : scaled(this.zoom, CLOSE_UP, point)),
    });
    return frame;
  }

  /** @param {number} factor */
  enlarge(factor) {
    this.#set(scaled(this.zoom, this.zoom.scale * factor, { x: 0, y: 0 }));
  }

  /** @param {import("./zoom.js").Zoom} zoom of both, as far as the larger one allows it */
  #set(zoom) {
    const shown = this.panes.filter(({ ratio }) => ratio);
    const box = boxOf(this.panes[0]);
    const size = {
      width: Math.max(0, ...shown.map((frame) => frame.size.width)),
      height: Math.max(0, ...shown.map((frame) => frame.size.height)),
    };
    this.zoom = held(zoom, size, box, Math.max(1, ...shown.map((frame) => frame.most)));
    for (const frame of this.panes) frame.place(boxOf(frame), this.zoom);
    this.element.classList.toggle("zoomed", this.zoom.scale > 1.001);
  }
}

/**
 * @param {Frame} frame
 * @returns {import("./zoom.js").Size} of what it stands in
 */
function boxOf(frame) {
  const { clientWidth: width, clientHeight: height } = /** @type {HTMLElement} */ (frame.element.parentElement);
  return { width, height };
}
