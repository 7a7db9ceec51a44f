/** The stage: the large picture between its neighbours, which a swipe brings in; it can be enlarged and moved. */

import { make } from "../dom.js";
import { Frame } from "./frame.js";
import { Gestures } from "./gestures.js";
import { FITTED, between, held, scaled } from "./zoom.js";

const CENTRE = { x: 0, y: 0 };
/** Of the width, or CSS pixels per millisecond: what a swipe has to reach. */
const FAR = 0.3;
const FAST = 0.35;
/** How much less a picture moves than the finger where there is no neighbour. */
const RESISTANCE = 4;
const CLOSE_UP = 2.5;
const KEY_STEP = 80;
const KEY_ZOOM = 1.5;

export class Stage {
  /**
   * @param {HTMLElement} element
   * @param {import("../api.js").Api} api
   * @param {object} actions
   * @param {(by: number) => void} actions.step 1: to the next picture, -1: to the one before
   * @param {() => boolean} [actions.isOff] whether something else listens to the pointer
   */
  constructor(element, api, actions) {
    this.element = element;
    this.actions = actions;
    this.zoom = FITTED;
    this.frames = [0, 1, 2].map(() => new Frame(api, () => this.#place()));
    this.slides = this.frames.map((frame) => make("div", { className: "slide" }, frame.element));
    this.track = make("div", { className: "track" }, ...this.slides);
    element.append(this.track);
    this.gestures = new Gestures(element, {
      isZoomed: () => this.isZoomed,
      move: (x, y) => this.#set({ ...this.zoom, x: this.zoom.x + x, y: this.zoom.y + y }),
      zoom: (factor, point) => this.#set(scaled(this.zoom, this.zoom.scale * factor, point)),
      toggle: (point) => this.#set(this.isZoomed ? FITTED : scaled(this.zoom, CLOSE_UP, point), true),
      swipe: (x) => this.#follow(x),
      release: (x, velocity) => this.#release(x, velocity),
      isOff: actions.isOff,
    });
    new ResizeObserver(() => this.#place()).observe(element);
    this.track.addEventListener("transitionend", (/** @type {TransitionEvent} */ event) => {
      if (event.target === this.track) this.#settle();
    });
    this.bound = 0;
  }

  /** @returns {Frame} of the current picture */
  get frame() {
    return this.frames[1];
  }

  get isZoomed() {
    return this.zoom.scale > 1.001;
  }

  /**
   * A picture that is shown already, as a neighbour perhaps, keeps what it has loaded.
   * @param {...(import("./frame.js").Picture | null)} pictures the one before, the current one, the next
   */
  show(...pictures) {
    if (pictures[1]?.key !== this.frame.picture?.key) this.zoom = FITTED;
    const free = [...this.frames];
    const take = (/** @type {(frame: Frame) => boolean} */ fits) => {
      const at = free.findIndex(fits);
      return at < 0 ? undefined : free.splice(at, 1)[0];
    };
    const kept = pictures.map((picture) => picture && take((frame) => frame.picture?.key === picture.key));
    this.frames = kept.map((frame) => frame ?? /** @type {Frame} */ (take(() => true)));
    this.frames.forEach((frame, at) => {
      frame.show(pictures[at]);
      const slide = /** @type {HTMLElement} */ (frame.element.parentElement);
      slide.style.transform = `translateX(${(at - 1) * 100}%)`;
      slide.inert = at !== 1;
      slide.setAttribute("aria-hidden", String(at !== 1));
    });
    this.bound = 0;
    this.#slide(0, false);
    this.#place();
  }

  /**
   * @param {KeyboardEvent} event
   * @returns {boolean} whether it was for the stage
   */
  key(event) {
    if (event.key === "+" || event.key === "=") this.enlarge(KEY_ZOOM);
    else if (event.key === "-") this.enlarge(1 / KEY_ZOOM);
    else if (event.key === "0") this.#set(FITTED, true);
    else if (event.shiftKey && this.isZoomed) return this.#pan(event.key);
    else return false;
    return true;
  }

  /** @param {number} factor */
  enlarge(factor) {
    this.#set(scaled(this.zoom, this.zoom.scale * factor, CENTRE), true);
  }

  fit() {
    this.#set(FITTED);
  }

  /** @param {string} key */
  #pan(key) {
    const [x, y] = { ArrowLeft: [1, 0], ArrowRight: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[key] ?? [0, 0];
    if (x || y) this.#set({ ...this.zoom, x: this.zoom.x + x * KEY_STEP, y: this.zoom.y + y * KEY_STEP }, true);
    return Boolean(x || y);
  }

  /**
   * @param {import("./zoom.js").Zoom} zoom
   * @param {boolean} [gently]
   */
  #set(zoom, gently = false) {
    const { frame } = this;
    if (!frame.ratio) return;
    this.zoom = held(zoom, frame.size, this.#box, frame.most);
    this.element.classList.toggle("gently", gently);
    this.#place();
  }

  get #box() {
    const { clientWidth: width, clientHeight: height } = this.slides[0];
    return { width, height };
  }

  #place() {
    const box = this.#box;
    this.frames.forEach((frame, at) => frame.place(box, at === 1 ? this.zoom : FITTED));
    this.element.classList.toggle("zoomed", this.isZoomed);
  }

  /** @param {number} x where the finger is */
  #follow(x) {
    if (this.bound) this.#settle(); // the next swipe begins before the last one has come to rest
    const blocked = !this.frames[x < 0 ? 2 : 0].picture;
    this.#slide(blocked ? x / RESISTANCE : x, false);
  }

  /**
   * @param {number} x
   * @param {number} velocity
   */
  #release(x, velocity) {
    const { width } = this.#box;
    const back = velocity * x < 0;
    const goes = !back && (Math.abs(x) > width * FAR || (Math.abs(velocity) > FAST && x !== 0));
    const by = goes ? -Math.sign(x) : 0;
    this.bound = by && this.frames[1 + by].picture ? by : 0;
    this.#slide(-this.bound * width, true, between(width / Math.max(Math.abs(velocity), 0.1) / 4, 90, 260));
  }

  /**
   * @param {number} x
   * @param {boolean} gently
   * @param {number} [ms]
   */
  #slide(x, gently, ms = 200) {
    const moves = gently && !matchMedia("(prefers-reduced-motion: reduce)").matches;
    const { style } = this.track;
    const same = style.transform === `translateX(${x}px)`;
    style.transition = moves ? `transform ${ms}ms cubic-bezier(0.2, 0.7, 0.3, 1)` : "none";
    style.transform = `translateX(${x}px)`;
    if (gently && (!moves || same)) this.#settle();
  }

  /** The picture that a swipe has brought in is the current one. */
  #settle() {
    const by = this.bound;
    this.bound = 0;
    if (by) this.actions.step(by);
  }
}
