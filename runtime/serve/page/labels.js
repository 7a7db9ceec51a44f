/** The filter by label: a list to search in, made for ten thousand labels, of which several may be chosen. */

import { byId, icon, make } from "./dom.js";

const SHOWN = 100;

export class LabelFilter {
  /** @param {(labels: string[]) => void} changed */
  constructor(changed) {
    this.changed = changed;
    this.input = byId("label-search");
    this.list = byId("label-list");
    this.remark = byId("label-remark");
    this.found = byId("found");
    this.chips = byId("label-chips");
    /** @type {[string, number, string][]} label, how many pictures have it, and how it is compared */
    this.known = [];
    /** @type {string[]} */
    this.chosen = [];
    this.active = -1;
    this.input.addEventListener("input", () => this.#open());
    this.input.addEventListener("click", () => this.#open());
    this.input.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => this.#key(event));
    this.input.addEventListener("blur", () => this.#close());
    // Before the field loses the focus, which would close the list.
    this.list.addEventListener("pointerdown", (/** @type {PointerEvent} */ event) => event.preventDefault());
    this.list.addEventListener("click", (/** @type {any} */ event) =>
      this.#toggle(event.target.closest("[role=option]")),
    );
  }

  /**
   * @param {Record<string, number>} labels with how many pictures have them: all, or the most frequent ones
   * @param {number | null} total null: too many to list
   */
  know(labels, total) {
    const sorted = Object.entries(labels).sort(([one], [other]) => one.localeCompare(other, "en", { numeric: true }));
    this.known = sorted.map(([label, count]) => [label, count, comparable(label)]);
    this.input.disabled = sorted.length === 0;
    if (total === null) this.input.placeholder = "Too many labels to list";
    else this.input.placeholder = total ? `All ${total.toLocaleString("en")} labels` : "No labels in this index";
  }

  /** @param {string[]} labels */
  show(labels) {
    this.chosen = labels;
    this.chips.replaceChildren(...labels.map((label) => this.#chip(label)));
    this.chips.hidden = labels.length === 0;
  }

  /**
   * @param {string} label
   * @returns {HTMLLIElement}
   */
  #chip(label) {
    const button = make(
      "button",
      { type: "button", className: "chip removable", title: `Remove ${label}` },
      make("span", {}, label),
      icon("close"),
    );
    button.setAttribute("aria-label", `Remove the label ${label}`);
    button.addEventListener("click", (/** @type {MouseEvent} */ event) => {
      this.#choose(label);
      const byKey = event.detail === 0;
      if (byKey) this.input.focus();
    });
    return make("li", {}, button);
  }

  #open() {
    const matches = this.#matches();
    const shown = matches.slice(0, SHOWN);
    this.list.replaceChildren(...shown.map(([label, count], place) => this.#option(label, count, place)));
    this.remark.textContent = remarkOn(matches.length, shown.length);
    this.list.hidden = shown.length === 0;
    this.remark.hidden = !this.remark.textContent;
    this.found.hidden = false;
    this.found.style.setProperty("--left", `${Math.max(0, this.input.getBoundingClientRect().left)}px`);
    this.input.setAttribute("aria-expanded", String(shown.length > 0));
    this.#activate(this.input.value && shown.length ? 0 : -1);
  }

  #close() {
    this.found.hidden = this.list.hidden = true;
    this.input.setAttribute("aria-expanded", "false");
    this.#activate(-1);
  }

  /** @returns {[string, number, string][]} what begins with the text before what holds it elsewhere */
  #matches() {
    const text = comparable(this.input.value.trim());
    const holding = this.known.filter(([, , name]) => name.includes(text));
    return [
      ...holding.filter(([, , name]) => name.startsWith(text)),
      ...holding.filter(([, , name]) => !name.startsWith(text)),
    ];
  }

  /**
   * @param {string} label
   * @param {number} count
   * @param {number} place
   * @returns {HTMLLIElement}
   */
  #option(label, count, place) {
    const option = make(
      "li",
      { id: `label-${place}`, title: label },
      make("span", { className: "name" }, label),
      make("span", { className: "count" }, count.toLocaleString("en")),
    );
    option.setAttribute("role", "option");
    option.setAttribute("aria-selected", String(this.chosen.includes(label)));
    option.dataset.label = label;
    return option;
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    const options = this.list.children;
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      if (this.list.hidden) this.#open();
      const step = event.key === "ArrowDown" ? 1 : -1;
      this.#activate(Math.max(0, Math.min(options.length - 1, this.active + step)));
    } else if (event.key === "Enter") this.#toggle(options[this.active]);
    else if (event.key === "Escape" && !this.list.hidden) this.#close();
    else if (event.key === "Backspace" && !this.input.value && this.chosen.length) this.#choose(this.chosen.at(-1));
    else return;
    event.preventDefault();
  }

  /** @param {number} place */
  #activate(place) {
    this.list.children[this.active]?.classList.remove("active");
    this.active = place;
    const option = this.list.children[place];
    option?.classList.add("active");
    option?.scrollIntoView({ block: "nearest" });
    if (option) this.input.setAttribute("aria-activedescendant", option.id);
    else this.input.removeAttribute("aria-activedescendant");
  }

  /** @param {HTMLElement | undefined | null} option */
  #toggle(option) {
    if (!option || this.list.hidden) return;
    this.input.value = "";
    this.#choose(option.dataset.label);
    this.#close();
  }

  /** @param {string | undefined} label is chosen, or no longer chosen */
  #choose(label) {
    if (label === undefined) return;
    const without = this.chosen.filter((other) => other !== label);
    this.show(without.length < this.chosen.length ? without : [...this.chosen, label]);
    this.changed(this.chosen);
  }
}

/** @param {string} text */
function comparable(text) {
  return text.normalize("NFKD").replace(/\p{M}/gu, "").toLowerCase();
}

/**
 * @param {number} matching
 * @param {number} shown
 * @returns {string}
 */
function remarkOn(matching, shown) {
  if (matching === 0) return "No label holds this text.";
  return matching > shown ? `${(matching - shown).toLocaleString("en")} more: type to find them.` : "";
}
