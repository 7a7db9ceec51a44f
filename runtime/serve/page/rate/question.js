/** A question: its pictures, which are asked for before it is shown. */

import { make, shortened } from "../dom.js";
import { renditions, watched } from "../thumbnails.js";

/** Widths on the screen, for the choice among the sizes that the server makes. */
const QUERY_WIDTH = "(max-aspect-ratio: 1/1) 100vw, 40vw";
const CANDIDATE_WIDTH = "(max-aspect-ratio: 1/1) 50vw, 32vw";

/**
 * @typedef {import("../gallery/tile.js").Item & {sha256: string}} Picture
 * @typedef {{query: Picture, first: Picture, second: Picture}} Question
 * @typedef {"first" | "second"} Side
 */

export class Shown {
  /**
   * @param {Question} question
   * @param {import("../api.js").Api} api
   */
  constructor(question, api) {
    this.question = question;
    this.api = api;
    /** @type {Record<"query" | Side, HTMLElement[]> | undefined} */
    this.made = undefined;
  }

  /** @returns {Record<"query" | Side, HTMLElement[]>} its elements, whose pictures are asked for from now on */
  get parts() {
    const { query, first, second } = this.question;
    this.made ??= {
      query: part(query, QUERY_WIDTH, this.api),
      first: part(first, CANDIDATE_WIDTH, this.api),
      second: part(second, CANDIDATE_WIDTH, this.api),
    };
    return this.made;
  }

  /** @returns {string} equal for the same question, whatever its sides are */
  get key() {
    const { query, first, second } = this.question;
    return [query.sha256, ...[first.sha256, second.sha256].sort()].join(" ");
  }

  /**
   * @param {Side} side that is more like the query
   * @returns {{query: string, positive: string, negative: string}}
   */
  comparison(side) {
    const { query, first, second } = this.question;
    const [positive, negative] = side === "first" ? [first, second] : [second, first];
    return { query: query.sha256, positive: positive.sha256, negative: negative.sha256 };
  }

  /** @returns {{query: string, first: string, second: string}} */
  skipped() {
    const { query, first, second } = this.question;
    return { query: query.sha256, first: first.sha256, second: second.sha256 };
  }
}

/**
 * @param {Picture} picture
 * @returns {string} its label and path
 */
export function described({ label, relative }) {
  return [label, relative].filter(Boolean).join(", ");
}

/**
 * @param {Picture} picture
 * @param {string} sizes
 * @param {import("../api.js").Api} api
 * @returns {HTMLElement[]} the picture, and its name
 */
function part(picture, sizes, api) {
  const { id, width, height, relative } = picture;
  const image = make("img", { alt: described(picture), decoding: "async", draggable: false, sizes });
  watched(api, image, id);
  image.srcset = renditions(id, width && height ? width / height : 1, picture);
  const name = relative.slice(relative.lastIndexOf("/") + 1);
  return [
    make("span", { className: "picture" }, image),
    make("bdi", { className: "name", title: relative, ariaHidden: "true" }, shortened(name, 60)),
  ];
}
