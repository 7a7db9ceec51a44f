/** What a rater says, until the server has acknowledged it: kept in this browser, sent in order, and tried again. */

import { Refusal } from "../api.js";
import { counted } from "../dom.js";

const ADDRESS = "v1/ratings";
/** Of the entries of this server in the browser's storage. */
const PREFIX = `unsent-rating ${new URL("./", location.href).pathname} `;
const FIRST_PAUSE = 2000;
const LONGEST_PAUSE = 15_000;
/** A network that stalls is told of like one that fails: what arrived after all is not added twice. */
const TIMEOUT = 20_000;
/** Of refusals after which another try may succeed. */
const PASSING = [401, 408, 503];

/**
 * @typedef {{comparisons?: object[], skipped?: object[], rater?: string}} Answer
 * @typedef {{query: string, picture: string, more: boolean | null, rater?: string}} Mark
 * @typedef {object} Entry
 * @property {string} key
 * @property {number} time when it was added
 * @property {Answer} [answer]
 * @property {Mark} [mark]
 * @property {{of: string, id?: number}} [undo] of an answer by its key, and the rating's id once it is known
 */

/** Tells `change` when an entry comes or goes, `sent` with what the server said, and `refused` with its sentence. */
export class Outbox extends EventTarget {
  /** @param {import("../api.js").Api} api */
  constructor(api) {
    super();
    this.api = api;
    /** @type {Entry[]} */
    this.entries = stored();
    /** @type {Map<string, number>} ids of ratings by the keys of their answers */
    this.ids = new Map();
    /** @type {Entry | null} that is being sent */
    this.sending = null;
    /** @type {Error | null} why the last try failed */
    this.fault = null;
    this.pause = FIRST_PAUSE;
    /** @type {number | undefined} */
    this.timer = undefined;
    addEventListener("online", () => this.send());
  }

  /** @returns {number} ratings that the server does not count yet */
  get uncounted() {
    return this.entries.reduce((sum, { answer, undo }) => sum + (answer?.comparisons?.length ?? 0) - Number(Boolean(undo)), 0);
  }

  /** @returns {string} what is not sent, and why; empty while nothing fails */
  get problem() {
    const { fault, entries } = this;
    if (!fault || entries.length === 0) return "";
    const keeps = entries.length === 1 ? "This browser keeps it." : "This browser keeps them.";
    return `${counted(entries.length, "rating")} not sent yet: ${fault.message} ${keeps}`;
  }

  /**
   * @param {Answer} answer
   * @returns {string} its key
   */
  answer(answer) {
    return this.#add({ answer });
  }

  /** @param {Mark} mark which replaces one of the same picture that is not sent yet */
  mark(mark) {
    const earlier = this.entries.find(
      (entry) => entry !== this.sending && entry.mark?.query === mark.query && entry.mark.picture === mark.picture,
    );
    if (earlier) this.#drop(earlier);
    this.#add({ mark });
  }

  /** @param {string} key of an answer that is taken back */
  undo(key) {
    const entry = this.entries.find((each) => each.key === key);
    if (entry && entry !== this.sending) this.#drop(entry);
    else if (entry || this.ids.has(key)) this.#add({ undo: { of: key, id: this.ids.get(key) } });
  }

  /** Send what is left, from the first entry on. */
  async send() {
    if (this.sending) return;
    clearTimeout(this.timer);
    this.timer = undefined;
    try {
      for (let entry = this.entries[0]; entry; entry = this.entries[0]) {
        this.sending = entry;
        await this.#sendOne(entry);
        this.sending = this.fault = null;
        this.pause = FIRST_PAUSE;
        this.#drop(entry);
      }
    } catch (error) {
      this.sending = null;
      this.fault = error instanceof Error ? error : new Error(String(error));
      // Who has not given the token is asked for it with the next rating, not again and again.
      if (!(error instanceof Refusal && error.status === 401)) {
        this.timer = setTimeout(() => this.send(), this.pause);
        this.pause = Math.min(LONGEST_PAUSE, 2 * this.pause);
      }
      this.#tell("change");
    }
  }

  /** @param {Entry} entry */
  async #sendOne(entry) {
    try {
      const [path, options] = this.#request(entry);
      const said = await this.api.json(path, { ...options, timeout: TIMEOUT });
      if (entry.answer && said.ids.length) this.#learn(entry.key, said.ids[0]);
      this.#tell("sent", { entry, said });
    } catch (error) {
      if (!(error instanceof Refusal) || PASSING.includes(error.status)) throw error;
      const isGone = entry.undo !== undefined && error.status === 404;
      if (!isGone) this.#tell("refused", { entry, error });
    }
  }

  /**
   * @param {Entry} entry
   * @returns {[string, RequestInit]}
   */
  #request({ key, answer, mark, undo }) {
    if (undo) return [`${ADDRESS}/${undo.id ?? this.ids.get(undo.of)}`, { method: "DELETE" }];
    const headers = { "Content-Type": "application/json" };
    if (mark) return [`${ADDRESS}/marks`, { method: "PUT", headers, body: JSON.stringify(mark) }];
    return [ADDRESS, { method: "POST", headers, body: JSON.stringify({ ...answer, key }) }];
  }

  /**
   * @param {string} key
   * @param {number} id
   */
  #learn(key, id) {
    this.ids.set(key, id);
    for (const entry of this.entries) {
      if (entry.undo?.of !== key) continue;
      entry.undo.id = id;
      store(entry);
    }
  }

  /**
   * @param {Omit<Entry, "key" | "time">} content
   * @returns {string} its key
   */
  #add(content) {
    const entry = { key: newKey(), time: Date.now(), ...content };
    this.entries.push(entry);
    store(entry);
    this.#tell("change");
    if (this.timer === undefined) this.send();
    return entry.key;
  }

  /** @param {Entry} entry */
  #drop(entry) {
    this.entries = this.entries.filter((other) => other !== entry);
    localStorage.removeItem(PREFIX + entry.key);
    this.#tell("change");
  }

  /**
   * @param {string} name
   * @param {object} [detail]
   */
  #tell(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }
}

/** @returns {string} */
function newKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** @param {Entry} entry */
function store(entry) {
  try {
    localStorage.setItem(PREFIX + entry.key, JSON.stringify(entry));
  } catch {
    // Without room it is kept while this page lives.
  }
}

/** @returns {Entry[]} of earlier visits, the oldest first */
function stored() {
  const keys = Object.keys(localStorage).filter((key) => key.startsWith(PREFIX));
  const entries = keys.flatMap((key) => parsed(localStorage.getItem(key)) ?? []);
  return entries.sort((one, other) => one.time - other.time);
}

/**
 * @param {string | null} text
 * @returns {Entry | null} null if it is not one
 */
function parsed(text) {
  try {
    return JSON.parse(text ?? "null");
  } catch {
    return null;
  }
}
