/** The form of the search's options; whatever is changed there is told at once. */

import { byId, make } from "./dom.js";
import { LabelFilter } from "./labels.js";
import { INITIAL, NEAR_DUPLICATE, restrictions } from "./state.js";

const NUMBERS = [10, 20, 50, 100, 200, 500, 1000];

export class Options {
  /** @param {(changes: Partial<import("./state.js").State>) => void} changed */
  constructor(changed) {
    this.form = byId("options");
    this.labels = new LabelFilter((labels) => changed({ labels }));
    this.unique = NEAR_DUPLICATE;
    const on = (/** @type {string} */ id, /** @type {(control: any) => Partial<import("./state.js").State>} */ read) =>
      byId(id).addEventListener("change", (/** @type {Event} */ event) => changed(read(event.target)));
    for (const radio of this.form.elements.direction) {
      radio.addEventListener("change", () => changed(radio.value === "farthest" ? { farthest: true, maxDistance: null } : { farthest: false }));
    }
    on("k", (control) => ({ k: Number(control.value) }));
    on("unique", (control) => ({ unique: control.checked ? this.unique : null }));
    on("exact", (control) => ({ exact: control.checked }));
    byId("max-distance").addEventListener("change", (/** @type {Event} */ event) => {
      const control = /** @type {HTMLInputElement} */ (event.target);
      if (control.reportValidity()) changed({ maxDistance: control.value ? control.valueAsNumber : null });
    });
    byId("reset").addEventListener("click", () => changed({ ...INITIAL }));
    this.form.addEventListener("submit", (/** @type {Event} */ event) => event.preventDefault());
    this.#toggle();
  }

  /**
   * @param {import("./state.js").State} state
   * @param {{labels: Record<string, number>, labels_total: number, limits: {max_k: number}}} info
   */
  know(state, info) {
    const numbers = new Set([...NUMBERS.filter((k) => k <= info.limits.max_k), state.k]);
    const sorted = [...numbers].sort((one, other) => one - other);
    byId("k").replaceChildren(...sorted.map((k) => make("option", { value: String(k) }, k.toLocaleString("en"))));
    this.labels.know(info.labels, info.labels_total);
    this.show(state);
  }

  /** @param {import("./state.js").State} state */
  show(state) {
    this.unique = state.unique ?? NEAR_DUPLICATE;
    this.form.elements.direction.value = state.farthest ? "farthest" : "nearest";
    byId("k").value = String(state.k);
    byId("unique").checked = state.unique !== null;
    byId("exact").checked = state.exact;
    byId("max-distance").value = state.maxDistance ?? "";
    byId("max-distance").disabled = state.farthest; // of the farthest there is no largest distance
    if (state.exact || state.maxDistance !== null) byId("more").open = true;
    this.labels.show(state.labels);
    const count = restrictions(state);
    byId("options-set").textContent = count ? `(${count})` : "";
    byId("reset").hidden = !differs(state);
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
 * @param {import("./state.js").State} state
 * @returns {boolean}
 */
export function differs(state) {
  return restrictions(state) > 0 || state.farthest || state.exact || !state.leaveOut || state.k !== INITIAL.k;
}

/**
 * @param {import("./state.js").State} state
 * @returns {string} the options in words
 */
export function inWords(state) {
  return [
    state.labels.length ? `${state.labels.length > 1 ? "labels" : "label"} ${state.labels.join(", ")}` : "",
    state.maxDistance === null ? "" : `at most ${state.maxDistance} away`,
    state.unique === null ? "" : "near-duplicates hidden",
  ]
    .filter(Boolean)
    .join(" · ");
}
