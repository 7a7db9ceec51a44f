/** The arithmetic of a picture in a box: how it fits, and where it is once it is enlarged and moved. */

/**
 * @typedef {{width: number, height: number}} Size in CSS pixels
 * @typedef {{x: number, y: number}} Point in CSS pixels from the centre of the box
 * @typedef {{scale: number, x: number, y: number}} Zoom scale 1: the picture fits; x and y: where its centre is
 */

/** @type {Zoom} */
export const FITTED = Object.freeze({ scale: 1, x: 0, y: 0 });
const LEAST_LARGEST = 4;

/**
 * @param {number} ratio width / height of the picture
 * @param {Size} box
 * @param {number} [longest] side that the picture may get
 * @returns {Size} of the whole picture, as large as the box allows
 */
export function fitted(ratio, box, longest = Infinity) {
  const width = Math.min(box.width, box.height * ratio, longest * Math.min(1, ratio));
  return { width, height: width / ratio };
}

/**
 * @param {Size} frame of the fitted picture
 * @param {Size | null} pixels of the file, where they are known
 * @returns {number} the largest scale: two CSS pixels for one of the file, and four times at least
 */
export function largest(frame, pixels) {
  return Math.max(LEAST_LARGEST, pixels && frame.width ? (2 * pixels.width) / frame.width : 0);
}

/**
 * @param {Zoom} zoom
 * @param {number} scale
 * @param {Point} point that stays where it is
 * @returns {Zoom}
 */
export function scaled(zoom, scale, point) {
  const factor = scale / zoom.scale;
  return { scale, x: point.x - (point.x - zoom.x) * factor, y: point.y - (point.y - zoom.y) * factor };
}

/**
 * @param {Zoom} zoom
 * @param {Size} frame of the fitted picture
 * @param {Size} box
 * @param {number} most the largest scale
 * @returns {Zoom} the nearest one that leaves no gap at a side where the picture is larger than the box
 */
export function held(zoom, frame, box, most) {
  const scale = between(zoom.scale, 1, most);
  const from = scale === zoom.scale ? zoom : scaled(zoom, scale, { x: 0, y: 0 });
  const [right, down] = [(frame.width * scale - box.width) / 2, (frame.height * scale - box.height) / 2];
  return {
    scale,
    x: between(from.x, -Math.max(0, right), Math.max(0, right)),
    y: between(from.y, -Math.max(0, down), Math.max(0, down)),
  };
}

/**
 * @param {number} value
 * @param {number} least
 * @param {number} most
 * @returns {number} the nearest of that range
 */
export function between(value, least, most) {
  return Math.min(Math.max(value, least), Math.max(least, most));
}
