/** Selecting pictures of a gallery: its ticks, Shift for a range, the key x, a long press of a finger. */

const LONG_PRESS_MS = 450;
const STILL = 10;
const LARGEST_RANGE = 500;

/** @typedef {import("./facts.js").Item} Item */

export class Picking {
  /**
   * @param {HTMLElement} list
   * @param {import("./selection.js").Selection} selection
   * @param {() => boolean} keysAreOn whether single keys work
   */
  constructor(list, selection, keysAreOn) {
    this.list = list;
    this.selection = selection;
    this.keysAreOn = keysAreOn;
    /** @type {import("../gallery/gallery.js").Gallery | null} */
    this.gallery = null;
    this.ranging = false;
    /** @type {{place: number, id: number} | null} where a range begins */
    this.anchor = null;
    /** @type {{timer: number, x: number, y: number} | null} */
    this.pressing = null;
    this.swallow = false;
    list.addEventListener("click", (event) => this.#click(event), true);
    list.addEventListener("keydown", (event) => this.#key(event));
    list.addEventListener("pointerdown", (event) => this.#press(event));
    list.addEventListener("pointermove", (event) => this.#move(event));
    for (const name of ["pointerup", "pointercancel"]) list.addEventListener(name, () => this.#stop());
    list.addEventListener("contextmenu", (event) => this.swallow && event.preventDefault());
    selection.addEventListener("change", () => this.gallery?.markSelected());
  }

  /** @returns {{select: (place: number, item: Item) => void, isSelected: (id: number) => boolean}} for the gallery */
  get actions() {
    return {
      select: (place, item) => this.#select(place, item),
      isSelected: (id) => this.selection.has(id),
    };
  }

  /**
   * @param {number} place
   * @param {Item} item
   */
  async #select(place, item) {
    const { anchor, gallery } = this;
    this.anchor = { place, id: item.id };
    if (!this.ranging || !anchor || !gallery || !this.selection.has(anchor.id)) return this.selection.toggle(item);
    const [from, to] = [Math.min(place, anchor.place), Math.max(place, anchor.place)];
    const places = Array.from({ length: Math.min(to - from + 1, LARGEST_RANGE) }, (_, at) => from + at);
    const items = await Promise.all(places.map((at) => gallery.at(at).catch(() => null)));
    this.selection.add(items.flatMap((each) => each ?? []));
  }

  /** @param {MouseEvent} event */
  #click(event) {
    this.ranging = event.shiftKey;
    const target = /** @type {Element} */ (event.target);
    const tile = tileOf(target);
    if (this.swallow) this.swallow = false; // the finger that selected is lifted
    else if (!tile || target.closest(".tile-select") || event.ctrlKey || event.metaKey || event.button !== 0) return;
    else if (event.shiftKey || (this.selection.size > 0 && byTouch(event))) this.#selectTile(tile);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    const tile = tileOf(event.target);
    if (event.key.toLowerCase() !== "x" || !tile || !this.keysAreOn()) return;
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    this.ranging = event.shiftKey;
    this.#selectTile(tile);
  }

  /** @param {HTMLElement} tile */
  async #selectTile(tile) {
    const place = Number(tile.dataset.place);
    const item = await this.gallery?.at(place).catch(() => null);
    if (item) await this.#select(place, item);
  }

  /** @param {PointerEvent} event */
  #press(event) {
    this.#stop();
    this.swallow = false;
    const tile = tileOf(event.target);
    if (event.pointerType !== "touch" || !event.isPrimary || !tile) return;
    const timer = setTimeout(() => {
      this.#stop();
      this.swallow = true;
      this.ranging = false;
      if (navigator.userActivation?.hasBeenActive) navigator.vibrate?.(10);
      this.#selectTile(tile);
    }, LONG_PRESS_MS);
    this.pressing = { timer, x: event.clientX, y: event.clientY };
  }

  /** @param {PointerEvent} event */
  #move(event) {
    const begun = this.pressing;
    if (begun && Math.hypot(event.clientX - begun.x, event.clientY - begun.y) > STILL) this.#stop();
  }

  #stop() {
    clearTimeout(this.pressing?.timer);
    this.pressing = null;
  }
}

/**
 * @param {EventTarget | null} target
 * @returns {HTMLElement | null}
 */
function tileOf(target) {
  return target instanceof Element ? target.closest(".tile") : null;
}

/** @param {MouseEvent} event */
function byTouch(event) {
  return "pointerType" in event && event.pointerType === "touch";
}
