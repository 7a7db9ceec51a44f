/** What a rater says, until the server has acknowledged it: kept in this browser, sent in order, and tried again. */

import { Refusal } from "../api.js";
import { counted } from "../dom.js";
import { KeptEntries, PREFIX } from "./kept.js";

const ADDRESS = "v1/ratings";
const FIRST_PAUSE = 2000;
const LONGEST_PAUSE = 15_000;
/** A network that stalls is told of like one that fails: what arrived after all is not added twice. */
const TIMEOUT = 20_000;
/** So long another tab may send alone. */
const TURN = 30_000;
/** Of refusals that are about the rating itself. After all others another try may succeed. */
const FINAL = [400, 404, 409, 413, 422];

/**
 * @typedef {{query: string, positive: string, negative: string}} Comparison
 * @typedef {{comparisons?: Comparison[], skipped?: object[], rater?: string}} Answer
 * @typedef {{query: string, picture: string, more: boolean | null, rater?: string}} Mark
 * @typedef {{of: string, answer: Answer, id?: number}} Undo by the key of the answer, and the rating's id once known
 * @typedef {object} Content
 * @property {Answer} [answer]
 * @property {Mark} [mark]
 * @property {Undo} [undo]
 * @typedef {import("./kept.js").Kept & {tried: boolean} & Content} Entry tried: the server may have it
 */

/** Tells `change` when an entry comes or goes, `sent` with what the server said, and `refused` with its sentence. */
export class Outbox extends EventTarget {
  /** @param {import("../api.js").Api} api */
  constructor(api) {
    super();
    this.api = api;
    /** @type {KeptEntries<Entry>} */
    this.kept = new KeptEntries();
    /** @type {string | undefined} name of the one that is served */
    this.index = undefined;
    /** @type {Entry[]} what is kept about this index, by all tabs */
    this.entries = [];
    /** @type {Map<string, number>} ids of ratings by the keys of their answers */
    this.ids = new Map();
    this.sending = false;
    /** @type {Error | null} why the last try failed */
    this.fault = null;
    this.pause = FIRST_PAUSE;
    /** @type {number | undefined} */
    this.timer = undefined;
    this.kept.listen(() => this.#show());
    addEventListener("online", () => this.send());
  }

  /**
   * Take up what is kept about the index, once it is known which one is served.
   * @param {string} index its name
   */
  open(index) {
    const isOther = this.index !== undefined && this.index !== index;
    this.index = index;
    this.#read();
    if (isOther) location.reload(); // all that the page shows is of the earlier one
  }

  /** @returns {number} ratings that the server does not count yet */
  get uncounted() {
    const added = this.entries.reduce((sum, { answer }) => sum + (answer?.comparisons?.length ?? 0), 0);
    return added - this.entries.filter(({ undo }) => undo && this.#id(undo) !== undefined).length;
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

  /** @param {Mark} mark which replaces one of the same picture that is not sent yet: of the two it is the later one */
  mark(mark) {
    const isSame = (/** @type {Mark | undefined} */ other) =>
      other?.query === mark.query && other.picture === mark.picture && other.rater === mark.rater;
    for (const entry of this.#read()) if (isSame(entry.mark)) this.#drop(entry.key);
    this.#add({ mark });
  }

  /**
   * Take an answer back. The server may have one that was tried, whatever became of the response.
   * @param {string} key
   * @param {Answer} answer
   */
  undo(key, answer) {
    const entry = this.#read().find((each) => each.key === key);
    if (entry) this.#drop(key);
    const isThere = Boolean(answer.comparisons?.length) && (entry?.tried ?? true);
    if (isThere) this.#add({ undo: { of: key, answer, id: this.ids.get(key) } });
  }

  /** Send what is left, from the first entry on. */
  async send() {
    if (this.sending || this.index === undefined) return;
    this.sending = true;
    clearTimeout(this.timer);
    this.timer = undefined;
    try {
      // What did not answer may have been started again, with another index.
      if (this.fault) this.open((await this.api.json("v1/info", { timeout: TIMEOUT })).index);
      while (this.#read().length) await alone(() => this.#sendAll());
      this.#succeed();
    } catch (error) {
      this.fault = error instanceof Error ? error : new Error(String(error));
      // Who has not given the token is asked for it with the next rating, not again and again.
      if (!(error instanceof Refusal && error.status === 401)) {
        this.timer = setTimeout(() => this.send(), this.pause);
        this.pause = Math.min(LONGEST_PAUSE, 2 * this.pause);
      }
      this.#tell("change");
    } finally {
      this.sending = false;
    }
  }

  async #sendAll() {
    for (let [entry] = this.#read(); entry; [entry] = this.#read()) {
      await this.#sendOne(entry);
      this.#succeed();
      this.#drop(entry.key);
    }
  }

  #succeed() {
    this.fault = null;
    this.pause = FIRST_PAUSE;
  }

  /** @param {Entry} entry */
  async #sendOne(entry) {
    const { key, answer, mark, undo } = entry;
    entry.tried = true;
    this.kept.put(entry);
    try {
      let said;
      if (undo) said = await this.#takeBack(undo);
      else if (mark) said = await this.#request("PUT", "/marks", mark);
      else said = await this.#give(key, answer);
      this.#tell("sent", { entry, said });
    } catch (error) {
      if (!(error instanceof Refusal) || !FINAL.includes(error.status)) throw error;
      const isGone = undo && (error.status === 404 || this.#id(undo) === undefined);
      if (!isGone) this.#tell("refused", { entry, error });
    }
  }

  /**
   * @param {string} key by which the server knows an answer that it has already
   * @param {Answer} [answer]
   */
  async #give(key, answer) {
    const said = await this.#request("POST", "", { ...answer, key });
    if (said.ids.length) this.#learn(key, said.ids[0]);
    return said;
  }

  /**
   * Remove a rating. If a response was lost, its id is unknown: the server says it when it gets the answer again.
   * @param {Undo} undo
   */
  async #takeBack(undo) {
    const said = this.#id(undo) === undefined ? await this.#give(undo.of, undo.answer) : null;
    const id = this.#id(undo);
    if (id === undefined) return said;
    // Beside its id: another index may have another rating of that number.
    return this.#request("DELETE", `/${id}?${new URLSearchParams(undo.answer.comparisons?.[0])}`);
  }

  /**
   * @param {string} method
   * @param {string} address below that of the ratings
   * @param {object} [document]
   * @returns {Promise<any>}
   */
  #request(method, address, document) {
    const content = document && { headers: { "Content-Type": "application/json" }, body: JSON.stringify(document) };
    return this.api.json(ADDRESS + address, { method, ...content, timeout: TIMEOUT });
  }

  /**
   * @param {Undo} undo
   * @returns {number | undefined} the id of the rating, as far as it is known
   */
  #id({ of, id }) {
    return id ?? this.ids.get(of);
  }

  /**
   * @param {string} key
   * @param {number} id
   */
  #learn(key, id) {
    this.ids.set(key, id);
    for (const entry of this.#read()) {
      if (entry.undo?.of !== key) continue;
      entry.undo.id = id;
      this.kept.put(entry);
    }
  }

  /**
   * @param {Content} content
   * @returns {string} its key
   */
  #add(content) {
    const entry = { key: newKey(), index: String(this.index), place: this.kept.end, tried: false, ...content };
    this.kept.put(entry);
    this.#show();
    if (this.timer === undefined) this.send();
    return entry.key;
  }

  /** @param {string} key */
  #drop(key) {
    this.kept.remove(key);
    this.#show();
  }

  /** @returns {Entry[]} what is kept about the index now, the oldest first */
  #read() {
    this.entries = this.kept.all().filter(({ index }) => index === this.index);
    return this.entries;
  }

  #show() {
    this.#read();
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

/**
 * Let one tab send at a time, where the browser can: with HTTPS. One that asks for a token holds no other up for long.
 * @param {() => Promise<void>} action
 */
async function alone(action) {
  if (!navigator.locks) return action();
  let begun = false;
  const begin = () => {
    begun = true;
    return action();
  };
  try {
    await navigator.locks.request(PREFIX, { signal: AbortSignal.timeout(TURN) }, begin);
  } catch (error) {
    if (begun) throw error;
    await action();
  }
}
