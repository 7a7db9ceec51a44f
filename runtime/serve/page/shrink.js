/** Large pictures: a smaller copy is made here, and sent instead. docs/architecture.md measures the difference. */

/** Pixels of the longer side, tried in this order; a model looks at a few hundred. */
const SIDES = [2048, 1024, 512, 256];
const QUALITY = 0.92;
/** A file of at most so many bytes is sent as it is. */
const LIGHT = 1_000_000;
/** A copy has so many pixels for each of the model's, within limits. */
const OF_MODEL = 4;
const SMALLEST = 1024;

/**
 * @param {Blob} file that the server takes
 * @param {number} modelSide pixels of a side that the model looks at
 * @returns {Promise<Blob>} itself, or a smaller copy where that saves at least half of a large file
 */
export async function lighter(file, modelSide) {
  if (file.size <= LIGHT) return file;
  const side = Math.min(SIDES[0], Math.max(SMALLEST, OF_MODEL * modelSide));
  // A picture that this browser cannot read is sent as it is.
  return shrink(file, file.size / 2, [side]).then(
    ({ copy }) => copy,
    () => file,
  );
}

/**
 * @param {Blob} file
 * @param {number} limit in bytes
 * @param {number[]} sides
 * @returns {Promise<{copy: Blob, side: number}>} a JPEG file, upright, of the largest size that fits
 * @throws where this browser cannot read the picture, or no copy fits
 */
export async function shrink(file, limit, sides = SIDES) {
  // Upright, but with its numbers as they are: the server takes no account of colour profiles either.
  const picture = await createImageBitmap(file, { imageOrientation: "from-image", colorSpaceConversion: "none" });
  try {
    for (const side of sides) {
      const copy = await drawn(picture, Math.min(1, side / Math.max(picture.width, picture.height)));
      if (copy.size <= limit) return { copy, side };
    }
  } finally {
    picture.close();
  }
  throw new Error("no copy fits");
}

/**
 * @param {ImageBitmap} picture
 * @param {number} scale
 * @returns {Promise<Blob>}
 */
function drawn(picture, scale) {
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(picture.width * scale));
  canvas.height = Math.max(1, Math.round(picture.height * scale));
  const pen = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  pen.imageSmoothingQuality = "high";
  pen.fillStyle = "#fff"; // what is transparent is white for the server, too
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.drawImage(picture, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve, reject) => {
    canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("not drawn"))), "image/jpeg", QUALITY);
  });
}
