/** Thumbnails of the index's pictures, and what stands in their place where there is none. */

import { Refusal } from "./api.js";
import { icon, make } from "./dom.js";

const SIZES = [128, 256, 512, 1024, 2048];

/**
 * @param {import("./api.js").Api} api
 * @param {number} id
 * @param {string} alt
 * @param {number} side in CSS pixels
 * @returns {HTMLImageElement} replaced by a placeholder if the picture cannot be shown
 */
export function thumbnail(api, id, alt, side) {
  const requested = side * Math.min(devicePixelRatio, 2);
  const size = SIZES.find((pixels) => pixels >= requested) ?? 2048;
  const address = addressOf(id, size);
  const image = make("img", { loading: "lazy", decoding: "async", draggable: false, alt, width: side, height: side });
  image.addEventListener("error", () => recover(api, image, address), { once: true });
  image.src = address;
  return image;
}

/**
 * @param {number} id
 * @param {number} aspect
 * @param {{width?: number | null, height?: number | null}} picture whose size may be known
 * @returns {string} a srcset: the sizes that the server makes, with their widths, none larger than the picture needs
 */
export function renditions(id, aspect, { width, height }) {
  const longer = Math.max(width ?? Infinity, height ?? 0);
  const useful = SIZES.filter((size, at) => at === 0 || SIZES[at - 1] < longer);
  const wide = (/** @type {number} */ size) => Math.max(1, Math.round(Math.min(size, longer) * Math.min(1, aspect)));
  return useful.map((size) => `${addressOf(id, size)} ${wide(size)}w`).join(", ");
}

/**
 * Let a picture that does not come be asked for once more, and then be replaced by what says why.
 * @param {import("./api.js").Api} api
 * @param {HTMLImageElement} image
 * @param {number} id
 */
export function watched(api, image, id) {
  image.addEventListener("error", () => recover(api, image, image.currentSrc || addressOf(id, 256)), { once: true });
}

/**
 * @param {number} id
 * @param {number} size
 */
function addressOf(id, size) {
  return `v1/items/${id}/thumbnail?${new URLSearchParams({ size: String(size) })}`;
}

/**
 * @param {string} alt
 * @param {string} [reason]
 * @returns {HTMLElement}
 */
export function placeholder(alt, reason = "") {
  const box = make("span", { className: "placeholder" }, icon("image"), make("span", {}, reason));
  box.setAttribute("role", "img");
  box.setAttribute("aria-label", [alt, reason].filter(Boolean).join(": "));
  return box;
}

/**
 * Ask for the picture once more, in a way that tells why it did not come.
 * @param {import("./api.js").Api} api
 * @param {HTMLImageElement} image
 * @param {string} address
 */
async function recover(api, image, address) {
  const giveUp = (/** @type {string} */ reason) => image.replaceWith(placeholder(image.alt, reason));
  try {
    const url = URL.createObjectURL(await (await api.send(address)).blob());
    image.addEventListener("load", () => URL.revokeObjectURL(url), { once: true });
    image.addEventListener("error", () => giveUp("Cannot be shown"), { once: true });
    image.dataset.given = "1";
    image.removeAttribute("srcset");
    image.src = url;
  } catch (error) {
    giveUp(why(error));
  }
}

/**
 * @param {unknown} error
 * @returns {string}
 */
function why(error) {
  if (!(error instanceof Refusal)) return "Not loaded";
  if (error.status === 410) return "File gone or changed";
  if (error.status === 404) return "No longer in the index";
  return "Cannot be shown";
}
