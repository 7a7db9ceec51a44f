/** A region of a picture that is not in the index, cut out in the browser. */

const JPEG_QUALITY = 0.95;

/**
 * @param {File} file
 * @param {import("./region.js").Box} box
 * @returns {Promise<File>} the region in the file's own pixels, upright
 */
export async function crop(file, [left, top, right, bottom]) {
  const picture = await createImageBitmap(file, { imageOrientation: "from-image" });
  const canvas = document.createElement("canvas");
  const [x, y] = [Math.floor(left * picture.width), Math.floor(top * picture.height)];
  canvas.width = Math.max(1, Math.ceil(right * picture.width) - x);
  canvas.height = Math.max(1, Math.ceil(bottom * picture.height) - y);
  canvas.getContext("2d")?.drawImage(picture, -x, -y);
  picture.close();
  const type = file.type === "image/jpeg" ? "image/jpeg" : "image/png";
  /** @type {Blob} */
  const blob = await new Promise((resolve, reject) => {
    canvas.toBlob((made) => (made ? resolve(made) : reject(new Error("not drawn"))), type, JPEG_QUALITY);
  });
  return new File([blob], file.name, { type });
}
