/** What is not sent, in the browser's storage: there all tabs see it, and the next visit. */

/** Of the entries of this server. */
export const PREFIX = `unsent-rating ${new URL("./", location.href).pathname} `;

/**
 * @typedef {object} Kept
 * @property {string} key
 * @property {string} index name of the one that it is about: later another may be served at the same address
 * @property {number} place in the order, which no clock decides
 */

/** @template {Kept} Entry */
export class KeptEntries {
  constructor() {
    /** @type {Map<string, Entry>} for which there is no room: they are kept while this page lives */
    this.unstored = new Map();
  }

  /** @returns {Entry[]} the oldest first; read again each time, since another tab may have sent some */
  all() {
    const keys = Object.keys(localStorage).filter((key) => key.startsWith(PREFIX));
    const stored = keys.flatMap((key) => parsed(localStorage.getItem(key)) ?? []);
    return [...stored, ...this.unstored.values()].sort((one, other) => one.place - other.place);
  }

  /** @returns {number} the place after all others */
  get end() {
    return 1 + Math.max(0, ...this.all().map(({ place }) => place));
  }

  /** @param {Entry} entry which is new, or has changed */
  put(entry) {
    const name = PREFIX + entry.key;
    try {
      localStorage.setItem(name, JSON.stringify(entry));
      this.unstored.delete(entry.key);
    } catch {
      if (localStorage.getItem(name) === null) this.unstored.set(entry.key, entry);
    }
  }

  /** @param {string} key */
  remove(key) {
    localStorage.removeItem(PREFIX + key);
    this.unstored.delete(key);
  }

  /** @param {() => void} react to what another tab does */
  listen(react) {
    addEventListener("storage", ({ key }) => {
      if (key === null || key.startsWith(PREFIX)) react();
    });
  }
}

/**
 * @param {string | null} text
 * @returns {any} null if it is no entry
 */
function parsed(text) {
  try {
    const entry = JSON.parse(text ?? "null");
    return Number.isInteger(entry?.place) ? entry : null;
  } catch {
    return null;
  }
}
