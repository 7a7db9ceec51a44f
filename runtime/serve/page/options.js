/** The form of the search's options; every change is reported at once. */

import { byId, make } from "./dom.js";
import { LabelFilter } from "./labels.js";
import { changedOptions, INITIAL, NEAR_DUPLICATE, restrictions } from "./state.js";

const NUMBERS = [10, 20, 50, 100, 200, 500, 1000];

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
    this.#toggle();
  }

  /**
   * @param {import("./state.js").State} state
   * @param {{labels: Record<string, number>, labels_total: number | null, limits: {max_k: number},
   *   supports: {farthest: boolean, exact: boolean}}} info
   */
  know(state, info) {
    const numbers = new Set([...NUMBERS.filter((k) => k <= info.limits.max_k), state.k]);
    const sorted = [...numbers].sort((one, other) => one - other);
    byId("k").replaceChildren(...sorted.map((k) => make("option", { value: String(k) }, k.toLocaleString("en"))));
    this.labels.know(info.labels, info.labels_total);
    byId("directions").hidden = !info.supports.farthest;
    byId("exact").closest("label").hidden = !info.supports.exact;
    this.show(state);
  }

  /** @param {import("./state.js").State} state */
  show(state) {
    this.unique = state.unique ?? NEAR_DUPLICATE;
    this.form.elements.direction.value = state.farthest ? "farthest" : "nearest";
    byId("unique").checked = state.unique !== null;
    const set = changedOptions(state);
    for (const control of this.controls) {
      const name = /** @type {keyof typeof INITIAL} */ (control.dataset.option);
      if (control.type === "checkbox") control.checked = state[name];
      else control.value = state[name] ?? "";
      if (set.includes(name) && byId("more").contains(control)) byId("more").open = true;
    }
    byId("max-distance").disabled = state.farthest; // of the farthest there is no largest distance
    this.labels.show(state.labels);
    const count = restrictions(state).length;
    byId("options-set").textContent = count ? `(${count})` : "";
    byId("reset").hidden = set.length === 0;
  }

  /** Open the form where it is folded away, and begin with the labels. */
  focusLabels() {
    this.#open(true);
    byId("label-search").focus();
  }

  #toggle() {
    byId("toggle-options").addEventListener("click", () => this.#open(!this.form.classList.contains("open")));
  }

  /** @param {boolean} open */
  #open(open) {
    this.form.classList.toggle("open", open);
    byId("toggle-options").setAttribute("aria-expanded", String(open));
  }
}

/**
 * @param {any} control a checkbox, a number or a choice of numbers
 * @returns {boolean | number | null}
 */
function valueOf(control) {
  if (control.type === "checkbox") return control.checked;
  return control.value === "" ? null : Number(control.value);
}
