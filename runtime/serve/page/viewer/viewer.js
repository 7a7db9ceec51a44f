/** The large view: one picture, what is known of it, and the pictures similar to it. */

import { announce, say } from "../announce.js";
import { copy } from "../clipboard.js";
import { byId } from "../dom.js";
import { Compare } from "./compare.js";
import { crop } from "./crop.js";
import { Facts, nameOf, pathOf } from "./facts.js";
import { fullScreen } from "./full-screen.js";
import { Region, described } from "./region.js";
import { Similar } from "./similar.js";
import { Stage } from "./stage.js";
import * as trail from "./trail.js";

const RECORD_MS = 150;
const LOOKED_THROUGH = 200;
/** @type {import("./trail.js").List} of the picture itself */
const ALONE = { length: 1, at: () => undefined };

/**
 * @typedef {import("./facts.js").Item} Item
 * @typedef {import("./trail.js").Stop} Stop
 * @typedef {import("./region.js").Box} Box
 * @typedef {{name: string, file: File | null, picture: import("./frame.js").Picture}} Local a picture of the user
 *
 * @typedef {object} Ways
 * @property {(show: number | null, entry: {replace: boolean, mark: object}) => void} record the address of it
 * @property {(id: number) => void} search
 * @property {(id: number, box: Box) => void} searchRegion
 * @property {(region: File, whole: File, box: Box) => void} searchCrop
 * @property {() => import("./compare.js").Choice | null} query that the page's list answers
 * @property {() => string} queryName
 * @property {() => string | undefined} queryHash of the picture of the index whose hits the page shows
 * @property {import("../rate/marks.js").Marks} marks
 * @property {() => boolean} originals whether the server gives out the files
 * @property {(list: HTMLElement, open: (place: number) => void) => any} gallery makes one
 */

export class Viewer {
  /**
   * @param {import("../api.js").Api} api
   * @param {import("./selection.js").Selection} selection
   * @param {Ways} ways
   */
  constructor(api, selection, ways) {
    this.api = api;
    this.ways = ways;
    this.selection = selection;
    this.dialog = byId("viewer");
    this.body = byId("viewer-body");
    /** @type {Stop | null} */
    this.stop = null;
    /** @type {Item | null} */
    this.item = null;
    /** @type {Stop | null} where the page's own list was left */
    this.left = null;
    /** @type {Map<number, import("./frame.js").Picture>} the pictures of the list beside this one, by their places */
    this.near = new Map();
    /** @type {import("./trail.js").List | null} */
    this.nearList = null;
    this.closing = false;
    /** @type {number | undefined} */
    this.recording = undefined;
    this.region = new Region({ changed: showBox, search: () => this.#searchRegion() });
    this.stage = new Stage(byId("viewer-stage"), api, {
      step: (by) => this.#step(by),
      isOff: () => this.region.isOpen,
    });
    this.compare = new Compare(byId("viewer-compare"), api);
    this.facts = new Facts(api);
    const similar = ways.gallery(byId("viewer-similar"), (place) => this.#openSimilar(place));
    this.similar = new Similar(api, similar, (query) => ways.marks.learn(query));
    fullScreen(this.body, byId("viewer-screen"), () => this.body.scrollTo({ top: 0 }));
    this.#listen();
  }

  #listen() {
    const press = (/** @type {string} */ name, /** @type {() => void} */ react) =>
      byId(`viewer-${name}`).addEventListener("click", react);
    press("close", () => this.close());
    press("back", () => this.#back());
    press("previous", () => this.#step(-1));
    press("next", () => this.#step(1));
    press("search", () => this.item && this.ways.search(this.item.id));
    press("copy", () => this.item && copy(pathOf(this.item), "Path"));
    press("select", () => this.item && this.selection.toggle(this.item));
    press("compared", () => this.#toggleCompare());
    press("region", () => this.#toggleRegion());
    byId("region-search").addEventListener("click", () => this.#searchRegion());
    byId("region-cancel").addEventListener("click", () => this.#toggleRegion());
    this.selection.addEventListener("change", () => this.#showSelected());
    press("more", () => this.#mark(true));
    press("less", () => this.#mark(false));
    this.ways.marks.addEventListener("change", () => this.#showMark());
    // Of the document: what had the focus may have been hidden.
    document.addEventListener("keydown", (event) => this.#key(event));
    // The key Esc does not come here. The back button of a phone does, or it closes the dialog at once.
    this.dialog.addEventListener("cancel", (/** @type {Event} */ event) => {
      if (event.target !== this.dialog) return;
      event.preventDefault();
      this.#escape(() => this.#back());
    });
    this.dialog.addEventListener("close", () => this.stop && this.#back());
  }

  /**
   * Show a picture of a list, in an entry of the history.
   * @param {import("./trail.js").List} list
   * @param {number} place
   * @param {Item | null} [from] what the list is similar to; null: to the page's query
   * @param {string} [query] the hash of that
   */
  async open(list, place, from = null, query = this.ways.queryHash()) {
    const item = await quiet(list.at(place));
    if (item) this.#enter({ list, place, from, item, query });
  }

  /**
   * Show what the page searches with.
   * @param {import("./compare.js").Choice} query
   * @param {boolean} draws whether a region of it is drawn
   */
  async openQuery({ name, picture, file }, draws) {
    const { id } = picture;
    /** @type {Stop} */
    const stop = { list: ALONE, place: 0, from: null };
    if (id === undefined) stop.local = { name, file: file ?? null, picture };
    else stop.item = unknown(id);
    this.#enter(stop);
    if (!draws) return;
    await this.stage.frame.known();
    if (this.stop === stop) this.#startRegion();
  }

  /** @param {Stop} stop */
  #enter(stop) {
    this.#recordNow();
    this.ways.record(stop.item?.id ?? null, { replace: false, mark: trail.further(stop) });
    this.#show(stop);
  }

  /** @param {number} place */
  #openSimilar(place) {
    const items = [...this.similar.items];
    this.open({ length: items.length, at: (at) => items[at] }, place, this.item, this.similar.query);
  }

  /**
   * Show what the address says; nothing: close.
   * @param {number | null} id
   */
  follow(id) {
    clearTimeout(this.recording);
    this.recording = undefined;
    const stop = trail.current();
    if (this.closing && (id !== null || stop?.local)) {
      this.closing = false; // the page began with this picture: no entry of the history is without it
      this.ways.record(null, { replace: true, mark: { large: null } });
      this.leave(true);
    } else if (id === null && !stop?.local) this.leave(true);
    else if (stop && (stop.local || stop.item?.id === id)) this.#show(stop);
    else if (this.item?.id !== id) this.#show({ list: ALONE, place: 0, from: null, item: unknown(Number(id)) });
  }

  /**
   * The page's list has come: step through it if the picture is in it.
   * @param {import("./trail.js").List} list
   */
  async adopt(list) {
    const { item, stop } = this;
    if (!item || !stop || ![ALONE, list].includes(stop.list)) return;
    if (stop.list === list && (await quiet(list.at(stop.place)))?.id === item.id) return this.#show(stop);
    for (let place = 0; place < Math.min(list.length, LOOKED_THROUGH); place++) {
      const other = await quiet(list.at(place));
      if (this.item !== item) return;
      if (other?.id !== item.id) continue;
      const adopted = { list, place, from: null, item: other, query: this.ways.queryHash() };
      this.ways.record(item.id, { replace: true, mark: trail.instead(adopted) });
      return this.#show(adopted);
    }
  }

  close() {
    if (!this.stop || this.closing) return;
    const depth = trail.depth();
    this.closing = true;
    if (depth) history.go(-depth);
    else this.follow(this.item?.id ?? null);
  }

  /** To the picture before, or to the page. */
  #back() {
    if (trail.depth()) history.back();
    else this.close();
  }

  get isOpen() {
    return this.stop !== null;
  }

  /**
   * Close, and leave the address to the page.
   * @param {boolean} [returns] whether the focus goes back to where it was
   */
  leave(returns = false) {
    this.closing = false;
    if (!this.stop) return;
    clearTimeout(this.recording);
    this.recording = undefined;
    this.stop = this.item = null;
    this.#stopRegion();
    this.#stopCompare();
    if (document.fullscreenElement) document.exitFullscreen();
    if (this.dialog.open) this.dialog.close();
    this.stage.show(null, null, null);
    this.similar.show(null);
    if (returns && this.left) this.left.list.focus?.(this.left.place);
    else if (!returns || document.activeElement === document.body) byId("main").focus({ preventScroll: true });
    this.left = null;
  }

  /** @param {Stop} stop */
  async #show(stop) {
    const changed = stop.item?.id !== this.item?.id || stop.local !== this.stop?.local;
    this.stop = stop;
    this.item = stop.item ?? null;
    if (stop.list.focus) this.left = stop;
    this.#stopRegion();
    if (!this.dialog.open) {
      this.dialog.showModal();
      this.#focusStage();
    }
    if (changed) this.body.scrollTo({ top: 0 });
    if (changed && byId("viewer-similar").contains(document.activeElement)) this.#focusStage();
    this.#tell();
    if (this.compare.isOpen) this.#startCompare();
    this.similar.show(this.item?.id ?? null);
    await this.#bringNeighbours(stop);
  }

  #focusStage() {
    byId("viewer-stage").focus({ preventScroll: true });
  }

  /** @param {Stop} stop */
  async #bringNeighbours(stop) {
    const { list, place } = stop;
    const own = stop.local?.picture ?? pictureOf(/** @type {Item} */ (stop.item));
    const [before, after] = [place > 0, place + 1 < list.length];
    byId("viewer-previous").hidden = !before;
    byId("viewer-next").hidden = !after;
    if (this.nearList !== list) this.near.clear();
    this.nearList = list;
    const near = [before && this.near.get(place - 1), after && this.near.get(place + 1)];
    const show = () => this.stage.show(...[near[0], own, near[1]].map((picture) => picture || null));
    show();
    const brought = await Promise.all([before && list.at(place - 1), after && list.at(place + 1)].map(quiet));
    if (this.stop !== stop) return;
    brought.forEach((item, at) => {
      near[at] = item && pictureOf(item);
    });
    this.near = new Map([[place, own]]);
    if (near[0]) this.near.set(place - 1, near[0]);
    if (near[1]) this.near.set(place + 1, near[1]);
    show();
  }

  /** @param {number} by */
  async #step(by) {
    const { stop } = this;
    const place = (stop?.place ?? 0) + by;
    if (!stop || stop.local || place < 0 || place >= stop.list.length) return;
    const item = await quiet(stop.list.at(place));
    if (this.stop !== stop) return;
    if (!item) return this.#bringNeighbours(stop);
    this.#show({ ...stop, place, item });
    clearTimeout(this.recording);
    this.recording = setTimeout(() => this.#recordNow(), RECORD_MS);
  }

  /** Let the address name the picture that arrows have led to; browsers take no hundred addresses a second. */
  #recordNow() {
    if (this.recording === undefined || !this.stop || !this.item) return;
    clearTimeout(this.recording);
    this.recording = undefined;
    this.ways.record(this.item.id, { replace: true, mark: trail.instead(this.stop) });
  }

  #tell() {
    const { stop, item } = this;
    const local = stop?.local;
    const place = stop && stop.list.length > 1 ? placeIn(stop) : "";
    byId("viewer-place").textContent = place;
    byId("viewer-back").hidden = trail.depth() < 2;
    byId("viewer-original").hidden = !item || !this.ways.originals();
    if (item) byId("viewer-original").href = `v1/items/${item.id}/original`;
    for (const name of ["search", "copy", "select"]) byId(`viewer-${name}`).hidden = !item;
    byId("viewer-region").hidden = Boolean(local && !local.file);
    byId("viewer-compared").hidden = this.#choices().length === 0;
    if (item) this.facts.show(item, stop?.from ? nameOf(stop.from) : this.ways.queryName());
    else this.facts.showName(local?.name ?? "");
    announce([place, item ? nameOf(item) : local?.name].filter(Boolean).join(", "));
    this.#showSelected();
    this.#showMark();
  }

  /** Show how the picture is marked as a hit, where it can be. */
  #showMark() {
    const { item, stop } = this;
    const { marks } = this.ways;
    const query = item && marks.takes(stop?.query, item) ? stop?.query : undefined;
    byId("viewer-marks").hidden = !query;
    const more = item && query ? marks.of(query, item) : null;
    byId("viewer-more").setAttribute("aria-pressed", String(more === true));
    byId("viewer-less").setAttribute("aria-pressed", String(more === false));
  }

  /** @param {boolean} more or less like the picture */
  #mark(more) {
    if (this.item && this.stop?.query) this.ways.marks.toggle(this.stop.query, this.item, more);
  }

  #showSelected() {
    const chosen = this.item !== null && this.selection.has(this.item.id);
    const { size } = this.selection;
    const button = byId("viewer-select");
    button.setAttribute("aria-pressed", String(chosen));
    button.title = size ? `Select (x): ${size.toLocaleString("en")} selected` : "Select (x)";
  }

  // Compare

  /** @returns {import("./compare.js").Choice[]} what the picture can be compared with */
  #choices() {
    const { item, stop } = this;
    if (!item) return [];
    const query = this.ways.query();
    const others = [...(stop?.from ? [stop.from] : []), ...this.selection.items];
    const choices = [
      ...(query && !stop?.from ? [query] : []),
      ...others.map((other) => ({ name: nameOf(other), picture: pictureOf(other) })),
      ...(query && stop?.from ? [query] : []),
    ];
    const keys = choices.map(({ picture }) => picture.key);
    return choices.filter(({ picture }, at) => picture.key !== `${item.id}` && keys.indexOf(picture.key) === at);
  }

  #toggleCompare() {
    if (this.compare.isOpen) this.#stopCompare();
    else this.#startCompare();
  }

  #startCompare() {
    const choices = this.#choices();
    if (!this.item || choices.length === 0) return this.#stopCompare();
    this.#stopRegion();
    this.dialog.classList.add("comparing");
    byId("viewer-compared").setAttribute("aria-pressed", "true");
    this.compare.show(choices, { name: nameOf(this.item), picture: pictureOf(this.item) });
  }

  #stopCompare() {
    if (this.compare.isOpen) this.compare.close();
    this.dialog.classList.remove("comparing");
    byId("viewer-compared").setAttribute("aria-pressed", "false");
  }

  // Region

  #toggleRegion() {
    if (this.region.isOpen) this.#stopRegion();
    else this.#startRegion();
  }

  #startRegion() {
    const { frame } = this.stage;
    if (!frame.ratio) return;
    this.#stopCompare();
    this.stage.fit();
    this.body.scrollTo({ top: 0 });
    this.dialog.classList.add("drawing");
    byId("viewer-region").setAttribute("aria-pressed", "true");
    const query = this.ways.query();
    this.region.open(frame.element, query?.picture.key === frame.picture?.key ? (query?.box ?? null) : null);
  }

  #stopRegion() {
    if (this.region.isOpen) {
      const held = this.region.element.contains(document.activeElement);
      this.region.close();
      if (held) this.#focusStage();
    }
    this.dialog.classList.remove("drawing");
    byId("viewer-region").setAttribute("aria-pressed", "false");
  }

  async #searchRegion() {
    const { item, stop } = this;
    const box = /** @type {Box} */ (this.region.box.map((side) => Number(side.toFixed(4))));
    if (item) return this.ways.searchRegion(item.id, box);
    const file = stop?.local?.file;
    if (!file) return;
    try {
      this.ways.searchCrop(await crop(file, box), file, box);
    } catch {
      say("This browser cannot cut out the region.");
    }
  }

  // Keys

  /** @param {KeyboardEvent} event */
  #key(event) {
    const target = /** @type {Element} */ (event.target);
    if (!this.dialog.open || document.querySelectorAll("dialog[open]").length > 1) return;
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape") this.#escape(() => this.close());
    else if (target.closest("select, input, #viewer-similar")) return;
    else if ((event.key.length > 1 || keysAreOn()) && this.stage.key(event)) this.body.scrollTo({ top: 0 });
    else if (event.key === "ArrowLeft" || event.key === "ArrowRight") this.#step(event.key === "ArrowLeft" ? -1 : 1);
    else if (!event.shiftKey && this.#single(event.key)) this.body.scrollTo({ top: 0 });
    else return;
    event.preventDefault();
  }

  /**
   * @param {string} key
   * @returns {boolean} whether it does something
   */
  #single(key) {
    /** @type {Record<string, string>} */
    const buttons = { f: "screen", x: "select", c: "compared", r: "region", m: "more", l: "less" };
    const button = Object.hasOwn(buttons, key) && keysAreOn() ? byId(`viewer-${buttons[key]}`) : null;
    if (button?.checkVisibility()) button.click();
    return button !== null;
  }

  /** @param {() => void} leave if nothing less is left */
  #escape(leave) {
    if (document.fullscreenElement) document.exitFullscreen();
    else if (this.region.isOpen) this.#stopRegion();
    else if (this.compare.isOpen) this.#stopCompare();
    else leave();
  }
}

/** @returns {boolean} whether single letters and signs are keys */
function keysAreOn() {
  return byId("single-keys").checked;
}

/**
 * @param {Stop} stop
 * @returns {string} for example "4 of 50+"
 */
function placeIn({ list, place }) {
  const [own, all] = [place + 1, list.length - Number(Boolean(list.grows))].map((count) => count.toLocaleString("en"));
  return `${own} of ${all}${list.grows ? "+" : ""}`;
}

/**
 * @param {number} id
 * @returns {Item} of which the address knows no more
 */
function unknown(id) {
  return { id, path: "", root: "", relative: `picture ${id}`, label: null };
}

/** @param {Box} box that is drawn */
function showBox(box) {
  byId("region-text").textContent = described(box);
}

/**
 * @param {Item | false | undefined | Promise<Item | undefined>} promised
 * @returns {Promise<Item | null>} null if it does not come
 */
async function quiet(promised) {
  return Promise.resolve(promised).then(
    (item) => item || null,
    () => null,
  );
}

/**
 * @param {Item} item
 * @returns {import("./frame.js").Picture}
 */
export function pictureOf({ id, label, relative, width, height }) {
  return { key: `${id}`, id, alt: [label, relative].filter(Boolean).join(", "), width, height };
}
