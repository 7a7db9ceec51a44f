/** A group: its pictures side by side, the kept one first, and what is chosen of each. */

import { counted, fileSize, make, shortened } from "../dom.js";
import { renditions, watched } from "../thumbnails.js";
import { bytesOf } from "./choices.js";
import { date, difference, dimensions } from "./words.js";

/** Pictures of a group that are shown at first. */
const SHOWN = 24;
const WIDEST = 2.4;
const NARROWEST = 0.5;
const UNKNOWN = 4 / 3;

/**
 * @typedef {import("./choices.js").Group} Group
 * @typedef {import("./choices.js").Picture} Picture
 *
 * @typedef {object} Actions
 * @property {(group: Group, id: number, marked: boolean) => void} mark
 * @property {(group: Group, marked: boolean) => void} markOthers
 * @property {(group: Group, id: number) => void} keep
 * @property {(group: Group, id: number) => void} enlarge
 *
 * @typedef {object} View
 * @property {import("../api.js").Api} api
 * @property {Actions} actions
 * @property {() => import("./choices.js").Choices} choices
 * @property {number} height of the pictures, in CSS pixels
 */

/** What an element shows, for {@link refresh}. @type {WeakMap<Element, {group: Group, picture?: Picture}>} */
const shown = new WeakMap();

/**
 * @param {View} view
 * @param {Group} group
 * @param {number} number of the group, from 1
 * @returns {HTMLElement}
 */
export function groupElement(view, group, number) {
  const title = make("h3", { id: `group-${number}` }, `${number.toLocaleString("en")}. `, shortened(group.kept.path.split("/").at(-1) ?? "", 60));
  const saved = `${counted(group.others.length, "near-duplicate")}, ${fileSize(bytesOf(group.others))}`;
  const button = make("button", { type: "button", className: "mark-others" });
  button.addEventListener("click", () => {
    view.actions.markOthers(group, button.dataset.all !== "1");
    refresh(view, element);
  });
  const list = make("ul", { className: "twins" });
  const pictures = [group.kept, ...group.others];
  list.append(...pictures.slice(0, SHOWN).map((picture) => twin(view, group, picture)));
  const head = make("div", { className: "group-head" }, title, make("p", { className: "hint" }, saved), button);
  const width = pictures.length < 3 ? "pair" : pictures.length < 5 ? "few" : "many";
  const element = make("section", { className: `group ${width}` }, head, list);
  element.setAttribute("aria-labelledby", title.id);
  if (pictures.length > SHOWN) element.append(rest(view, group, pictures.slice(SHOWN), list));
  shown.set(element, { group });
  refresh(view, element);
  return element;
}

/**
 * Show what is chosen now.
 * @param {View} view
 * @param {Element} element of a group
 */
export function refresh(view, element) {
  const { group } = /** @type {{group: Group}} */ (shown.get(element));
  const choices = view.choices();
  const all = group.others.length === choices.marked(group).length;
  const button = /** @type {HTMLButtonElement} */ (element.querySelector(".mark-others"));
  button.textContent = all ? "Unmark" : group.others.length === 1 ? "Mark the other" : "Mark the others";
  button.dataset.all = all ? "1" : "0";
  for (const item of element.querySelectorAll(".twin")) refreshTwin(choices, item);
}

/**
 * @param {Element | null} item a picture's element
 * @returns {{group: Group, picture: Picture} | undefined}
 */
export function shownBy(item) {
  return item ? /** @type {any} */ (shown.get(item)) : undefined;
}

/**
 * @param {import("./choices.js").Choices} choices
 * @param {Element} item
 */
function refreshTwin(choices, item) {
  const { group, picture } = /** @type {{group: Group, picture: Picture}} */ (shown.get(item));
  const kept = choices.kept(group) === picture.id;
  const marked = choices.isMarked(group, picture.id);
  item.classList.toggle("kept", kept);
  item.classList.toggle("is-marked", marked);
  const [badge, check, keep] = ["badge", "check", "keep"].map(
    (name) => /** @type {HTMLElement} */ (item.querySelector(`.${name}`)),
  );
  badge.hidden = !kept;
  check.hidden = keep.hidden = kept;
  /** @type {HTMLInputElement} */ (check.firstElementChild).checked = marked;
}

/**
 * @param {View} view
 * @param {Group} group
 * @param {Picture} picture
 */
function twin(view, group, picture) {
  const { id, path } = picture;
  const slash = path.lastIndexOf("/") + 1;
  const name = make("p", { className: "twin-name", title: path }, make("bdi", {}, shortened(path.slice(slash), 80)));
  const fact = (/** @type {string} */ text) => make("p", { className: "hint twin-name" }, make("bdi", {}, text));
  const box = make("input", { type: "checkbox" });
  box.setAttribute("aria-label", `Mark ${path}`);
  const check = make("label", { className: "check" }, box, make("span", {}, "Mark"));
  const keep = make("button", { type: "button", className: "quiet keep" }, "Keep");
  keep.setAttribute("aria-label", `Keep ${path}`);
  const choice = make("div", { className: "twin-choice" }, make("strong", { className: "badge" }, "Kept"), check, keep);
  const item = make("li", { className: "twin" });
  item.append(pictureButton(view, group, picture, item), name, fact(path.slice(0, slash)));
  item.append(fact(dimensions(picture)), fact(date(picture)), fact(difference(picture)), choice);
  const after = (/** @type {() => void} */ action) => () => {
    action();
    refresh(view, item.closest(".group"));
  };
  box.addEventListener("change", after(() => view.actions.mark(group, id, box.checked)));
  keep.addEventListener("click", after(() => view.actions.keep(group, id)));
  keep.addEventListener("click", () => item.querySelector(".twin-picture").focus());
  shown.set(item, { group, picture });
  return item;
}

/**
 * @param {View} view
 * @param {Group} group
 * @param {Picture} picture
 * @param {HTMLElement} item
 */
function pictureButton(view, group, picture, item) {
  const { id, path, width, height } = picture;
  const image = make("img", { alt: "", decoding: "async", draggable: false });
  const button = make("button", { type: "button", className: "twin-picture", title: "Enlarge" }, image);
  button.setAttribute("aria-label", `Enlarge ${path}`);
  const frame = (/** @type {number} */ aspect) => {
    const limited = Math.min(WIDEST, Math.max(NARROWEST, aspect));
    button.style.aspectRatio = String(limited);
    item.style.setProperty("--aspect", String(limited));
    image.sizes = `${Math.round(view.height * limited)}px`;
  };
  const known = width && height ? width / height : 0;
  frame(known || UNKNOWN);
  if (!known) image.addEventListener("load", () => frame(image.naturalWidth / image.naturalHeight), { once: true });
  watched(view.api, image, id);
  image.srcset = renditions(id, known || 1, picture);
  button.addEventListener("click", () => view.actions.enlarge(group, id));
  return button;
}

/**
 * @param {View} view
 * @param {Group} group
 * @param {Picture[]} pictures
 * @param {HTMLElement} list
 */
function rest(view, group, pictures, list) {
  const button = make("button", { type: "button" }, `Show ${counted(pictures.length, "more picture")}`);
  button.addEventListener("click", () => {
    const items = pictures.map((picture) => twin(view, group, picture));
    list.append(...items);
    button.remove();
    refresh(view, /** @type {Element} */ (list.closest(".group")));
    items[0].querySelector(".twin-picture").focus();
  });
  return button;
}
