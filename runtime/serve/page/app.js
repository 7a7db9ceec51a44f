/** The page: what the address says is searched for, and what the user does becomes an address. */

import { announce, say } from "./announce.js";
import { Api, Refusal, Unreachable } from "./api.js";
import { copy } from "./clipboard.js";
import { byId, counted } from "./dom.js";
import { listenForPictures } from "./drop-zone.js";
import { Grid } from "./grid.js";
import { listenForKeys } from "./keys.js";
import { emptyIndex, failure, noMatch, showNotice } from "./notices.js";
import { Options } from "./options.js";
import * as previews from "./previews.js";
import { QueryPanel } from "./query-panel.js";
import { showSamples } from "./samples.js";
import { Session } from "./session.js";
import { shrink } from "./shrink.js";
import { INITIAL, isItem, readState, restrictions, searchBody, searchParameters, writeState } from "./state.js";
import { showSummary } from "./summary.js";
import { Viewer } from "./viewer.js";

const MODEL_DIGITS = 12;
/** What a form adds to a file, at most; the limit is that of the whole. */
const FORM_BYTES = 1000;
const INFO_SERVES = 30_000;
const LOOK_AGAIN = 5000;
const REPEATS = 5;
const PARTS = ["start", "notice", "grid", "headline"];

const session = new Session();
const api = new Api(
  () => session.ask(),
  (seconds) => say(`The server is busy; trying again in ${seconds} s.`),
);
const queryPanel = new QueryPanel(api);
const options = new Options(change);
const grid = new Grid(api, { address: addressOf, search: searchItem, enlarge: (place) => viewer.open(place) });
const viewer = new Viewer(api, queryPanel, grid, searchItem);
const ways = {
  retry: refresh,
  choose: () => byId("file").click(),
  restart: () => go({ query: null, ...INITIAL }),
  change,
};

let state = readState(location);
/** @type {any} */
let info = null;
let learnt = 0;
/**
 * A picture whose embedding is not known yet.
 * @typedef {{file: File, preview: Promise<previews.Preview>}} Pending
 * @type {Pending | null}
 */
let pending = null;
let running = new AbortController();
/** @type {number | undefined} */
let polling;
let repeated = 0;

/** Show what the state asks for; what is under way for an older one is given up. */
async function refresh() {
  running.abort();
  running = new AbortController();
  const { signal } = running;
  clearInterval(polling);
  working(true);
  try {
    await attempt(signal);
  } catch (error) {
    if (!signal.aborted) fail(error);
  }
  if (!signal.aborted) working(false);
}

/** @param {AbortSignal} signal */
async function attempt(signal) {
  if (pending) await showPending(pending, signal);
  await known(signal);
  if (info.items === 0) return notice(emptyIndex(info.index, ways));
  if (pending) await embed(pending, signal);
  if (!state.query) return begin(signal);
  byId("side").hidden = false;
  queryPanel.showQuery(state.query, signal);
  const body = searchBody(state.query);
  const answer = await api.json(`v1/search?${searchParameters(state)}`, { method: "POST", body, signal });
  showAnswer(answer.results[0], state.farthest ? undefined : answer.unrelated_distance);
  repeated = 0;
}

/**
 * Know what the index is. A sync may have changed it: what is old is learnt anew while it still serves.
 * @param {AbortSignal} signal
 */
async function known(signal) {
  if (!info) await session.begin(api, signal);
  if (!info?.items) await learn(signal);
  else if (performance.now() - learnt > INFO_SERVES) learn(signal).catch(() => {});
}

/** @param {AbortSignal} signal */
async function learn(signal) {
  info = await api.json("v1/info", { signal });
  learnt = performance.now();
  showSummary(info);
  options.know(state, info);
  byId("start-limit").textContent = `Up to ${megabytes(info.limits.max_upload_bytes)}.`;
}

/**
 * @param {Pending} picture
 * @param {AbortSignal} signal
 */
async function showPending({ file, preview }, signal) {
  const seen = await preview;
  signal.throwIfAborted();
  byId("side").hidden = false;
  byId("start").hidden = true;
  queryPanel.showFile(seen, megabytes(file.size));
}

/**
 * @param {Pending} picture
 * @param {AbortSignal} signal
 */
async function embed({ file, preview }, signal) {
  await refuseUnreadable(file);
  const body = new FormData();
  body.set("image", await fitting(file), file.name);
  signal.throwIfAborted();
  const answer = await api.json("v1/embed", { method: "POST", body, signal });
  const query = { vector: answer.base64, model: answer.model.sha256.slice(0, MODEL_DIGITS) };
  await previews.remember(query.vector, await preview);
  signal.throwIfAborted();
  pending = null;
  state = { ...state, query };
  record();
}

/**
 * @param {File} file
 * @returns {Promise<Blob>} itself, or a smaller copy if it is larger than the server takes
 */
async function fitting(file) {
  const limit = info.limits.max_upload_bytes;
  if (file.size <= limit - FORM_BYTES) return file;
  const sizes = `has ${megabytes(file.size)}, and this server accepts at most ${megabytes(limit)}`;
  try {
    const { copy, side } = await shrink(file, limit - FORM_BYTES);
    say(`${file.name} ${sizes}: searching with a copy of ${side.toLocaleString("en")} pixels.`);
    return copy;
  } catch {
    throw new Refusal(413, `It ${sizes}. This browser cannot make it smaller. Make it smaller, and try again.`);
  }
}

/** @param {File} file */
async function refuseUnreadable(file) {
  if (file.size === 0) throw new Refusal(422, "The file is empty.");
  const readable = await file
    .slice(0, 1)
    .arrayBuffer()
    .then(Boolean, () => false);
  if (!readable) throw new Refusal(422, "The file can no longer be read. Choose it again.");
}

/** @param {AbortSignal} signal */
function begin(signal) {
  document.title = `${info.index} · deeprank`;
  byId("side").hidden = true;
  show("start");
  showSamples(api, info, addressOf, searchItem, signal).catch(() => {
    byId("samples").hidden = true;
  });
}

/**
 * @param {{query: string, hits: import("./grid.js").Hit[]}} answer
 * @param {number} [unrelatedDistance] where a line is drawn between the hits
 */
function showAnswer({ query, hits }, unrelatedDistance) {
  if (hits.length === 0) return notice(noMatch(state, ways));
  const name = isItem(state.query) ? query : queryPanel.name;
  show("headline", "grid");
  const title = `${counted(hits.length, "picture")} ${state.farthest ? "farthest from" : "nearest to"} ${name}`;
  byId("title").textContent = title;
  const words = restrictions(state).join(" · ");
  byId("remark").textContent = words;
  document.title = `${title} · ${info.index}`;
  grid.show(hits, unrelatedDistance);
  announce([title, words].filter(Boolean).join(", "));
}

/** @param {unknown} error */
function fail(error) {
  byId("side").hidden = !state.query && !pending;
  notice(failure(error, state, pending?.file, ways));
  if (error instanceof Unreachable) polling = setInterval(lookAgain, LOOK_AGAIN);
}

async function lookAgain() {
  if (document.hidden) return;
  const answered = await fetch("v1/session").then(
    (response) => response.ok,
    () => false,
  );
  if (!answered || repeated === REPEATS) return;
  repeated += 1;
  refresh();
}

/** @param {import("./notices.js").Notice} what */
function notice(what) {
  const held = byId("main").contains(document.activeElement);
  show("notice");
  document.title = `${what.title} · deeprank`;
  showNotice(what);
  if (held) byId("notice").querySelector("button")?.focus();
}

/** @param {...string} parts of main that are shown; the others are not */
function show(...parts) {
  for (const part of PARTS) byId(part).hidden = !parts.includes(part);
  byId("copy-link").hidden = state.query === null;
}

/** @param {boolean} busy */
function working(busy) {
  byId("main").setAttribute("aria-busy", String(busy));
  byId("progress").hidden = !busy;
}

/** @param {Partial<import("./state.js").State>} changes of the options, which leave a picture that waits as it is */
function change(changes) {
  state = { ...state, ...changes };
  options.show(state);
  record();
  refresh();
}

/** @param {import("./state.js").State} next */
function go(next) {
  pending = null;
  state = next;
  options.show(state);
  record();
  scrollTo({ top: 0 });
  refresh();
}

/** Let the address say the state, unless it does already. */
function record() {
  const address = new URL(writeState(state), location.href).href;
  if (address !== location.href) history.pushState(null, "", address);
}

/** @param {number} id */
function searchItem(id) {
  go({ ...state, query: { id } });
}

/** @param {number} id */
function addressOf(id) {
  return writeState({ ...state, query: { id } });
}

/**
 * @param {File} file
 * @param {string} remark
 */
function take(file, remark) {
  closeDialogs();
  if (remark) say(remark);
  pending = { file, preview: previews.previewOf(file) };
  scrollTo({ top: 0 });
  refresh();
}

function closeDialogs() {
  /** @type {NodeListOf<HTMLDialogElement>} */
  const open = document.querySelectorAll("dialog[open]:not(#sign-in)");
  for (const dialog of open) dialog.close();
}

/** @param {number} bytes */
function megabytes(bytes) {
  return bytes < 100_000
    ? counted(bytes, "byte")
    : `${(bytes / 1e6).toLocaleString("en", { maximumFractionDigits: 1 })} MB`;
}

function arrive() {
  state = readState(location);
  pending = null;
  options.show(state);
  refresh();
}

listenForPictures(take, say);
listenForKeys({ "/": () => options.focusLabels(), o: ways.choose, "?": () => byId("help-text").showModal() });
for (const button of document.querySelectorAll("[data-close]")) {
  button.addEventListener("click", () => button.closest("dialog")?.close());
}
byId("help").addEventListener("click", () => byId("help-text").showModal());
byId("about").addEventListener("click", () => byId("summary").showModal());
byId("copy-link").addEventListener("click", () => copy(location.href, "Link"));
byId("forget").addEventListener("click", () => {
  session.forget(api).then(() => {
    previews.forget();
    location.replace("./"); // so does the page, of everything that it shows
  }, fail);
});
byId("home").addEventListener("click", (/** @type {MouseEvent} */ event) => {
  if (event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  ways.restart();
});
byId("skip").addEventListener("click", (/** @type {MouseEvent} */ event) => {
  event.preventDefault();
  byId("main").focus();
});
addEventListener("popstate", arrive);
addEventListener("online", () => byId("notice").hidden || refresh());
// A page that the browser kept may be older than a token that was forgotten.
addEventListener("pageshow", (event) => event.persisted && location.reload());
refresh();
