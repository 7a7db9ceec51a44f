/** The query picture, above its results. */

import { byId, counted, make } from "./dom.js";
import { recall } from "./previews.js";
import { idsOf, isItem } from "./state.js";
import { placeholder, thumbnail } from "./thumbnails.js";
import { outline } from "./viewer/region.js";

const SIDE = 256;
/** Of several pictures, so many are shown. */
const SHOWN = 4;

export class QueryPanel {
  /** @param {import("./api.js").Api} api */
  constructor(api) {
    this.api = api;
    this.box = byId("query-picture");
    /** @type {string | null} */
    this.url = null;
    this.name = "";
  }

  /**
   * A picture that is being uploaded, or was refused.
   * @param {import("./previews.js").Preview} preview
   * @param {string} kind
   */
  showFile(preview, kind) {
    this.#show(this.#pictureOf(preview), preview.name, kind, preview.box, Boolean(preview.file));
  }

  /**
   * @param {import("./state.js").State} state that searches
   * @param {AbortSignal} signal
   */
  showQuery(state, signal) {
    const { query } = state;
    const ids = idsOf(state);
    if (ids.length > 1) {
      const some = ids.slice(0, SHOWN).map((id) => thumbnail(this.api, id, "Query", SIDE / 2));
      const pictures = make("span", { className: "mosaic" }, ...some);
      this.#show(pictures, counted(ids.length, "picture"), "The mean of their embeddings");
    } else if (ids.length) {
      this.#showItem(ids[0], state.box, signal);
    } else if (query && !isItem(query)) {
      const preview = recall(query.vector);
      if (preview) this.showFile(preview, preview.box ? "A region of your picture" : "Your picture");
      else
        this.#show(placeholder("Query", "A link holds no picture"), "a picture from a link", "Not in the link itself");
    }
  }

  /**
   * @param {number} id
   * @param {import("./state.js").Box | null} box
   * @param {AbortSignal} signal
   */
  async #showItem(id, box, signal) {
    const kind = box ? "A region of a picture in the index" : "In the index";
    this.#show(thumbnail(this.api, id, "Query", SIDE), `picture ${id}`, kind, box, true);
    const item = await this.api.json(`v1/items/${id}`, { signal }).catch(() => null);
    if (item && !signal.aborted)
      this.#write(item.relative, item.label === null ? kind : `${kind} · ${item.label}`);
  }

  /** @param {import("./previews.js").Preview} preview */
  #pictureOf(preview) {
    if (!preview.picture) return placeholder("Query", "This browser cannot show it");
    const url = URL.createObjectURL(preview.picture);
    return make("img", { src: url, alt: "Query", draggable: false });
  }

  /**
   * @param {HTMLElement} picture
   * @param {string} name
   * @param {string} kind
   * @param {import("./state.js").Box | null} [box]
   * @param {boolean} [draws] whether a region of it can be searched with
   */
  #show(picture, name, kind, box, draws = false) {
    if (this.url) URL.revokeObjectURL(this.url);
    this.url = picture instanceof HTMLImageElement && picture.src.startsWith("blob:") ? picture.src : null;
    this.box.replaceChildren(box ? make("span", { className: "outlined" }, picture, outline(box)) : picture);
    byId("query-region").hidden = !draws || !(picture instanceof HTMLImageElement);
    this.#write(name, kind);
  }

  /**
   * @param {string} name
   * @param {string} kind
   */
  #write(name, kind) {
    this.name = name;
    byId("query-name").textContent = byId("query-name").title = name;
    byId("query-kind").textContent = byId("query-kind").title = kind;
  }
}
