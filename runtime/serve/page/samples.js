/** Some pictures of the index to begin with: those nearest to a random direction, of different labels. */

import { byId, make } from "./dom.js";
import { searchBody } from "./state.js";
import { thumbnail } from "./thumbnails.js";

const SHOWN = 12;
const LOOKED_AT = 200;
const SIDE = 128;

/**
 * @param {import("./api.js").Api} api
 * @param {any} info
 * @param {(id: number) => string} address
 * @param {(id: number) => void} search
 * @param {AbortSignal} signal
 */
export async function showSamples(api, info, address, search, signal) {
  const hits = await randomHits(api, info, signal);
  const items = variety(hits).map((hit) => {
    const name = [hit.label, hit.relative].filter(Boolean).join(", ");
    const link = make(
      "a",
      { href: address(hit.id), title: name, draggable: false },
      thumbnail(api, hit.id, name, SIDE),
    );
    link.addEventListener("click", (/** @type {MouseEvent} */ event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      search(hit.id);
    });
    return make("li", {}, link);
  });
  byId("sample-list").replaceChildren(...items);
  byId("samples").hidden = items.length === 0;
}

/**
 * @param {import("./api.js").Api} api
 * @param {any} info
 * @param {AbortSignal} signal
 * @returns {Promise<import("./grid.js").Hit[]>}
 */
async function randomHits(api, info, signal) {
  const k = Math.min(LOOKED_AT, info.items, info.limits.max_k);
  const body = searchBody({ vector: randomVector(info.model.dim), model: info.model.sha256 });
  const answer = await api.json(`v1/search?${new URLSearchParams({ k: String(k) })}`, { method: "POST", body, signal });
  return answer.results[0].hits;
}

/**
 * @param {import("./grid.js").Hit[]} hits
 * @returns {import("./grid.js").Hit[]} one of each label first
 */
function variety(hits) {
  const seen = new Set();
  const first = hits.filter((hit) => !seen.has(hit.label) && seen.add(hit.label));
  return [...first, ...hits.filter((hit) => !first.includes(hit))].slice(0, SHOWN);
}

/**
 * @param {number} dim
 * @returns {string} a vector of unit length, its float32 numbers in base64
 */
function randomVector(dim) {
  const numbers = Array.from({ length: dim }, normal);
  const norm = Math.hypot(...numbers);
  const view = new DataView(new ArrayBuffer(4 * dim));
  numbers.forEach((number, place) => view.setFloat32(4 * place, number / norm, true));
  return btoa(String.fromCharCode(...new Uint8Array(view.buffer)));
}

/** @returns {number} normally distributed (Box and Muller) */
function normal() {
  return Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());
}
