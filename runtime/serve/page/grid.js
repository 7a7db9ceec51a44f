/** The results: a grid of pictures that arrow keys walk through. */

import { byId, icon, make } from "./dom.js";
import { thumbnail } from "./thumbnails.js";

/**
 * @typedef {object} Hit
 * @property {number} rank
 * @property {number} id
 * @property {string} path
 * @property {string} root
 * @property {string} relative
 * @property {number} distance
 * @property {number} similarity
 * @property {string | null} label
 * @property {number} [near_duplicates]
 */

/** Width of a tile in CSS pixels, for each step of the size control (and of style.css). */
const SIDES = [100, 136, 176, 240, 320];
const SIZE_KEY = "tile-size";

export class Grid {
  /**
   * @param {import("./api.js").Api} api
   * @param {object} actions
   * @param {(id: number) => string} actions.address of the search from an item
   * @param {(id: number) => void} actions.search
   * @param {(place: number) => void} actions.enlarge
   */
  constructor(api, actions) {
    this.api = api;
    this.actions = actions;
    this.list = byId("grid");
    /** @type {Hit[]} */
    this.hits = [];
    /** @type {HTMLLIElement[]} */
    this.tiles = [];
    /** @type {number | undefined} */
    this.unrelatedDistance = undefined;
    this.side = SIDES[0];
    this.#followSize();
    this.list.addEventListener("click", (/** @type {MouseEvent} */ event) => this.#click(event));
    this.list.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => this.#key(event));
    this.list.addEventListener("focusin", (/** @type {FocusEvent} */ event) =>
      this.#makeReachable(this.#placeOf(event.target)),
    );
  }

  /**
   * @param {Hit[]} hits
   * @param {number} [unrelatedDistance] hits farther than this come after a line
   */
  show(hits, unrelatedDistance) {
    const held = this.list.contains(document.activeElement);
    this.hits = hits;
    this.unrelatedDistance = unrelatedDistance;
    this.tiles = hits.map((hit) => this.#tile(hit));
    this.list.replaceChildren(...this.tiles);
    const first = this.tiles[hits.findIndex((hit) => hit.distance > (unrelatedDistance ?? Infinity))];
    first?.before(make("li", { className: "line" }, `Not similar any more: farther than ${unrelatedDistance}`));
    this.list.hidden = hits.length === 0;
    this.#makeReachable(0);
    if (held) this.focus(0);
  }

  /** @param {number} place */
  focus(place) {
    this.tiles[place]?.querySelector("a")?.focus();
  }

  /**
   * @param {Hit} hit
   * @returns {HTMLLIElement}
   */
  #tile(hit) {
    const alt = described(hit);
    const image = thumbnail(this.api, hit.id, alt, this.side);
    const link = make(
      "a",
      { className: "tile-link", href: this.actions.address(hit.id), draggable: false, tabIndex: -1 },
      image,
    );
    const title = `Enlarge ${hit.relative}`;
    const enlarge = make(
      "button",
      { type: "button", className: "enlarge", tabIndex: -1, title: "Enlarge" },
      icon("enlarge"),
    );
    enlarge.setAttribute("aria-label", title);
    return make("li", { className: "tile" }, make("div", { className: "tile-picture" }, link, enlarge), caption(hit));
  }

  /** @param {MouseEvent} event */
  #click(event) {
    const target = /** @type {Element} */ (event.target);
    const place = this.#placeOf(target);
    if (target.closest(".enlarge")) this.actions.enlarge(place);
    else if (target.closest("a") && plain(event)) {
      event.preventDefault();
      this.actions.search(this.hits[place].id);
    }
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    const target = /** @type {Element} */ (event.target);
    const place = this.#placeOf(target);
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    if (event.key === " " && target.closest("a")) this.actions.enlarge(place);
    else {
      const next = this.#neighbour(place, event.key);
      if (next === null) return;
      this.focus(Math.max(0, Math.min(this.hits.length - 1, next)));
    }
    event.preventDefault();
  }

  /**
   * @param {number} place
   * @param {string} key
   * @returns {number | null}
   */
  #neighbour(place, key) {
    switch (key) {
      case "ArrowLeft":
        return place - 1;
      case "ArrowRight":
        return place + 1;
      case "ArrowUp":
        return this.#inRow(place, -1);
      case "ArrowDown":
        return this.#inRow(place, 1);
      case "Home":
        return 0;
      case "End":
        return this.hits.length - 1;
      default:
        return null;
    }
  }

  /**
   * @param {number} place
   * @param {number} step 1: to the row below, -1: above
   * @returns {number} the place there, in the same column if the row is long enough; without a row, the same place
   */
  #inRow(place, step) {
    const tops = this.tiles.map((tile) => tile.offsetTop);
    const rows = [...new Set(tops)];
    const row = rows[rows.indexOf(tops[place]) + step];
    if (row === undefined) return place;
    const column = place - tops.indexOf(tops[place]);
    return Math.min(tops.indexOf(row) + column, tops.lastIndexOf(row));
  }

  /** @param {EventTarget | null} target */
  #placeOf(target) {
    return this.tiles.indexOf(/** @type {HTMLLIElement} */ (/** @type {Element} */ (target).closest(".tile")));
  }

  /**
   * The Tab key reaches one tile alone; the arrows go on from there.
   * @param {number} place
   */
  #makeReachable(place) {
    this.tiles.forEach((tile, at) => {
      /** @type {NodeListOf<HTMLElement>} */
      const controls = tile.querySelectorAll("a, button");
      for (const control of controls) control.tabIndex = at === place ? 0 : -1;
    });
  }

  #followSize() {
    const control = byId("size");
    control.value = localStorage.getItem(SIZE_KEY) ?? control.value;
    const apply = () => {
      this.list.dataset.size = control.value;
      this.side = SIDES[control.value - 1];
    };
    control.addEventListener("input", apply);
    control.addEventListener("change", () => {
      localStorage.setItem(SIZE_KEY, control.value);
      this.show(this.hits, this.unrelatedDistance);
    });
    apply();
  }
}

/**
 * @param {Hit} hit
 * @returns {string}
 */
export function described(hit) {
  const figures = `distance ${hit.distance.toFixed(4)}, similarity ${hit.similarity.toFixed(4)}`;
  return [hit.label, hit.relative, figures].filter(Boolean).join(", ");
}

/**
 * The same for the eye; the picture's alternative text has already said it.
 * @param {Hit} hit
 * @returns {HTMLElement}
 */
function caption(hit) {
  const more = hit.near_duplicates ? ` +${hit.near_duplicates}` : "";
  const alike = make("span", { className: "alike", title: `${hit.near_duplicates} near-duplicates are hidden` }, more);
  const first = make(
    "div",
    { className: "facts" },
    make("span", { className: "rank" }, String(hit.rank)),
    make("span", { className: "distance" }, hit.distance.toFixed(4)),
    make("span", { className: "similarity" }, `similarity ${hit.similarity.toFixed(4)}`),
    ...(more ? [alike] : []),
  );
  const label = make(
    "div",
    { className: hit.label === null ? "label none" : "label", title: hit.label ?? "" },
    hit.label ?? "no label",
  );
  const path = make("div", { className: "path", title: hit.relative }, make("bdi", {}, hit.relative));
  const box = make("div", { className: "caption" }, first, label, path);
  box.setAttribute("aria-hidden", "true");
  return box;
}

/** @param {MouseEvent} event */
function plain(event) {
  return event.button === 0 && !event.ctrlKey && !event.metaKey && !event.shiftKey && !event.altKey;
}
