/** A box that is drawn on a picture, with pointer or keys: the region to search with. */

import { make } from "../dom.js";
import { between } from "./zoom.js";

/** @typedef {[number, number, number, number]} Box left, top, right, bottom: fractions of the upright picture */

const LEAST = 0.03;
const STEP = 0.01;
const LARGE_STEP = 0.05;
/** @type {Box} */
const BEGINNING = [0.2, 0.2, 0.8, 0.8];
const HANDLES = ["nw", "n", "ne", "e", "se", "s", "sw", "w"];
/** Which of left, top, right, bottom follow the pointer at a handle. */
const SIDES = { w: 0, n: 1, e: 2, s: 3 };

export class Region {
  /**
   * @param {object} actions
   * @param {(box: Box) => void} actions.changed
   * @param {() => void} actions.search
   */
  constructor(actions) {
    this.actions = actions;
    this.box = BEGINNING;
    this.area = make("div", { className: "region-area" });
    this.element = make("div", { className: "region", tabIndex: 0 });
    this.element.setAttribute("role", "group");
    this.element.setAttribute("aria-roledescription", "region");
    this.element.setAttribute("aria-describedby", "region-help");
    for (const name of HANDLES) this.element.append(make("span", { className: `handle ${name}` }));
    this.area.append(this.element);
    this.area.addEventListener("pointerdown", (/** @type {PointerEvent} */ event) => this.#begin(event));
    this.element.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => this.#key(event));
  }

  /**
   * @param {HTMLElement} frame what it is drawn on, as large as the picture
   * @param {Box | null} box to begin with
   */
  open(frame, box) {
    frame.append(this.area);
    this.#set(box ?? BEGINNING);
    this.element.focus({ preventScroll: true });
  }

  close() {
    this.area.remove();
  }

  get isOpen() {
    return this.area.isConnected;
  }

  /** @param {Box} box */
  #set(box) {
    this.box = box;
    place(this.element, box);
    this.element.setAttribute("aria-label", `Region, ${described(box)}`);
    this.actions.changed(box);
  }

  /** @param {PointerEvent} event */
  #begin(event) {
    if (event.button !== 0 || !event.isPrimary) return;
    event.preventDefault();
    event.stopPropagation();
    this.element.focus({ preventScroll: true });
    const from = this.#point(event);
    const handle = HANDLES.find((name) => /** @type {Element} */ (event.target).classList.contains(name));
    const before = this.box;
    const inside = event.target === this.element;
    this.area.setPointerCapture(event.pointerId);
    const follow = (/** @type {PointerEvent} */ moved) => {
      if (moved.pointerId !== event.pointerId) return;
      const to = this.#point(moved);
      if (handle) this.#set(resized(before, handle, to));
      else if (inside) this.#set(shifted(before, to.x - from.x, to.y - from.y));
      else if (Math.abs(to.x - from.x) > LEAST / 2 && Math.abs(to.y - from.y) > LEAST / 2) this.#set(spanned(from, to));
    };
    const end = (/** @type {PointerEvent} */ ended) => {
      if (ended.pointerId !== event.pointerId) return;
      for (const [name, react] of Object.entries(reactions)) this.area.removeEventListener(name, react);
    };
    /** @type {Record<string, any>} */
    const reactions = { pointermove: follow, pointerup: end, pointercancel: end };
    for (const [name, react] of Object.entries(reactions)) this.area.addEventListener(name, react);
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    if (event.ctrlKey || event.metaKey) return;
    const [x, y] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key] ?? [0, 0];
    if (event.key === "Enter") this.actions.search();
    else if (x || y) {
      const step = event.altKey ? LARGE_STEP : STEP;
      const [left, top, right, bottom] = this.box;
      if (event.shiftKey) this.#set(resized(this.box, "se", { x: right + x * step, y: bottom + y * step }));
      else this.#set(shifted([left, top, right, bottom], x * step, y * step));
    } else return;
    event.preventDefault();
    event.stopPropagation();
  }

  /**
   * @param {PointerEvent} event
   * @returns {import("./zoom.js").Point} in fractions of the picture
   */
  #point(event) {
    const { left, top, width, height } = this.area.getBoundingClientRect();
    return { x: between((event.clientX - left) / width, 0, 1), y: between((event.clientY - top) / height, 0, 1) };
  }
}

/**
 * Draw a region on a picture that another element shows.
 * @param {Box} box
 * @returns {HTMLElement} to stand over the picture, in an element of its size
 */
export function outline(box) {
  const element = make("span", { className: "region-outline" });
  place(element, box);
  return element;
}

/**
 * @param {Box} box
 * @returns {string}
 */
export function described(box) {
  const [left, top, right, bottom] = box.map((share) => Math.round(share * 100));
  return `${left} to ${right} % across, ${top} to ${bottom} % down`;
}

/**
 * @param {HTMLElement} element
 * @param {Box} box
 */
function place(element, [left, top, right, bottom]) {
  element.style.left = `${left * 100}%`;
  element.style.top = `${top * 100}%`;
  element.style.width = `${(right - left) * 100}%`;
  element.style.height = `${(bottom - top) * 100}%`;
}

/**
 * @param {Box} box
 * @param {number} x
 * @param {number} y
 * @returns {Box}
 */
function shifted([left, top, right, bottom], x, y) {
  const [byX, byY] = [between(x, -left, 1 - right), between(y, -top, 1 - bottom)];
  return [left + byX, top + byY, right + byX, bottom + byY];
}

/**
 * @param {Box} box
 * @param {string} handle
 * @param {import("./zoom.js").Point} to
 * @returns {Box} whose sides at the handle are there; a side never passes the opposite one
 */
function resized(box, handle, { x, y }) {
  const result = /** @type {Box} */ ([...box]);
  for (const [name, side] of Object.entries(SIDES)) {
    if (!handle.includes(name)) continue;
    const value = side % 2 ? y : x;
    result[side] = side < 2 ? between(value, 0, box[side + 2] - LEAST) : between(value, box[side - 2] + LEAST, 1);
  }
  return result;
}

/**
 * @param {import("./zoom.js").Point} from
 * @param {import("./zoom.js").Point} to
 * @returns {Box}
 */
function spanned(from, to) {
  const [left, top] = [Math.min(from.x, to.x, 1 - LEAST), Math.min(from.y, to.y, 1 - LEAST)];
  return [left, top, Math.max(from.x, to.x, left + LEAST), Math.max(from.y, to.y, top + LEAST)];
}
