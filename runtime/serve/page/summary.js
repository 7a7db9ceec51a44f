/** What the index is: its name and size in the header, the rest in a dialog. */

import { byId, counted, rows } from "./dom.js";

/**
 * @param {any} info what GET v1/info says
 */
export function showSummary(info) {
  byId("index-name").textContent = info.index;
  byId("index-size").textContent = counted(info.items, "picture");
  byId("about").hidden = false;
  byId("summary-facts").replaceChildren(...rows(facts(info)));
}

/**
 * @param {any} info
 * @returns {Record<string, string>}
 */
function facts({ index, items, labels_total, unlabelled, roots, model, graph, store, version }) {
  const names = labels_total === null ? "too many to list" : labels_total.toLocaleString("en");
  return {
    Index: index,
    Pictures: items.toLocaleString("en"),
    Labels: unlabelled ? `${names}; ${counted(unlabelled, "picture")} without` : names,
    Folders:
      roots.map((/** @type {any} */ root) => `${root.name} (${root.items.toLocaleString("en")})`).join(", ") || "none",
    Model: `${model.name} (${model.backbone}, ${model.precision})`,
    ...(model.license ? { License: model.license } : {}),
    Embedding: `${model.dim} dimensions, from pictures of ${model.picture_size} × ${model.picture_size} pixels`,
    ...(store ? { Store: store } : { Graph: graph ? graphInWords(graph) : "none: each search compares every picture" }),
    Version: version,
  };
}

/** @param {any} graph */
function graphInWords({ items, recall, k }) {
  const covers = counted(items, "picture");
  return typeof recall === "number"
    ? `${covers}; ${(100 * recall).toFixed(1)} % of the ${k} nearest are found`
    : covers;
}
