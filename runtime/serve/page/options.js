/** The chips: the order of the wall, and the options of the search; every change is reported at once. */

import { byId, icon, make } from "./dom.js";
import { LabelFilter } from "./labels.js";
import { changedOptions, INITIAL, isSearch, K, NEAR_DUPLICATE } from "./state.js";

const NUMBERS = [10, 20, 50, 100, 200, 500, 1000, 3000];

export class Options {
  /** @param {(changes: Partial<import("./state.js").State>) => void} changed */
  constructor(changed) {
    this.form = byId("options");
    this.labels = new LabelFilter((labels) => changed({ labels }));
    this.unique = NEAR_DUPLICATE;
    for (const radio of this.form.elements.direction) {
      radio.addEventListener("change", () =>
        changed(radio.value === "farthest" ? { farthest: true, maxDistance: null } : { farthest: false }),
      );
    }
    for (const radio of this.form.elements.order) {
      // A click on the order that is chosen already shuffles again.
      radio.addEventListener("click", () =>
        changed({ order: radio.value, ...(radio.value === "shuffle" ? { seed: anySeed() } : {}) }),
      );
    }
    byId("folder").addEventListener("click", () => changed({ folder: "" }));
    byId("unique").addEventListener("change", () => changed({ unique: byId("unique").checked ? this.unique : null }));
    /** @type {any[]} */
    this.controls = [...this.form.querySelectorAll("[data-option]")];
    for (const control of this.controls) {
      control.addEventListener("change", () => {
        if (control.reportValidity()) changed({ [control.dataset.option]: valueOf(control) });
      });
    }
    byId("reset").addEventListener("click", () => changed({ ...INITIAL }));
    this.form.addEventListener("submit", (/** @type {Event} */ event) => event.preventDefault());
    this.more = byId("more");
    this.more.addEventListener("beforetoggle", () => this.#placeMore());
  }

  /**
   * @param {import("./state.js").State} state
   * @param {{labels: Record<string, number>, labels_total: number | null, limits: {max_k: number},
   *   supports: {farthest: boolean, exact: boolean, orders: string[]}}} info
   */
  know(state, info) {
    const numbers = new Set([...NUMBERS.filter((k) => k <= info.limits.max_k), state.k]);
    const sorted = [...numbers].sort((one, other) => one - other);
    byId("k").replaceChildren(...sorted.map((k) => make("option", { value: String(k) }, numberInWords(k))));
    this.labels.know(info.labels, info.labels_total);
    byId("directions").hidden = !info.supports.farthest;
    byId("exact").closest("label").hidden = !info.supports.exact;
    const { orders } = info.supports;
    for (const radio of this.form.elements.order) radio.closest("label").hidden = !orders.includes(radio.value);
    byId("orders").hidden = orders.length < 2;
    this.show(state);
  }

  /**
   * @param {import("./state.js").State} state
   * @param {boolean} [searching] or will, with a picture that is on its way
   */
  show(state, searching = isSearch(state)) {
    this.form.dataset.mode = searching ? "search" : "wall";
    this.form.elements.order.value = state.order;
    byId("folder").hidden = !state.folder;
    byId("folder").replaceChildren(make("span", {}, state.folder), icon("close"));
    byId("folder").ariaLabel = `Leave the folder ${state.folder}`;
    this.unique = state.unique ?? NEAR_DUPLICATE;
    this.form.elements.direction.value = state.farthest ? "farthest" : "nearest";
    byId("unique").checked = state.unique !== null;
    const set = changedOptions(state).filter((name) => searching || name === "labels");
    const inMore = this.controls.filter((control) => set.includes(control.dataset.option)).length;
    byId("more-button").classList.toggle("set", inMore > 0);
    for (const control of this.controls) {
      const name = /** @type {keyof typeof INITIAL} */ (control.dataset.option);
      if (control.type === "checkbox") control.checked = state[name];
      else control.value = state[name] ?? "";
    }
    byId("max-distance").disabled = state.farthest; // of the farthest there is no largest distance
    this.labels.show(state.labels);
    byId("reset").hidden = set.length === 0;
  }

  /** Begin with the labels. */
  focusLabels() {
    byId("label-search").focus();
  }

  /** Below its button, as far as there is room. */
  #placeMore() {
    const { left, bottom } = byId("more-button").getBoundingClientRect();
    this.more.style.left = `${Math.max(8, Math.min(left, document.documentElement.clientWidth - 312))}px`;
    this.more.style.top = `${bottom + scrollY + 6}px`;
  }
}

/** @param {number} k */
function numberInWords(k) {
  return k === K ? "as you scroll" : k.toLocaleString("en");
}

/** @returns {number} */
function anySeed() {
  return 1 + Math.floor(Math.random() * 1e6);
}

/**
 * @param {any} control a checkbox, a number or a choice of numbers
 * @returns {boolean | number | null}
 */
function valueOf(control) {
  if (control.type === "checkbox") return control.checked;
  return control.value === "" ? null : Number(control.value);
}
