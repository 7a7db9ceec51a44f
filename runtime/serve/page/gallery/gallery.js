/** Pictures in justified rows. Rows away from the screen have no elements; arrow keys walk through all of them. */

import { make } from "../dom.js";
import { aspectOf } from "./justified.js";
import { Layout } from "./layout.js";
import { fillTile, fitPicture, makeTile, showMark } from "./tile.js";

/** Height of a row in CSS pixels, for each step of the size control; a phone has its own. */
const HEIGHTS = [104, 144, 196, 264, 352];
const PHONE_WIDTH = 600;
const PHONE_HEIGHT = 122;
const SIZE_KEY = "tile-size";
const GAP = 4;
/** Screens above and below the one that is seen, whose rows have elements. */
const ABOVE = 0.75;
const BELOW = 1.25;
/** Screens below it up to which rows are known, unless the source says so; and the pictures of one request. */
const AHEAD = 3;
const CHUNK = 200;
/** Pictures away from the screen whose items are kept. */
const KEPT = 600;
const RETRY = 2000;

/**
 * @typedef {import("./tile.js").Item} Item
 * @typedef {import("./layout.js").Heading} Heading
 * @typedef {object} Source
 * @property {number} length as far as it is known: more pictures may follow
 * @property {boolean} [isWhole] false: the last of them stands for those that follow
 * @property {(from: number, to: number) => Promise<(Item | null)[]>} range may give fewer, and none at the end alone
 * @property {number} [ahead] screens below the one that is seen, for which it is asked
 *
 * @typedef {object} Drawn a tile that has an element
 * @property {HTMLElement} tile
 * @property {HTMLElement} [heading] above it
 * @property {boolean} [filled] whether its picture is known
 * @property {string} [at] where it is
 *
 * @typedef {object} Shown
 * @property {number} [unrelatedDistance] hits farther than this come after a line
 * @property {number} [length] how many pictures there are, where the source does not say
 * @property {string} [query] the hash of what they are hits of, where they can be marked
 * @property {(item: Item, before: Item | null) => Heading | null} [heading] before an item that begins a section
 */

export class Gallery {
  /**
   * @param {HTMLElement} list an ol or ul
   * @param {import("../api.js").Api} api
   * @param {import("./tile.js").Actions} actions
   */
  constructor(list, api, actions) {
    this.list = list;
    this.api = api;
    this.actions = actions;
    /** @type {Source} */
    this.source = sourceOf([]);
    /** @type {Shown} */
    this.shown = {};
    this.layout = new Layout(this.#frame());
    /** @type {Map<number, Item | null>} of places near the screen */
    this.items = new Map();
    /** @type {Map<number, Drawn>} */
    this.tiles = new Map();
    this.current = 0;
    /** @type {Item | null} the last one that the layout knows */
    this.last = null;
    this.frame = 0;
    this.extending = false;
    /** @type {number | undefined} */
    this.learnt = undefined;
    this.failedAt = -Infinity;
    /** Layouts of sources that were shown before, so that the way back finds each row where it was. */
    this.layouts = new WeakMap();
    this.#listen();
  }

  get length() {
    return Math.max(this.layout.count, this.shown.length ?? this.source.length);
  }

  /** @returns {boolean} whether the last place stands for pictures that are still to come */
  get grows() {
    return this.source.isWhole === false;
  }

  /**
   * @param {Item[] | Source} items
   * @param {Shown} [shown]
   * @returns {Promise<void>} once the first rows are there
   */
  async show(items, shown = {}) {
    const held = this.list.contains(document.activeElement);
    this.#forget();
    this.list.hidden = false;
    this.source = Array.isArray(items) ? sourceOf(items) : items;
    this.shown = shown;
    this.layout = this.layouts.get(this.source)?.layout ?? new Layout(this.#frame());
    this.last = this.layouts.get(this.source)?.last ?? null;
    this.current = 0;
    this.failedAt = -Infinity;
    if (Array.isArray(items)) this.#append(items);
    else if (this.layout.count === 0) await this.#next();
    this.#measure();
    this.draw();
    if (held) await this.focus(0);
  }

  /**
   * @param {number} place
   * @returns {Promise<void>} once its tile, or the last one before it, has the focus
   */
  async focus(place) {
    await this.#reach(place);
    const reached = Math.max(0, Math.min(place, this.layout.laid - 1));
    this.current = reached;
    this.draw();
    this.#render(reached);
    const link = this.tiles.get(reached)?.tile.querySelector("a");
    link?.scrollIntoView({ block: "nearest" });
    link?.focus({ preventScroll: true });
    this.draw();
  }

  /**
   * @param {number} place
   * @returns {Promise<Item>}
   */
  async at(place) {
    const item = this.items.get(place) ?? (await this.source.range(place, place + 1))[0];
    if (!item) throw new RangeError(`no picture has the place ${place}`);
    return item;
  }

  /** @returns {{place: number, offset: number}} the first picture on the screen, and how far below the edge it is */
  position() {
    const view = this.#view();
    const row = this.layout.rowsBetween(view.top, view.bottom)[0];
    return { place: this.layout.firsts[row] ?? 0, offset: (this.layout.tops[row] ?? 0) - view.top };
  }

  /** @param {{place: number, offset: number}} position as `position` gave it */
  async restore({ place, offset }) {
    const { source } = this;
    await this.#reach(place);
    if (source !== this.source || this.layout.rows === 0) return;
    this.draw(); // the page has to be as high as that
    const top = this.layout.tops[this.layout.rowOf(Math.min(place, this.layout.laid - 1))];
    const view = this.#view();
    scrollerOf(this.list).scrollBy({ top: top - offset - view.top, behavior: "instant" });
    this.draw();
  }

  /** Show again what the selection has changed. */
  markSelected() {
    for (const [place, { tile }] of this.tiles) {
      const item = this.items.get(place);
      const button = tile.querySelector(".tile-select");
      if (item && button) button.ariaPressed = String(this.actions.isSelected?.(item.id) ?? false);
    }
  }

  /** Show the marks of the hits. */
  showMarks() {
    for (const [place, { tile }] of this.tiles) this.#showMark(tile, this.items.get(place));
  }

  /**
   * @param {number} place of a hit
   * @param {boolean} more or less like it
   * @returns {boolean} whether it can be marked
   */
  mark(place, more) {
    const item = this.items.get(place);
    const { query } = this.shown;
    if (!item || !query || !this.actions.marks?.takes(query, item)) return false;
    this.actions.marks.toggle(query, item, more);
    return true;
  }

  /** Make the elements that the screen needs, and remove the others. */
  draw() {
    this.frame = 0;
    if (!this.list.clientWidth) return; // hidden, or in a dialog that is closed
    this.list.style.height = `${this.layout.bottom}px`;
    const view = this.#view();
    const height = view.bottom - view.top;
    const [first, end] = this.layout.rowsBetween(view.top - ABOVE * height, view.bottom + BELOW * height);
    const from = this.layout.firsts[first] ?? 0;
    const to = end < this.layout.rows ? this.layout.firsts[end] : this.layout.laid;
    this.#keepOnly(from, end > first ? to : from);
    for (let row = first; row < end; row++) this.#drawRow(row);
    this.#makeReachable(view);
    if (end > first) this.#complete(from, to);
    this.#extend(view.bottom + (this.source.ahead ?? AHEAD) * height);
  }

  /** Draw in the next frame, once for all that asks for it until then. */
  #drawSoon() {
    this.frame ||= requestAnimationFrame(() => this.draw());
  }

  #listen() {
    this.list.addEventListener("click", (event) => this.#click(event));
    this.list.addEventListener("keydown", (event) => this.#key(event));
    this.list.addEventListener("focusin", (event) => {
      const place = placeOf(event.target);
      if (place !== null) this.#setCurrent(place);
    });
    this.list.addEventListener("load", (event) => this.#learn(/** @type {HTMLImageElement} */ (event.target)), true);
    document.addEventListener("scroll", () => this.#drawSoon(), { capture: true, passive: true });
    addEventListener("resize", () => this.#drawSoon());
    addEventListener("online", () => {
      this.failedAt = -Infinity;
      this.#drawSoon();
    });
    new ResizeObserver(() => this.#measure()).observe(this.list);
    const control = document.querySelector("#size");
    if (control instanceof HTMLInputElement) {
      control.value = localStorage.getItem(SIZE_KEY) ?? control.value;
      control.addEventListener("input", () => {
        localStorage.setItem(SIZE_KEY, control.value);
        this.#measure();
      });
    }
  }

  /** @returns {import("./justified.js").Frame} */
  #frame() {
    const width = this.list.clientWidth;
    const step = Number(localStorage.getItem(SIZE_KEY) ?? 3) - 1;
    return { width, height: width < PHONE_WIDTH ? PHONE_HEIGHT : (HEIGHTS[step] ?? HEIGHTS[2]), gap: GAP };
  }

  /** Make the rows again where their width or height is another one, and keep what is on the screen there. */
  #measure() {
    const frame = this.#frame();
    const before = this.layout.frame;
    if (!frame.width || (frame.width === before.width && frame.height === before.height)) return;
    const view = this.#view();
    const { place, offset } = this.position();
    this.layout.remakeAll(frame);
    if (view.top > 0 && before.width) {
      this.list.style.height = `${this.layout.bottom}px`;
      const moved = this.layout.tops[this.layout.rowOf(place)] - offset - view.top;
      scrollerOf(this.list).scrollBy({ top: moved, behavior: "instant" });
    }
    this.draw();
  }

  /** @returns {{top: number, bottom: number}} what is seen of the list, in pixels from its top */
  #view() {
    const scroller = scrollerOf(this.list);
    const edge = scroller === document.scrollingElement ? 0 : scroller.getBoundingClientRect().top;
    const top = edge - this.list.getBoundingClientRect().top;
    return { top, bottom: top + (scroller === document.scrollingElement ? innerHeight : scroller.clientHeight) };
  }

  /** @param {(Item | null)[]} items that follow those of the layout */
  #append(items) {
    const { layout } = this;
    /** @type {Map<number, Heading>} */
    const headings = new Map();
    items.forEach((item, at) => {
      const place = layout.count + at;
      const heading = item && this.#heading(item);
      if (heading) headings.set(place, heading);
      this.items.set(place, item);
      this.last = item ?? this.last;
    });
    const aspects = items.map((item) => aspectOf(item?.width, item?.height));
    layout.append(aspects, headings, layout.count + items.length >= this.source.length);
    this.layouts.set(this.source, { layout, last: this.last });
  }

  /**
   * @param {Item} item
   * @returns {Heading | null}
   */
  #heading(item) {
    const limit = this.shown.unrelatedDistance;
    const isFar = (/** @type {Item | null} */ other) =>
      limit !== undefined && other !== null && (other.distance ?? 0) > limit;
    if (isFar(item) && !isFar(this.last)) return { text: `Not similar any more: farther than ${limit}`, kind: "line" };
    return this.shown.heading?.(item, this.last) ?? null;
  }

  /**
   * Know the rows down to a line.
   * @param {number} line
   */
  async #extend(line) {
    if (this.extending || this.layout.isWhole || this.layout.bottom > line) return;
    if (performance.now() - this.failedAt < RETRY) return;
    this.extending = true;
    const { source } = this;
    try {
      await this.#next();
    } catch (error) {
      if (source === this.source) {
        this.failedAt = performance.now();
        this.actions.fail?.(error);
      }
    } finally {
      this.extending = false;
    }
    this.#drawSoon();
  }

  /** Ask for the pictures that follow those of the layout. */
  async #next() {
    const { source, layout } = this;
    const items = await source.range(layout.count, layout.count + CHUNK);
    if (source !== this.source || layout !== this.layout) return;
    if (items.length === 0) layout.append([], new Map(), true);
    else this.#append(items);
  }

  /**
   * Know the rows down to a place.
   * @param {number} place
   */
  async #reach(place) {
    const { source } = this;
    while (source === this.source && this.layout.laid <= place && !this.layout.isWhole) {
      if (this.extending) await new Promise((resolve) => setTimeout(resolve, 20));
      else await this.#next();
    }
  }

  /**
   * Have the items of these places, and fill their tiles.
   * @param {number} from
   * @param {number} to
   */
  async #complete(from, to) {
    for (const place of this.items.keys())
      if (place < from - KEPT || (place > to + KEPT && place < this.layout.laid)) this.items.delete(place);
    let first = from;
    while (first < to && this.items.has(first)) first++;
    if (first === to) return;
    const { source } = this;
    const items = await source.range(first, to).catch(() => []);
    if (source !== this.source) return;
    items.forEach((item, at) => this.items.set(first + at, item));
    this.#fillWaiting();
  }

  #fillWaiting() {
    for (const [place, { filled }] of this.tiles) if (!filled && this.items.has(place)) this.#render(place);
  }

  /** @param {number} row */
  #drawRow(row) {
    for (const box of this.layout.boxesOf(row)) this.#place(box);
  }

  /** @param {number} place */
  #render(place) {
    const row = this.layout.rowOf(place);
    const box = this.layout.rows ? this.layout.boxesOf(row)[place - this.layout.firsts[row]] : undefined;
    if (box) this.#place(box);
  }

  /** @param {{place: number, left: number, top: number, width: number, height: number}} box */
  #place(box) {
    const { place } = box;
    const made = this.tiles.get(place) ?? this.#make(place);
    const item = this.items.get(place);
    const isNew = item !== undefined && made.filled !== true;
    if (isNew) {
      fillTile(made.tile, item, this.api, this.actions);
      made.filled = true;
      this.#showMark(made.tile, item);
    }
    if (made.heading) made.heading.style.top = `${this.layout.blockTop(this.layout.rowOf(place))}px`;
    const at = `${box.left} ${box.top} ${box.width} ${box.height}`;
    if (at === made.at && !isNew) return;
    made.at = at;
    const { style } = made.tile;
    style.left = `${box.left}px`;
    style.top = `${box.top}px`;
    style.width = `${box.width}px`;
    style.height = `${box.height}px`;
    if (item) fitPicture(made.tile, item, box);
  }

  /**
   * @param {HTMLElement} tile
   * @param {Item | null | undefined} item
   */
  #showMark(tile, item) {
    const { marks } = this.actions;
    const { query } = this.shown;
    if (item && query && marks?.takes(query, item)) showMark(tile, item, query, marks);
  }

  /**
   * @param {number} place
   * @returns {Drawn}
   */
  #make(place) {
    const tile = makeTile(place, this.length);
    const said = this.layout.headings.get(place);
    const heading = said && sectionHeading(said);
    const after = this.#following(place);
    if (heading) this.list.insertBefore(heading, after);
    this.list.insertBefore(tile, after);
    tile.firstElementChild.tabIndex = place === this.current ? 0 : -1;
    const made = /** @type {Drawn} */ ({ tile, heading });
    this.tiles.set(place, made);
    return made;
  }

  /**
   * @param {number} place
   * @returns {Element | null} the element before which a tile of this place stands
   */
  #following(place) {
    const next = this.tiles.get(place + 1);
    if (next) return next.heading ?? next.tile;
    const before = this.tiles.get(place - 1);
    if (before) return before.tile.nextElementSibling;
    let nearest = Infinity;
    for (const other of this.tiles.keys()) if (other > place && other < nearest) nearest = other;
    const found = this.tiles.get(nearest);
    return found ? (found.heading ?? found.tile) : null;
  }

  /**
   * @param {number} from
   * @param {number} to
   */
  #keepOnly(from, to) {
    const held = this.list.contains(document.activeElement) ? this.current : null;
    for (const [place, { tile, heading }] of this.tiles) {
      if ((place >= from && place < to) || place === held) continue;
      tile.remove();
      heading?.remove();
      this.tiles.delete(place);
    }
    if (held !== null && (held < from || held >= to)) this.#render(held);
  }

  /** Remove all elements. */
  #forget() {
    this.tiles.clear();
    this.items.clear();
    this.list.replaceChildren();
  }

  /**
   * The Tab key reaches one tile alone, which is on the screen; the arrows go on from there.
   * @param {{top: number, bottom: number}} view
   */
  #makeReachable(view) {
    if (this.list.contains(document.activeElement)) return;
    const [first, end] = this.layout.rowsBetween(view.top, view.bottom);
    const to = end < this.layout.rows ? this.layout.firsts[end] : this.layout.laid;
    const from = this.layout.firsts[first] ?? 0;
    if (this.current < from || this.current >= to) this.#setCurrent(from);
  }

  /** @param {number} place */
  #setCurrent(place) {
    const links = [this.current, place].map((at) => this.tiles.get(at)?.tile.querySelector("a"));
    if (links[0]) links[0].tabIndex = -1;
    if (links[1]) links[1].tabIndex = 0;
    this.current = place;
  }

  /**
   * A picture of unknown size has come: rows below the screen are made again with its aspect.
   * @param {HTMLImageElement} image
   */
  #learn(image) {
    image.classList.remove("waiting");
    const place = placeOf(image);
    if (place === null || !image.naturalWidth) return;
    if (!this.layout.learn(place, aspectOf(image.naturalWidth, image.naturalHeight))) return;
    this.learnt ??= setTimeout(() => {
      this.learnt = undefined;
      this.layout.remakeBelow(this.#view().bottom);
      this.draw();
    }, 50);
  }

  /** @param {MouseEvent} event */
  #click(event) {
    const target = /** @type {Element} */ (event.target);
    const place = placeOf(target);
    if (place === null) return;
    if (target.closest(".tile-select")) this.#select(place);
    else if (target.closest(".tile-marks")) this.mark(place, target.closest(".tile-more") !== null);
    else if (target.closest("a") && plain(event)) {
      event.preventDefault();
      if (this.items.get(place)) this.actions.open(place);
    }
  }

  /** @param {number} place */
  #select(place) {
    const item = this.items.get(place);
    if (item) this.actions.select?.(place, item);
    this.markSelected();
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    const place = placeOf(event.target);
    if (place === null || event.altKey || event.ctrlKey || event.metaKey) return;
    const next = this.#neighbour(place, event.key);
    if (next !== null) this.focus(next).catch((error) => this.actions.fail?.(error));
    else if (event.key === " " && this.actions.select) this.#select(place);
    else if (event.key === " ") this.actions.open(place);
    else return;
    event.preventDefault();
  }

  /**
   * @param {number} place
   * @param {string} key
   * @returns {number | null}
   */
  #neighbour(place, key) {
    const last = this.layout.isWhole ? this.layout.laid - 1 : this.layout.laid;
    switch (key) {
      case "ArrowLeft":
        return Math.max(0, place - 1);
      case "ArrowRight":
        return Math.min(last, place + 1);
      case "ArrowUp":
        return this.layout.beside(place, -1);
      case "ArrowDown":
        return this.layout.beside(place, 1);
      case "Home":
        return 0;
      case "End":
        return this.layout.laid - 1;
      default:
        return null;
    }
  }
}

/**
 * @param {Item[]} items
 * @returns {Source}
 */
function sourceOf(items) {
  return { length: items.length, range: async (from, to) => items.slice(from, to) };
}

/**
 * @param {Heading} heading
 * @returns {HTMLLIElement}
 */
function sectionHeading({ text, kind, href }) {
  const words = make("bdi", { title: text }, text);
  return make("li", { className: `section ${kind}` }, make("h3", {}, href ? make("a", { href }, words) : words));
}

/**
 * @param {EventTarget | null} target
 * @returns {number | null}
 */
function placeOf(target) {
  const tile = /** @type {Element | null} */ (target)?.closest?.(".tile");
  return tile instanceof HTMLElement ? Number(tile.dataset.place) : null;
}

/**
 * @param {Element} list
 * @returns {Element} what scrolls it: a dialog, or the page
 */
function scrollerOf(list) {
  return list.closest("dialog, [data-scrolls]") ?? document.documentElement;
}

/** @param {MouseEvent} event */
function plain(event) {
  return event.button === 0 && !event.ctrlKey && !event.metaKey && !event.shiftKey && !event.altKey;
}
