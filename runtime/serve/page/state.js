/** What is being searched for, and how; and the address that says so. */

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

/** @type {Omit<State, "query">} */
export const INITIAL = {
  k: 50,
  farthest: false,
  labels: [],
  unique: null,
  maxDistance: null,
  exact: false,
  leaveOut: true,
};

/**
 * @param {{search: string, hash: string}} address
 * @returns {State} what it cannot read is as it is initially
 */
export function readState({ search, hash }) {
  const said = new URLSearchParams(search);
  const farthest = isTrue(said.get("farthest"));
  return {
    query: readQuery(said, new URLSearchParams(hash.slice(1))),
    k: whole(said.get("k")) || INITIAL.k,
    farthest,
    labels: [...new Set(said.getAll("label"))],
    unique: distance(said.get("unique")),
    maxDistance: farthest ? null : distance(said.get("max_distance")),
    exact: isTrue(said.get("exact")),
    leaveOut: isTrue(said.get("leave_out_query") ?? "true"),
  };
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
  if (state.query || state.k !== INITIAL.k) said.set("k", String(state.k));
  if (state.farthest) said.set("farthest", "1");
  if (state.exact) said.set("exact", "1");
  if (!state.leaveOut) said.set("leave_out_query", "0");
  common(state, said);
  return `./${said.size ? `?${said}` : ""}${fragment}`;
}

/**
 * @param {State} state
 * @returns {URLSearchParams} the parameters of POST v1/search
 */
export function searchParameters(state) {
  const asked = new URLSearchParams({ k: String(state.k) });
  if (state.farthest) asked.set("farthest", "true");
  if (state.exact) asked.set("exact", "true");
  if (isItem(state.query) && state.leaveOut) asked.set("leave_out_query", "true");
  common(state, asked);
  return asked;
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
 * @returns {number} how many options restrict what is found
 */
export function restrictions(state) {
  return Number(state.labels.length > 0) + Number(state.unique !== null) + Number(state.maxDistance !== null);
}

/**
 * @param {State} state
 * @param {URLSearchParams} target
 */
function common(state, target) {
  for (const label of state.labels) target.append("label", label);
  if (state.unique !== null) target.set("unique", String(state.unique));
  if (state.maxDistance !== null) target.set("max_distance", String(state.maxDistance));
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
