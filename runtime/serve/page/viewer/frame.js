/** One large picture: what is loaded already stands in its place until the rendition for the screen has come. */

import { make } from "../dom.js";
import { renditions, watched } from "../thumbnails.js";
import { FITTED, fitted, largest } from "./zoom.js";

/** A small file is enlarged this much at most, or it would be a blur. */
const ENLARGED = 3;

/**
 * @typedef {object} Picture
 * @property {string} key equal for the same picture alone
 * @property {number} [id] in the index
 * @property {string} [url] of a picture that is not in the index
 * @property {string} alt
 * @property {number | null} [width] of the file, upright
 * @property {number | null} [height]
 */

export class Frame {
  /**
   * @param {import("../api.js").Api} api
   * @param {() => void} changed called once the picture's shape is known
   */
  constructor(api, changed) {
    this.api = api;
    this.changed = changed;
    this.element = make("div", { className: "frame" });
    /** @type {Picture | null} */
    this.picture = null;
    /** @type {HTMLImageElement | null} */
    this.image = null;
    this.size = { width: 0, height: 0 };
    this.box = { width: 0, height: 0 };
    this.zoom = FITTED;
    this.ratio = 0;
    /** @type {import("./zoom.js").Size | null} */
    this.pixels = null;
    /** @type {(() => void)[]} called once the shape is known */
    this.waiting = [];
  }

  /** @returns {Promise<void>} once the picture's shape is known; never, if it cannot be shown */
  known() {
    return this.ratio ? Promise.resolve() : new Promise((resolve) => this.waiting.push(resolve));
  }

  /** @param {Picture | null} picture */
  show(picture) {
    if (picture?.key === this.picture?.key) return;
    this.picture = picture;
    this.image = null;
    this.waiting = [];
    this.ratio = 0;
    this.pixels = null;
    this.zoom = FITTED;
    this.element.replaceChildren();
    this.element.hidden = picture === null;
    if (picture) this.#load(picture);
  }

  /**
   * @param {import("./zoom.js").Size} box
   * @param {import("./zoom.js").Zoom} zoom
   */
  place(box, zoom = this.zoom) {
    this.box = box;
    this.zoom = zoom;
    const most = this.pixels ? ENLARGED * Math.max(this.pixels.width, this.pixels.height) : Infinity;
    this.size = this.ratio ? fitted(this.ratio, box, most) : box;
    const { style } = this.element;
    style.width = `${this.size.width}px`;
    style.height = `${this.size.height}px`;
    style.transform = `translate(-50%, -50%) translate(${zoom.x}px, ${zoom.y}px) scale(${zoom.scale})`;
    const sizes = `${Math.ceil(this.size.width * zoom.scale)}px`;
    if (this.image?.srcset && this.image.sizes !== sizes) this.image.sizes = sizes;
  }

  /** @returns {number} the largest scale */
  get most() {
    return largest(this.size, this.pixels);
  }

  /** @param {Picture} picture */
  #load(picture) {
    if (picture.width && picture.height) this.#learn({ width: picture.width, height: picture.height });
    const seen = picture.id === undefined ? undefined : loaded(picture.id);
    if (seen) {
      const low = make("img", { className: "low", src: seen.currentSrc, alt: "", draggable: false });
      this.element.append(low);
      this.ratio ||= seen.naturalWidth / seen.naturalHeight;
    }
    const image = make("img", { className: "high", alt: picture.alt, decoding: "async", draggable: false });
    this.image = image;
    this.place(this.box);
    if (picture.url) image.src = picture.url;
    else this.#request(image, picture);
    this.element.append(image);
    image.addEventListener("load", () => this.#arrive(picture), { once: true });
  }

  /**
   * @param {HTMLImageElement} image
   * @param {Picture} picture
   */
  #request(image, picture) {
    const id = Number(picture.id);
    watched(this.api, image, id);
    image.sizes = `${Math.ceil(this.size.width)}px`;
    image.srcset = renditions(id, this.ratio || 1, picture);
  }

  /** @param {Picture} picture */
  async #arrive(picture) {
    const { image } = this;
    await image?.decode().catch(() => {});
    if (picture !== this.picture || !image) return;
    if (!this.ratio) {
      this.ratio = image.naturalWidth / image.naturalHeight;
      if (picture.url) this.pixels = { width: image.naturalWidth, height: image.naturalHeight };
      this.place(this.box);
      this.changed();
    }
    for (const resolve of this.waiting.splice(0)) resolve();
    image.classList.add("shown");
  }

  /** @param {import("./zoom.js").Size} pixels */
  #learn(pixels) {
    this.pixels = pixels;
    this.ratio = pixels.width / pixels.height;
  }
}

/**
 * @param {number} id
 * @returns {HTMLImageElement | undefined} the largest picture of it that this page shows already
 */
function loaded(id) {
  return [...document.images]
    .filter((image) => image.complete && image.naturalWidth && image.currentSrc.includes(`/items/${id}/thumbnail?`))
    .sort((one, other) => other.naturalWidth - one.naturalWidth)[0];
}
