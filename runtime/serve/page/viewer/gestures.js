/** Fingers, mouse and wheel on a picture: swipe, pinch, double tap and drag. Vertical scrolling stays the browser's. */

const SLACK = 8;
const TAP_MS = 300;
const TAP_APART = 30;
const WHEEL = 0.01;
const STALE_MS = 80;

/**
 * Points are in CSS pixels from the centre of the element.
 * @typedef {import("./zoom.js").Point} Point
 * @typedef {object} Handlers
 * @property {() => boolean} isZoomed whether a drag moves the picture, and does not swipe
 * @property {(x: number, y: number) => void} move by that much
 * @property {(factor: number, point: Point) => void} zoom
 * @property {(point: Point) => void} toggle zoom, after a double tap
 * @property {(x: number) => void} [swipe] the finger is that far from where it began
 * @property {(x: number, velocity: number) => void} [release] the swipe has ended; CSS pixels per ms
 * @property {() => boolean} [isOff] whether something else listens to the pointer
 */

export class Gestures {
  /**
   * @param {HTMLElement} element
   * @param {Handlers} handlers
   */
  constructor(element, handlers) {
    this.element = element;
    this.handlers = handlers;
    /** @type {Map<number, PointerEvent>} the pointers that are down, where they are */
    this.down = new Map();
    /** @type {"none" | "swipe" | "move" | "pinch"} */
    this.kind = "none";
    /** @type {PointerEvent | null} */
    this.first = null;
    /** @type {{time: number, x: number, y: number} | null} */
    this.tapped = null;
    /** @type {{time: number, x: number}[]} */
    this.trail = [];
    const listen = (/** @type {string} */ name, /** @type {(event: any) => void} */ react) =>
      element.addEventListener(name, react, { passive: false });
    listen("pointerdown", (event) => this.#begin(event));
    listen("pointermove", (event) => this.#follow(event));
    listen("pointerup", (event) => this.#end(event));
    listen("pointercancel", (event) => this.#end(event));
    listen("wheel", (event) => this.#wheel(event));
  }

  /** @param {PointerEvent} event */
  #begin(event) {
    const other = event.pointerType === "mouse" && event.button !== 0;
    if (other || this.handlers.isOff?.() || /** @type {Element} */ (event.target).closest("button, a, select")) return;
    this.down.set(event.pointerId, event);
    this.element.setPointerCapture(event.pointerId);
    if (this.down.size === 1) {
      this.first = event;
      this.trail = [{ time: event.timeStamp, x: event.clientX }];
      this.kind = this.handlers.isZoomed() ? "move" : "none";
    } else if (this.down.size === 2) {
      if (this.kind === "swipe") this.handlers.release?.(0, 0);
      this.kind = "pinch";
      this.first = null;
    }
  }

  /** @param {PointerEvent} event */
  #follow(event) {
    const before = this.down.get(event.pointerId);
    if (!before) return;
    if (this.kind === "pinch") this.#pinch(event);
    else if (this.kind === "move") this.handlers.move(event.clientX - before.clientX, event.clientY - before.clientY);
    else this.#swipe(event);
    this.down.set(event.pointerId, event);
  }

  /** @param {PointerEvent} event */
  #swipe(event) {
    if (!this.first || !this.handlers.swipe || event.pointerType === "mouse") return;
    const [x, y] = [event.clientX - this.first.clientX, event.clientY - this.first.clientY];
    if (this.kind === "none" && Math.abs(x) > SLACK && Math.abs(x) > Math.abs(y)) this.kind = "swipe";
    if (this.kind !== "swipe") return;
    const fresh = this.trail.filter(({ time }) => event.timeStamp - time < STALE_MS);
    this.trail = [...fresh, { time: event.timeStamp, x: event.clientX }];
    this.handlers.swipe(x);
  }

  /** @param {PointerEvent} event the one of two that moved */
  #pinch(event) {
    const [other] = [...this.down.values()].filter(({ pointerId }) => pointerId !== event.pointerId);
    const before = /** @type {PointerEvent} */ (this.down.get(event.pointerId));
    const [was, is] = [middle(before, other), middle(event, other)];
    this.handlers.move(is.clientX - was.clientX, is.clientY - was.clientY);
    this.handlers.zoom(apart(event, other) / Math.max(1, apart(before, other)), this.#point(is));
  }

  /** @param {PointerEvent} event */
  #end(event) {
    if (!this.down.delete(event.pointerId)) return;
    if (this.kind === "swipe") this.#release(event);
    else if (event.type === "pointerup" && this.first) this.#tap(event);
    if (this.down.size === 0) this.kind = "none";
    else if (this.kind === "pinch") this.kind = this.handlers.isZoomed() ? "move" : "none";
  }

  /** @param {PointerEvent} event */
  #release(event) {
    this.kind = "none";
    const { time, x } = this.trail[0];
    const still = event.type === "pointercancel" || event.timeStamp - this.trail[this.trail.length - 1].time > STALE_MS;
    const velocity = still ? 0 : (event.clientX - x) / Math.max(1, event.timeStamp - time);
    this.handlers.release?.(event.type === "pointercancel" ? 0 : event.clientX - (this.first?.clientX ?? x), velocity);
  }

  /** @param {PointerEvent} event */
  #tap(event) {
    const first = /** @type {PointerEvent} */ (this.first);
    if (Math.max(Math.abs(event.clientX - first.clientX), Math.abs(event.clientY - first.clientY)) > SLACK) return;
    const { tapped } = this;
    const [x, y] = [event.clientX, event.clientY];
    const soon = tapped && event.timeStamp - tapped.time < TAP_MS;
    const again = soon && Math.hypot(x - tapped.x, y - tapped.y) < TAP_APART;
    this.tapped = again ? null : { time: event.timeStamp, x, y };
    if (again) this.handlers.toggle(this.#point(event));
  }

  /** @param {WheelEvent} event a pinch on a touchpad holds the Ctrl key as well */
  #wheel(event) {
    if (!event.ctrlKey || this.handlers.isOff?.()) return;
    event.preventDefault();
    const lines = event.deltaMode === WheelEvent.DOM_DELTA_LINE ? 16 : 1;
    const change = Math.max(-50, Math.min(50, event.deltaY * lines));
    this.handlers.zoom(Math.exp(-change * WHEEL), this.#point(event));
  }

  /**
   * @param {{clientX: number, clientY: number}} place
   * @returns {Point}
   */
  #point({ clientX, clientY }) {
    const { left, top, width, height } = this.element.getBoundingClientRect();
    return { x: clientX - left - width / 2, y: clientY - top - height / 2 };
  }
}

/**
 * @param {{clientX: number, clientY: number}} one
 * @param {{clientX: number, clientY: number}} other
 */
function middle(one, other) {
  return { clientX: (one.clientX + other.clientX) / 2, clientY: (one.clientY + other.clientY) / 2 };
}

/**
 * @param {{clientX: number, clientY: number}} one
 * @param {{clientX: number, clientY: number}} other
 */
function apart(one, other) {
  return Math.hypot(one.clientX - other.clientX, one.clientY - other.clientY);
}
