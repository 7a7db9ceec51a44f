/** A tile: the picture, and its name, label and similarity for those who point at it or reach it by key. */

import { icon, make } from "../dom.js";
import { renditions, watched } from "../thumbnails.js";

/**
 * A picture of the index, or a hit of a search.
 * @typedef {object} Item
 * @property {number} id
 * @property {string} path
 * @property {string} root
 * @property {string} relative
 * @property {string | null} label
 * @property {number | null} [width] upright, in pixels; null: not known
 * @property {number | null} [height]
 * @property {number} [bytes]
 * @property {string} [modified]
 * @property {number} [rank] of a hit, and so the others
 * @property {number} [distance]
 * @property {number} [similarity]
 * @property {number} [near_duplicates]
 * @property {string} [sha256]
 *
 * @typedef {object} Actions
 * @property {(id: number) => string} address of the search from an item
 * @property {(place: number) => void} open
 * @property {(place: number, item: Item) => void} [select]
 * @property {(id: number) => boolean} [isSelected]
 * @property {import("../rate/marks.js").Marks} [marks]
 * @property {(error: unknown) => void} [fail] a part of the pictures did not come
 */

/**
 * @param {number} place
 * @param {number} count
 * @returns {HTMLLIElement} without a picture yet
 */
export function makeTile(place, count) {
  const tile = make("li", { className: "tile" }, make("a", { className: "tile-link", draggable: false, tabIndex: -1 }));
  tile.dataset.place = String(place);
  tile.ariaPosInSet = String(place + 1);
  if (Number.isFinite(count)) tile.ariaSetSize = String(count);
  return tile;
}

/**
 * @param {HTMLElement} tile
 * @param {Item | null} item null: it has left the index
 * @param {import("../api.js").Api} api
 * @param {Actions} actions
 */
export function fillTile(tile, item, api, actions) {
  const link = /** @type {HTMLAnchorElement} */ (tile.firstElementChild);
  if (!item) {
    link.ariaLabel = "No longer in the index";
    return;
  }
  Object.assign(tile.dataset, { id: item.id, path: item.relative, label: item.label ?? "" });
  if (item.distance !== undefined) tile.dataset.distance = item.distance.toFixed(4);
  link.href = actions.address(item.id);
  const image = make("img", { className: "waiting", decoding: "async", draggable: false, alt: described(item) });
  watched(api, image, item.id);
  link.replaceChildren(image, facts(item));
  if (actions.select) tile.append(selector(item, actions));
}

/**
 * Show how a hit is marked, and let it be marked.
 * @param {HTMLElement} tile
 * @param {Item} item
 * @param {string} query the hash of what it is a hit of
 * @param {import("../rate/marks.js").Marks} marks
 */
export function showMark(tile, item, query, marks) {
  const buttons = tile.querySelector(".tile-marks") ?? tile.appendChild(markButtons(item));
  const more = marks.of(query, item);
  for (const button of buttons.children) button.ariaPressed = String(more === (button.className === "tile-more"));
}

/**
 * Let the picture have as many pixels as the screen shows of it.
 * @param {HTMLElement} tile
 * @param {Item} item
 * @param {{width: number, height: number}} box
 */
export function fitPicture(tile, item, box) {
  const image = tile.querySelector("img");
  if (!image || image.dataset.given) return;
  const aspect = item.width && item.height ? item.width / item.height : box.width / box.height;
  // What is cut at the edges of a very wide or high picture is shown larger than its tile.
  image.sizes = `${Math.ceil(Math.max(box.width, box.height * aspect))}px`;
  if (!image.srcset) image.srcset = renditions(item.id, aspect, item);
}

/**
 * @param {Item} item
 * @returns {string} its alternative text
 */
export function described({ label, relative, distance, similarity, near_duplicates }) {
  const figures =
    distance === undefined || similarity === undefined
      ? ""
      : `distance ${distance.toFixed(4)}, similarity ${similarity.toFixed(4)}`;
  return [label, relative, figures, near_duplicates ? hidden(near_duplicates) : ""].filter(Boolean).join(", ");
}

/** @param {number} count */
function hidden(count) {
  return `${count} near-duplicate${count === 1 ? "" : "s"} hidden`;
}

/**
 * The same for the eye; the picture's alternative text has already said it.
 * @param {Item} item
 * @returns {HTMLElement}
 */
function facts({ relative, label, similarity, distance, near_duplicates }) {
  const box = make("span", { className: "tile-facts" }, make("bdi", { className: "path" }, relative));
  if (label !== null) box.append(make("bdi", { className: "label" }, label));
  if (similarity !== undefined && distance !== undefined) {
    const filled = make("span", { className: "filled" });
    filled.style.width = `${100 * Math.max(0, Math.min(1, similarity))}%`;
    const words = make("span", { className: "similarity" }, similarity.toFixed(2));
    box.append(make("span", { className: "likeness" }, make("span", { className: "meter" }, filled), words));
  }
  if (near_duplicates) box.append(make("span", { className: "alike" }, hidden(near_duplicates)));
  box.ariaHidden = "true";
  return box;
}

/**
 * @param {Item} item
 * @param {Actions} actions
 * @returns {HTMLButtonElement}
 */
function selector(item, actions) {
  const button = make("button", { type: "button", className: "tile-select", tabIndex: -1 }, icon("check"));
  button.ariaLabel = `Select ${item.relative}`;
  button.ariaPressed = String(actions.isSelected?.(item.id) ?? false);
  return button;
}

/**
 * @param {Item} item
 * @returns {HTMLElement}
 */
function markButtons({ relative }) {
  const [more, less] = ["more", "less"].map((name) =>
    make("button", { type: "button", className: `tile-${name}`, tabIndex: -1 }, icon(name)),
  );
  more.ariaLabel = `More like ${relative}`;
  less.ariaLabel = `Less like ${relative}`;
  more.title = "More like this (m)";
  less.title = "Less like this (l)";
  return make("span", { className: "tile-marks" }, more, less);
}
