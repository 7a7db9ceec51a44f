/** The wall: all pictures of the index, to browse. */

import { Pages } from "./pages.js";

const REMEMBERED = 4;

export class Wall {
  /** @param {import("../api.js").Api} api */
  constructor(api) {
    this.api = api;
    /** @type {Map<string, Pages>} the latest walls: the way back shows them as they were */
    this.sources = new Map();
  }

  /**
   * @param {import("../state.js").State} state
   * @param {number} items how many the index holds: another number, another wall
   * @returns {Pages}
   */
  source(state, items) {
    const parameters = parametersOf(state);
    const key = `${items} ${parameters}`;
    const source =
      this.sources.get(key) ??
      new Pages((cursor, limit) => {
        const asked = new URLSearchParams(parameters);
        asked.set("limit", String(limit));
        if (cursor !== null) asked.set("cursor", cursor);
        return this.api.json(`v1/items?${asked}`);
      });
    this.sources.delete(key);
    this.sources.set(key, source);
    if (this.sources.size > REMEMBERED) this.sources.delete(this.sources.keys().next().value ?? "");
    return source;
  }
}

/**
 * @param {import("./tile.js").Item} item
 * @returns {string} its folder: that of the index, and those below it
 */
export function folderOf({ root, relative }) {
  const end = relative.lastIndexOf("/");
  return end < 0 ? root : `${root}/${relative.slice(0, end)}`;
}

/**
 * @param {import("./tile.js").Item} item
 * @returns {string} the folder as the API takes it: without that of the index
 */
export function below({ relative }) {
  return relative.slice(0, Math.max(0, relative.lastIndexOf("/")));
}

/** @param {import("../state.js").State} state */
function parametersOf({ order, seed, folder, labels }) {
  const parameters = new URLSearchParams({ order });
  if (order === "shuffle") parameters.set("seed", String(seed));
  if (folder) parameters.set("folder", folder);
  for (const label of labels) parameters.append("label", label);
  return parameters;
}
