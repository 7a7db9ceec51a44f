/** The query and the options of the search, and the address that holds them. */

import { counted, shortened } from "./dom.js";

const SHOWN_LABELS = 5;

/**
 * A picture of the index, or the embedding of another one.
 * @typedef {{id: number}} ItemQuery
 * @typedef {{vector: string, model: string}} VectorQuery base64, and the first hex digits of the model's sha256
 * @typedef {[number, number, number, number]} Box left, top, right, bottom: fractions of the upright picture
 * @typedef {"folder" | "newest" | "shuffle"} Order
 * @typedef {object} State
 * @property {ItemQuery | VectorQuery | null} query
 * @property {number[]} ids of several pictures, whose mean is searched; none: `query` says what is
 * @property {Box | null} box the part of the picture of the index that is searched with; null: all of it
 * @property {Order} order of the wall, which stands where nothing is searched; and so the next two
 * @property {number} seed of the order "shuffle"
 * @property {string} folder whose pictures the wall shows; empty: all
 * @property {number | null} show the picture that is large
 * @property {number} k of the initial number there are more on scrolling
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
/** So many at first: on scrolling, more come. */
export const K = 50;

/** @type {Record<keyof Omit<State, keyof Place>, Option>} */
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

/**
 * What is shown, apart from the options.
 * @typedef {Pick<State, "query" | "ids" | "box" | "order" | "seed" | "folder" | "show">} Place
 */

/** @type {Omit<State, keyof Place>} */
export const INITIAL = values((option) => option.initial);

/** @type {State} the whole index, from its beginning */
export const START = { ...INITIAL, query: null, ids: [], box: null, order: "folder", seed: 1, folder: "", show: null };

/** @type {Order[]} */
const ORDERS = ["folder", "newest", "shuffle"];

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
  const ids = [...new Set(said.getAll("id").flatMap((text) => whole(text) ?? []))];
  const query = readQuery(new URLSearchParams(hash.slice(1))) ?? (ids.length === 1 ? { id: ids[0] } : null);
  return {
    ...options,
    query,
    ids: query ? [] : ids,
    box: isItem(query) ? readBox(said.get("box")) : null,
    order: ORDERS.find((order) => order === said.get("order")) ?? START.order,
    seed: whole(said.get("seed")) ?? START.seed,
    folder: said.get("folder") ?? START.folder,
    show: whole(said.get("show")),
  };
}

/**
 * @param {State} state
 * @returns {string} the address of this page in this state, relative to it
 */
export function writeState(state) {
  const said = new URLSearchParams();
  let fragment = "";
  for (const id of idsOf(state)) said.append("id", String(id));
  if (isItem(state.query) && state.box) said.set("box", state.box.join(","));
  if (state.query && !isItem(state.query)) {
    const { vector, model } = state.query;
    fragment = `#${new URLSearchParams({ v: urlSafe(vector), m: model })}`;
  }
  const names = changedOptions(state);
  append(said, state, names);
  if (!isSearch(state)) {
    if (state.order !== START.order) said.set("order", state.order);
    if (state.order === "shuffle") said.set("seed", String(state.seed));
    if (state.folder) said.set("folder", state.folder);
  }
  if (state.show !== null) said.set("show", String(state.show));
  return `./${said.size ? `?${said}` : ""}${fragment}`;
}

/**
 * @param {State} state
 * @returns {URLSearchParams} the parameters of POST v1/search
 */
export function searchParameters(state) {
  const parameters = new URLSearchParams();
  append(parameters, state, ["k", ...changedOptions(state).filter((name) => name !== "k" && name !== "leaveOut")]);
  if (idsOf(state).length && state.leaveOut) parameters.set("leave_out_query", "1");
  parameters.set("sizes", "1");
  parameters.set("hashes", "1");
  return parameters;
}

/**
 * @param {State} state
 * @returns {FormData} the body of POST v1/search
 */
export function searchBody(state) {
  const form = new FormData();
  for (const id of idsOf(state)) form.append("id", String(id));
  if (isItem(state.query) && state.box) form.set("box", state.box.join(","));
  if (state.query && !isItem(state.query))
    for (const [name, value] of Object.entries(state.query)) form.set(name, String(value));
  return form;
}

/**
 * @param {State} state
 * @returns {boolean} whether something is searched; else the wall stands there
 */
export function isSearch(state) {
  return state.query !== null || state.ids.length > 0;
}

/**
 * @param {State} state
 * @returns {number[]} the pictures of the index that are searched with
 */
export function idsOf({ query, ids }) {
  return isItem(query) ? [query.id] : query ? [] : ids;
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
 * @returns {Omit<State, keyof Place>}
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
 * @param {URLSearchParams} fragment
 * @returns {VectorQuery | null}
 */
function readQuery(fragment) {
  const vector = fragment.get("v");
  return vector ? { vector: padded(vector), model: fragment.get("m") ?? "" } : null;
}

/**
 * @param {string | null} text
 * @returns {Box | null}
 */
function readBox(text) {
  const sides = (text ?? "").split(",").map(Number);
  const [left, top, right, bottom] = sides;
  const isBox = sides.length === 4 && 0 <= left && left < right && right <= 1 && 0 <= top && top < bottom && bottom <= 1;
  return isBox ? [left, top, right, bottom] : null;
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
