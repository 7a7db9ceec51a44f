/** The page: what the address says is searched for, and what the user does becomes an address. */

import { announce, say } from "./announce.js";
import { Api, Refusal, Unreachable } from "./api.js";
import { copy } from "./clipboard.js";
import { byId, counted, fileSize, make } from "./dom.js";
import { listenForPictures } from "./drop-zone.js";
import { Gallery } from "./gallery/gallery.js";
import { Hits } from "./gallery/hits.js";
import { below, folderOf, Wall } from "./gallery/wall.js";
import { listenForKeys } from "./keys.js";
import { emptyIndex, failure, noMatch, showNotice } from "./notices.js";
import { Options } from "./options.js";
import * as previews from "./previews.js";
import { QueryPanel } from "./query-panel.js";
import { Marks, markByKeys } from "./rate/marks.js";
import { Outbox } from "./rate/outbox.js";
import { Session } from "./session.js";
import { lighter, shrink } from "./shrink.js";
import {
  idsOf,
  isItem,
  isSearch,
  K,
  readState,
  restrictions,
  searchBody,
  searchParameters,
  START,
  writeState,
} from "./state.js";
import { showSummary } from "./summary.js";
import { Picking } from "./viewer/picking.js";
import { Selection } from "./viewer/selection.js";
import { SelectionBar } from "./viewer/selection-bar.js";
import { Viewer } from "./viewer/viewer.js";

const MODEL_DIGITS = 12;
/** What a form adds to a file, at most; the limit is that of the whole. */
const FORM_BYTES = 1000;
const INFO_SERVES = 30_000;
const LOOK_AGAIN = 5000;
const REPEATS = 5;
const SCROLL_ENDS = 150;

const session = new Session();
const api = new Api(
  () => session.ask(),
  (seconds) => say(`The server is busy; trying again in ${seconds} s.`),
);
const queryPanel = new QueryPanel(api);
const options = new Options(change);
const selection = new Selection();
const outbox = new Outbox(api);
const marks = new Marks(api, outbox);
/** @type {string | undefined} the hash of the picture whose hits are shown, where they can be marked */
let queryHash;
const gallery = galleryIn(byId("grid"), (place) => viewer.open(gallery, place));
const viewer = new Viewer(api, selection, {
  record: recordLarge,
  search: searchItem,
  searchRegion: (id, box) => go({ ...state, query: { id }, ids: [], box, show: null }),
  searchCrop: (region, whole, box) => take(region, "", previews.previewOf(whole, box)),
  query: queryPicture,
  queryHash: () => queryHash,
  marks,
  queryName: () => (isSearch(state) ? fileNameOf(queryPanel.name) : ""),
  originals: () => Boolean(info?.originals),
  gallery: galleryIn,
});
new SelectionBar(selection, (ids) => go({ ...state, ...queryOf(ids), box: null, show: null }));
const wall = new Wall(api);
const ways = {
  retry: () => refresh(),
  choose: () => byId("file").click(),
  restart: () => go({ ...START }),
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
/** @type {number | undefined} */
let scrolling;
history.scrollRestoration = "manual";

/**
 * Show what the state asks for; what is under way for an older one is given up.
 * @param {{place: number, offset: number}} [position] of the gallery, where it was shown before
 */
async function refresh(position) {
  running.abort();
  running = new AbortController();
  const { signal } = running;
  clearInterval(polling);
  working(true);
  try {
    await attempt(signal, position);
  } catch (error) {
    if (!signal.aborted) fail(error);
  }
  if (!signal.aborted) working(false);
}

/**
 * @param {AbortSignal} signal
 * @param {{place: number, offset: number}} [position]
 */
async function attempt(signal, position) {
  if (pending) await showPending(pending, signal);
  await known(signal);
  if (info.items === 0) return notice(emptyIndex(info.index, ways));
  if (state.show !== null && !viewer.isOpen) viewer.follow(state.show);
  if (pending) await embed(pending, signal);
  if (isSearch(state)) await search(signal);
  else await browse(signal);
  signal.throwIfAborted();
  if (position) await gallery.restore(position);
  viewer.adopt(gallery);
  repeated = 0;
}

/** @param {AbortSignal} signal */
async function search(signal) {
  queryPanel.showQuery(state, signal);
  const asked = state;
  const ask = async (/** @type {number} */ k, /** @type {AbortSignal} */ until) => {
    const body = searchBody(asked);
    return api.json(`v1/search?${searchParameters({ ...asked, k })}`, { method: "POST", body, signal: until });
  };
  const answer = await ask(state.k, signal);
  const { query, hits, sha256 } = answer.results[0];
  queryHash = state.box ? undefined : sha256;
  marks.learn(queryHash);
  const most = state.k === K ? info.limits.max_k : state.k;
  const more = async (/** @type {number} */ k) => (await ask(k, signal)).results[0].hits;
  await showHits(query, new Hits(hits, state.k, most, more), state.farthest ? undefined : answer.unrelated_distance);
}

/** @param {AbortSignal} signal */
async function browse(signal) {
  queryHash = undefined;
  const { orders } = info.supports;
  const shown = orders.includes(state.order) ? state : { ...state, order: orders[0] };
  const source = wall.source(shown, info.items);
  await source.range(0, 1);
  signal.throwIfAborted();
  if (source.length === 0) return notice(noMatch(state, ways));
  const title = [counted(source.length, "picture"), ...restrictions(state)].join(" · ");
  document.title = `${info.index} · deeprank`;
  showGallery(title);
  await gallery.show(source, shown.order === "folder" ? { heading: folderHeading } : {});
  announce(title);
}

/**
 * @param {import("./gallery/tile.js").Item} item
 * @param {import("./gallery/tile.js").Item | null} before
 * @returns {import("./gallery/layout.js").Heading | null}
 */
function folderHeading(item, before) {
  const folder = folderOf(item);
  if (before && folderOf(before) === folder) return null;
  const narrower = below(item) !== state.folder ? writeState({ ...state, folder: below(item), show: null }) : undefined;
  return { text: folder, kind: "folder", href: narrower };
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
  byId("twins").hidden = !info.supports.near_duplicates; // shown before, so that the header does not move
  marks.allowed = info.supports.ratings && info.writes;
  byId("rate").hidden = !marks.allowed;
  if (marks.allowed) {
    outbox.open(info.index);
    outbox.send();
  }
  const most = fileSize(info.limits.max_upload_bytes);
  byId("choose").title = `Drop a picture anywhere, paste one, or choose a file: up to ${most}`;
}

/**
 * @param {Pending} picture
 * @param {AbortSignal} signal
 */
async function showPending({ file, preview }, signal) {
  const seen = await preview;
  signal.throwIfAborted();
  options.show(state, true);
  byId("query").hidden = false;
  byId("title").textContent = byId("remark").textContent = "";
  queryPanel.showFile(seen, fileSize(file.size));
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
  state = { ...state, query, ids: [], box: null, show: null };
  record();
}

/**
 * @param {File} file
 * @returns {Promise<Blob>} itself, or a smaller copy if it is large
 */
async function fitting(file) {
  const limit = info.limits.max_upload_bytes;
  if (file.size <= limit - FORM_BYTES) return lighter(file, info.model.picture_size);
  const sizes = `has ${fileSize(file.size)}, and this server accepts at most ${fileSize(limit)}`;
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

/**
 * @param {string} query the name that the server gives it
 * @param {Hits} hits
 * @param {number} [unrelatedDistance] where a line is drawn between the hits
 */
async function showHits(query, hits, unrelatedDistance) {
  if (hits.hits.length === 0) return notice(noMatch(state, ways));
  const name = idsOf(state).length === 1 ? query : queryPanel.name;
  const number = hits.isWhole ? counted(hits.length, "picture") : "Pictures";
  const relation = `${number} ${state.farthest ? "farthest from" : "nearest to"} `;
  const title = relation + name;
  const words = restrictions(state).join(" · ");
  document.title = `${title} · ${info.index}`;
  showGallery("");
  const lead = make("span", { className: "relation" }, relation);
  byId("title").replaceChildren(lead, make("bdi", { className: "name", title: name }, name));
  byId("remark").textContent = words;
  await gallery.show(hits.isWhole ? hits.hits : hits, { unrelatedDistance, query: queryHash });
  announce([title, words].filter(Boolean).join(", "));
}

/** @param {string} wallTitle which only screen readers need; the results have another one */
function showGallery(wallTitle) {
  byId("title").textContent = "";
  byId("wall-title").textContent = wallTitle;
  byId("notice").hidden = true;
  byId("query").hidden = !isSearch(state);
  byId("copy-link").hidden = false;
  byId("options").hidden = false;
  options.show(state);
}

/** @param {unknown} error */
function fail(error) {
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
  const searching = isSearch(state) || pending !== null;
  byId("grid").hidden = true;
  byId("title").textContent = byId("wall-title").textContent = byId("remark").textContent = "";
  byId("query").hidden = !searching;
  byId("copy-link").hidden = !isSearch(state);
  byId("options").hidden = !info?.items;
  options.show(state, searching);
  document.title = `${what.title} · deeprank`;
  showNotice(what);
  if (held) byId("notice").querySelector("button")?.focus();
}

/** @param {unknown} error for which a part of the pictures did not come */
function sayFault(error) {
  if (error instanceof Refusal || error instanceof Unreachable) say(error.message);
  else if (!(error instanceof DOMException)) throw error; // what another search has ended is no fault
}

/** @param {boolean} busy */
function working(busy) {
  byId("main").setAttribute("aria-busy", String(busy));
  byId("progress").hidden = !busy;
}

/** @param {Partial<import("./state.js").State>} changes of the options, which leave a picture that waits as it is */
function change(changes) {
  state = { ...state, ...changes, show: null };
  options.show(state, isSearch(state) || pending !== null);
  record();
  scrollTo({ top: 0 });
  refresh();
}

/** @param {import("./state.js").State} next */
function go(next) {
  pending = null;
  state = next;
  viewer.leave();
  record();
  scrollTo({ top: 0 });
  refresh();
}

/** Let the address say the state, unless it does already. */
function record() {
  const address = new URL(writeState(state), location.href).href;
  if (address === location.href) return;
  rememberPosition();
  history.pushState(null, "", address);
}

/** Let the way back lead to what is on the screen now. */
function rememberPosition() {
  clearTimeout(scrolling);
  if (!byId("grid").hidden) history.replaceState({ ...history.state, position: gallery.position() }, "");
}

/** @param {number} id */
function searchItem(id) {
  go({ ...state, query: { id }, ids: [], box: null, show: null });
}

/** @param {number} id */
function addressOf(id) {
  return writeState({ ...state, query: { id }, ids: [], box: null, show: null });
}

/**
 * @param {HTMLElement} list
 * @param {(place: number) => void} show a picture large
 */
function galleryIn(list, show) {
  const picking = new Picking(list, selection, () => byId("single-keys").checked);
  const actions = { address: addressOf, open: show, fail: sayFault, marks, ...picking.actions };
  const made = new Gallery(list, api, actions);
  picking.gallery = made;
  markByKeys(list, made, () => byId("single-keys").checked);
  marks.addEventListener("change", () => made.showMarks());
  return made;
}

/**
 * Let the address say which picture is large.
 * @param {number | null} show
 * @param {{replace: boolean, mark: object}} entry
 */
function recordLarge(show, { replace, mark }) {
  state = { ...state, show };
  if (!replace) rememberPosition();
  const data = replace ? { ...history.state, ...mark } : mark;
  history[replace ? "replaceState" : "pushState"](data, "", writeState(state));
}

/** @param {number[]} ids */
function queryOf(ids) {
  return ids.length === 1 ? { query: { id: ids[0] }, ids: [] } : { query: null, ids };
}

/** @returns {import("./viewer/compare.js").Choice | null} the one picture that is searched with, if it can be shown */
function queryPicture() {
  const ids = idsOf(state);
  if (ids.length > 1) return null;
  if (ids.length) {
    const picture = { key: String(ids[0]), id: ids[0], alt: queryPanel.name };
    return { name: fileNameOf(queryPanel.name), picture, box: state.box };
  }
  const preview = state.query && !isItem(state.query) ? previews.recall(state.query.vector) : undefined;
  const url = preview && previews.addressOf(preview);
  if (!preview || !url) return null;
  const picture = { key: url, url, alt: preview.name };
  return { name: preview.name, picture, box: preview.box ?? null, file: preview.file };
}

/** @param {string} path */
function fileNameOf(path) {
  return path.slice(path.lastIndexOf("/") + 1);
}

/** @param {boolean} draws whether a region of it is drawn */
function openQuery(draws) {
  const query = pending ? null : queryPicture();
  if (query) viewer.openQuery(query, draws);
}

/**
 * @param {File} file
 * @param {string} remark
 * @param {Promise<previews.Preview>} [preview]
 */
function take(file, remark, preview = previews.previewOf(file)) {
  viewer.leave();
  closeDialogs();
  if (remark) say(remark);
  state = { ...state, show: null };
  pending = { file, preview };
  scrollTo({ top: 0 });
  refresh();
}

function closeDialogs() {
  /** @type {NodeListOf<HTMLDialogElement>} */
  const open = document.querySelectorAll("dialog[open]:not(#sign-in)");
  for (const dialog of open) dialog.close();
}

function arrive() {
  const next = readState(location);
  const isSame = contentOf(next) === contentOf(state) && !pending && byId("notice").hidden;
  state = next;
  if (isSame || state.show !== null) viewer.follow(state.show);
  else viewer.leave();
  if (isSame) return;
  pending = null;
  refresh(history.state?.position);
}

/** @param {import("./state.js").State} shown */
function contentOf(shown) {
  return writeState({ ...shown, show: null });
}

let problem = "";
outbox.addEventListener("change", () => {
  if (outbox.problem !== problem && outbox.problem) say(outbox.problem);
  problem = outbox.problem;
});
outbox.addEventListener("refused", (event) => say(/** @type {CustomEvent} */ (event).detail.error.message));
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
byId("leave").addEventListener("click", (/** @type {MouseEvent} */ event) => {
  if (event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  go({ ...state, query: null, ids: [], box: null, show: null });
});
byId("query-region").addEventListener("click", () => openQuery(true));
byId("query-picture").addEventListener("click", () => openQuery(false));
byId("grid").addEventListener("click", (/** @type {MouseEvent} */ event) => {
  const link = /** @type {Element} */ (event.target).closest(".section a");
  if (!(link instanceof HTMLAnchorElement) || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  go(readState(link));
});
addEventListener("popstate", arrive);
document.addEventListener("scroll", () => {
  clearTimeout(scrolling);
  scrolling = setTimeout(rememberPosition, SCROLL_ENDS);
});
addEventListener("online", () => byId("notice").hidden || refresh());
// A page that the browser kept may be older than a token that was forgotten.
addEventListener("pageshow", (event) => event.persisted && location.reload());
options.show(state);
refresh(history.state?.position);
