/** The query and the options of the search, and the address that holds them. */

import { counted, shortened } from "./dom.js";

const SHOWN_LABELS = 5;

/**
 * A picture of the index, or the embedding of another one.
 * @typedef {{id: number}} ItemQuery
 * @typedef {{vector: string, model: string}} VectorQuery base64, and the first hex digits of the model's sha256
 * @typedef {object} State
 * @property {ItemQuery | VectorQuery | null} query
 * @property {number} k
 * @property {boolean} farthest
 * @property {string[]} labels none: all
 * @property {number | null} unique near-duplicates are at most this far apart; null: all pictures are shown
 * @property {number | null} maxDistance
 * @property {boolean} exact
 * @property {boolean} leaveOut the query itself, where it is a picture of the index
 */

export const NEAR_DUPLICATE = 0.05;

/**
 * An option of the search. Its control in index.html names it in data-option; one without needs code in options.js.
 * @typedef {object} Option
 * @property {string} parameter of the page's address, and of POST v1/search
 * @property {any} initial
 * @property {(texts: string[]) => any} read its value from the texts of the parameter, at least one
 * @property {(value: any) => string[]} write
 * @property {(value: any) => string} [words] set where it restricts the result: what it leaves
 * @property {{button: string, text: (value: any) => string}} [loosen] set where it can leave no picture over
 */

const FLAG = {
  read: (/** @type {string[]} */ [text]) => isTrue(text),
  write: (/** @type {boolean} */ value) => [value ? "1" : "0"],
};
const DISTANCE = {
  read: (/** @type {string[]} */ [text]) => distance(text),
  write: (/** @type {number | null} */ value) => (value === null ? [] : [String(value)]),
};
const K = 50;

/** @type {Record<keyof Omit<State, "query">, Option>} */
export const OPTIONS = {
  k: { parameter: "k", initial: K, read: ([text]) => whole(text) || K, write: (value) => [String(value)] },
  farthest: { parameter: "farthest", initial: false, ...FLAG },
  exact: { parameter: "exact", initial: false, ...FLAG },
  leaveOut: { parameter: "leave_out_query", initial: true, ...FLAG },
  labels: {
    parameter: "label",
    initial: [],
    read: (texts) => [...new Set(texts)],
    write: (labels) => labels,
    words: (labels) => `${labels.length > 1 ? "labels" : "label"} ${labels.join(", ")}`,
    loosen: { button: "All labels", text: (labels) => ` with the label ${someOf(labels)}` },
  },
  maxDistance: {
    parameter: "max_distance",
    initial: null,
    ...DISTANCE,
    words: (limit) => `at most ${limit} away`,
    loosen: { button: "Any distance", text: (limit) => ` at a distance of at most ${limit}` },
  },
  unique: { parameter: "unique", initial: null, ...DISTANCE, words: () => "near-duplicates hidden" },
};

/** @type {Omit<State, "query">} */
export const INITIAL = values((option) => option.initial);

/**
 * @param {{search: string, hash: string}} address
 * @returns {State} what it cannot read is as it is initially
 */
export function readState({ search, hash }) {
  const said = new URLSearchParams(search);
  const options = values(({ parameter, initial, read }) =>
    said.has(parameter) ? read(said.getAll(parameter)) : initial,
  );
  if (options.farthest) options.maxDistance = null;
  return { query: readQuery(said, new URLSearchParams(hash.slice(1))), ...options };
}

/**
 * @param {State} state
 * @returns {string} the address of this page in this state, relative to it
 */
export function writeState(state) {
  const said = new URLSearchParams();
  let fragment = "";
  if (isItem(state.query)) said.set("id", String(state.query.id));
  else if (state.query) fragment = `#${new URLSearchParams({ v: urlSafe(state.query.vector), m: state.query.model })}`;
  const names = changedOptions(state);
  append(said, state, state.query && !names.includes("k") ? ["k", ...names] : names);
  return `./${said.size ? `?${said}` : ""}${fragment}`;
}

/**
 * @param {State} state
 * @returns {URLSearchParams} the parameters of POST v1/search
 */
export function searchParameters(state) {
  const parameters = new URLSearchParams();
  append(parameters, state, ["k", ...changedOptions(state).filter((name) => name !== "k" && name !== "leaveOut")]);
  if (isItem(state.query) && state.leaveOut) parameters.set("leave_out_query", "1");
  return parameters;
}

/**
 * @param {ItemQuery | VectorQuery} query
 * @returns {FormData} the body of POST v1/search
 */
export function searchBody(query) {
  const form = new FormData();
  for (const [name, value] of Object.entries(query)) form.set(name, String(value));
  return form;
}

/**
 * @param {State["query"]} query
 * @returns {query is ItemQuery}
 */
export function isItem(query) {
  return query !== null && "id" in query;
}

/**
 * @param {State} state
 * @returns {(keyof typeof OPTIONS)[]} the options that are not as they are initially
 */
export function changedOptions(state) {
  return /** @type {(keyof typeof OPTIONS)[]} */ (Object.keys(OPTIONS)).filter((name) => {
    const { initial, write } = OPTIONS[name];
    return String(write(state[name])) !== String(write(initial));
  });
}

/**
 * @param {State} state
 * @returns {string[]} the options that restrict the result, in words
 */
export function restrictions(state) {
  return changedOptions(state).flatMap((name) => OPTIONS[name].words?.(state[name]) ?? []);
}

/**
 * @param {(option: Option) => any} value
 * @returns {Omit<State, "query">}
 */
function values(value) {
  return /** @type {any} */ (
    Object.fromEntries(Object.entries(OPTIONS).map(([name, option]) => [name, value(option)]))
  );
}

/**
 * @param {URLSearchParams} target
 * @param {State} state
 * @param {(keyof typeof OPTIONS)[]} names
 */
function append(target, state, names) {
  for (const name of names) {
    for (const text of OPTIONS[name].write(state[name])) target.append(OPTIONS[name].parameter, text);
  }
}

/**
 * @param {string[]} labels
 * @returns {string}
 */
function someOf(labels) {
  const shown = labels.slice(0, SHOWN_LABELS).map((label) => shortened(label));
  const others = labels.length - shown.length;
  return [...shown, ...(others ? [`one of ${counted(others, "other")}`] : [])].join(" or ");
}

/**
 * @param {URLSearchParams} said
 * @param {URLSearchParams} fragment
 * @returns {State["query"]}
 */
function readQuery(said, fragment) {
  const vector = fragment.get("v");
  if (vector) return { vector: padded(vector), model: fragment.get("m") ?? "" };
  const id = whole(said.get("id"));
  return id === null ? null : { id };
}

/** @param {string | null} text */
function whole(text) {
  return text !== null && /^\d{1,15}$/.test(text) ? Number(text) : null;
}

/**
 * @param {string | null} text
 * @returns {boolean} whether the API takes it for true
 */
function isTrue(text) {
  return /^(1|true|t|yes|y|on)$/i.test(text ?? "");
}

/** @param {string | null} text */
function distance(text) {
  const number = Number.parseFloat(text ?? "");
  return Number.isFinite(number) && number >= 0 ? number : null;
}

/** @param {string} base64 */
function urlSafe(base64) {
  return base64.replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

/** @param {string} base64url */
function padded(base64url) {
  const base64 = base64url.replaceAll("-", "+").replaceAll("_", "/");
  return base64.padEnd(Math.ceil(base64.length / 4) * 4, "=");
}
