/** Small copies of query pictures, so that a reload and the way back still show them. */

const SIDE = 512;
const PREFIX = "preview:";

/**
 * @typedef {object} Preview
 * @property {string} name of the file
 * @property {Blob | null} picture null where the browser cannot show it
 * @property {[number, number, number, number]} [box] the part of it that is searched with; without it, all of it
 * @property {File} [file] itself, while this page lives
 * @property {string} [url] of what is shown large
 */

/** @type {Map<string, Preview>} */
const known = new Map();

/**
 * @param {File} file
 * @param {Preview["box"]} [box]
 * @returns {Promise<Preview>}
 */
export async function previewOf(file, box) {
  return { name: file.name, picture: await shrunk(file).catch(() => null), file, box };
}

/**
 * @param {Preview} preview
 * @returns {string | undefined} of the file, or of its small copy; undefined where the browser cannot show it
 */
export function addressOf(preview) {
  if (preview.picture) preview.url ??= URL.createObjectURL(preview.file ?? preview.picture);
  return preview.url;
}

/**
 * @param {string} vector of the picture, base64
 * @param {Preview} preview
 */
export async function remember(vector, preview) {
  known.set(vector, preview);
  const picture = preview.picture && base64(await preview.picture.arrayBuffer());
  const text = JSON.stringify({ name: preview.name, type: preview.picture?.type, picture, box: preview.box });
  if (!stored(vector, text)) {
    forget();
    stored(vector, text);
  }
}

/**
 * @param {string} vector
 * @returns {Preview | undefined}
 */
export function recall(vector) {
  if (!known.has(vector)) {
    const preview = parsed(sessionStorage.getItem(PREFIX + vector));
    if (preview) known.set(vector, preview);
  }
  return known.get(vector);
}

/** Forget all that is stored beyond this page. */
export function forget() {
  for (const key of Object.keys(sessionStorage)) if (key.startsWith(PREFIX)) sessionStorage.removeItem(key);
}

/**
 * @param {File} file
 * @returns {Promise<Blob>}
 */
async function shrunk(file) {
  const picture = await createImageBitmap(file, { imageOrientation: "from-image" });
  const scale = Math.min(1, SIDE / Math.max(picture.width, picture.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(picture.width * scale));
  canvas.height = Math.max(1, Math.round(picture.height * scale));
  canvas.getContext("2d")?.drawImage(picture, 0, 0, canvas.width, canvas.height);
  picture.close();
  return new Promise((resolve, reject) => {
    canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("not drawn"))), "image/webp", 0.85);
  });
}

/**
 * @param {string} vector
 * @param {string} text
 * @returns {boolean} whether there was room for it
 */
function stored(vector, text) {
  try {
    sessionStorage.setItem(PREFIX + vector, text);
    return true;
  } catch {
    return false;
  }
}

/**
 * @param {string | null} text
 * @returns {Preview | undefined}
 */
function parsed(text) {
  if (!text) return undefined;
  const { name, type, picture, box } = JSON.parse(text);
  const bytes = picture && Uint8Array.from(atob(picture), (character) => character.charCodeAt(0));
  return { name, picture: bytes && new Blob([bytes], { type }), box };
}

/** @param {ArrayBuffer} buffer */
function base64(buffer) {
  return btoa(Array.from(new Uint8Array(buffer), (byte) => String.fromCharCode(byte)).join(""));
}
