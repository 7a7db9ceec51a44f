/** What is known of the large picture, in words and figures. */

import { byId, fileSize, make, rows } from "../dom.js";

const REMEMBERED = 300;

/**
 * A hit, or a picture of the index; a field that is not known is undefined or null.
 * @typedef {object} Item
 * @property {number} id
 * @property {string} path
 * @property {string} root
 * @property {string} relative
 * @property {string | null} label
 * @property {number} [distance] from what was searched with
 * @property {number} [similarity]
 * @property {number | null} [bytes]
 * @property {string | null} [modified] RFC 3339
 * @property {number | null} [width]
 * @property {number | null} [height]
 * @property {string} [sha256]
 */

export class Facts {
  /** @param {import("../api.js").Api} api */
  constructor(api) {
    this.api = api;
    this.title = byId("viewer-title");
    this.label = byId("viewer-label");
    this.likeness = byId("viewer-likeness");
    this.list = byId("viewer-facts");
    /** @type {Map<number, Item>} what the server said of pictures */
    this.known = new Map();
    /** @type {Item | null} */
    this.item = null;
  }

  /**
   * Show what is known at once, and what the server knows when it has answered.
   * @param {Item} item
   * @param {string} origin what it is similar to
   */
  async show(item, origin) {
    this.item = item;
    this.#write({ ...item, ...this.known.get(item.id) }, origin);
    if (this.known.has(item.id)) return;
    const said = await this.api.json(`v1/items/${item.id}`).catch(() => null);
    if (!said) return;
    if (this.known.size >= REMEMBERED) this.known.clear();
    this.known.set(item.id, said);
    if (this.item !== item) return;
    Object.assign(item, { ...said, ...filled(item), path: said.path, relative: said.relative, root: said.root });
    this.#write({ ...item, label: said.label }, origin);
  }

  /** @param {string} name of a picture that is not in the index */
  showName(name) {
    this.item = null;
    this.title.textContent = this.title.title = name;
    this.label.hidden = true;
    this.likeness.replaceChildren();
    this.list.replaceChildren();
  }

  /**
   * @param {Item} item
   * @param {string} origin
   */
  #write(item, origin) {
    this.title.textContent = this.title.title = nameOf(item);
    this.label.textContent = item.label ?? "";
    this.label.hidden = item.label === null;
    this.likeness.replaceChildren(...likeness(item, origin));
    this.list.replaceChildren(...factsOf(item));
  }
}

/**
 * @param {Item} item
 * @returns {Partial<Item>} without what is not known
 */
function filled(item) {
  return Object.fromEntries(Object.entries(item).filter(([, value]) => value !== null && value !== undefined));
}

/**
 * @param {Item} item
 * @returns {HTMLElement[]} rows of a description list
 */
function factsOf(item) {
  /** @type {Record<string, string>} */
  const facts = { Path: item.relative, Folder: item.root };
  if (item.width && item.height) facts.Pixels = `${count(item.width)} × ${count(item.height)}`;
  if (typeof item.bytes === "number") facts.Size = fileSize(item.bytes);
  if (item.modified) facts.Modified = moment(item.modified);
  return rows(facts);
}

/**
 * @param {Item} item
 * @param {string} origin what it is similar to
 * @returns {Node[]} a bar and its figures; none where the picture does not come from a search
 */
function likeness(item, origin) {
  if (item.distance === undefined || item.similarity === undefined) return [];
  const fill = make("span");
  fill.style.width = `${Math.max(0, Math.min(1, item.similarity)) * 100}%`;
  const bar = make("span", { className: "likeness-bar" }, fill);
  bar.setAttribute("aria-hidden", "true");
  const similarity = make("strong", {}, `Similarity ${item.similarity.toFixed(4)}`);
  const rest = `distance ${item.distance.toFixed(4)}${origin ? ` · to ${origin}` : ""}`;
  return [bar, similarity, make("span", {}, rest)];
}

/** @param {Item} item */
export function nameOf(item) {
  return item.relative.split("/").pop() || item.relative;
}

/** @param {Item} item */
export function pathOf(item) {
  return `${item.root}/${item.relative}`;
}

/** @param {number} number */
function count(number) {
  return number.toLocaleString("en");
}

/** @param {string} text */
function moment(text) {
  const date = new Date(text);
  return Number.isNaN(date.getTime())
    ? text
    : date.toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" });
}
