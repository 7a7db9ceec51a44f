/** Near-duplicates of the whole index: groups side by side, marks, and a list of the marked paths. */

import { announce, say } from "./announce.js";
import { Api, Refusal, Unreachable } from "./api.js";
import { copy } from "./clipboard.js";
import { byId, counted, fileSize, make } from "./dom.js";
import { Choices } from "./near-duplicates/choices.js";
import { Enlarged } from "./near-duplicates/enlarged.js";
import { shownBy } from "./near-duplicates/group.js";
import { GroupPages } from "./near-duplicates/group-pages.js";
import { line } from "./near-duplicates/words.js";
import { Session } from "./session.js";

const ADDRESS = "v1/near-duplicates";
const DEFAULT_DISTANCE = 0.05;
const FIRST_PAUSE = 150;
const LONGEST_PAUSE = 1000;
/** How often a search is started again that the server has given up. */
const RESTARTS = 3;
const PARTS = ["headline", "running", "notice"];

const session = new Session();
const api = new Api(
  () => session.ask(),
  (seconds) => say(`The server is busy; trying again in ${seconds} s.`),
);
/** The choices in each search, for the way back from another distance. @type {Map<string, Choices>} */
const allChoices = new Map();
let choices = new Choices({ pictures: 0, bytes: 0 });
let distance = readDistance();
let running = new AbortController();
let saved = true;

const actions = {
  mark: changing((group, id, marked) => choices.mark(group, id, marked)),
  markOthers: changing((group, marked) => choices.markOthers(group, marked)),
  keep: changing((group, id) => choices.keep(group, id)),
  enlarge: (/** @type {import("./near-duplicates/choices.js").Group} */ group, /** @type {number} */ id) =>
    enlarged.open(group, id),
};
const view = { api, actions, choices: () => choices, height: rowHeight() };
const pages = new GroupPages(byId("groups"), byId("more"), view, loadPage, fail);
const enlarged = new Enlarged(
  () => choices,
  actions,
  () => pages.refresh(),
);

/** Search at the distance of the address, and show the groups. */
async function refresh() {
  running.abort();
  running = new AbortController();
  const { signal } = running;
  pages.clear();
  showDistance();
  byId("marked").hidden = true;
  working(true);
  try {
    await session.begin(api, signal);
    show("running");
    const said = await searched(signal);
    signal.throwIfAborted();
    showGroups(said);
  } catch (error) {
    if (!signal.aborted) fail(error);
  }
  if (!signal.aborted) working(false);
}

/**
 * @param {AbortSignal} signal
 * @returns {Promise<any>} the first groups
 */
async function searched(signal) {
  for (let start = 1; ; start++) {
    showProgress(await api.json(address(), { method: "POST", signal }));
    try {
      for (let pause = FIRST_PAUSE; ; pause = Math.min(LONGEST_PAUSE, 1.5 * pause)) {
        const said = await api.json(address(), { signal });
        if (said.state === "done") return said;
        showProgress(said);
        await new Promise((resolve) => setTimeout(resolve, pause));
        signal.throwIfAborted();
      }
    } catch (error) {
      if (!(error instanceof Refusal && error.status === 404) || start === RESTARTS) throw error;
    }
  }
}

/**
 * @param {string} cursor
 * @param {number} limit
 */
async function loadPage(cursor, limit) {
  const { signal } = running;
  const said = await api.json(address({ cursor, limit: String(limit) }), { signal });
  signal.throwIfAborted();
  byId("outdated").hidden = !said.outdated;
  return said;
}

/** @param {any} said */
function showProgress({ done, total }) {
  const bar = byId("done");
  bar.max = Math.max(1, total);
  bar.value = done;
  byId("running-text").textContent = `${done.toLocaleString("en")} of ${counted(total, "picture")}`;
}

/** @param {any} said */
function showGroups({ groups, next, groups_total, pictures, bytes, outdated, index, total }) {
  const key = `${distance} ${groups_total} ${pictures} ${bytes}`;
  choices = allChoices.get(key) ?? new Choices({ pictures, bytes });
  allChoices.set(key, choices);
  const found = `${counted(pictures, "near-duplicate")} in ${counted(groups_total, "group")}`;
  const title = groups_total ? found : "No near-duplicates";
  byId("title").textContent = title;
  byId("manual").hidden = groups_total === 0;
  byId("saving").textContent = groups_total
    ? `${fileSize(bytes)} could be saved among ${counted(total, "picture")}.`
    : `No two of ${counted(total, "picture")} are at most ${distance} away from each other.`;
  byId("outdated").hidden = !outdated;
  document.title = `${title} · ${index}`;
  show("headline");
  byId("marked").hidden = groups_total === 0;
  pages.add(groups, next);
  showMarked();
  announce(title);
}

/** @param {unknown} error */
function fail(error) {
  if (error instanceof DOMException && error.name === "AbortError") return;
  const [title, text] =
    error instanceof Unreachable
      ? ["The server does not answer", `Nothing answers at ${location.host}. Check that deeprank-serve is running there.`]
      : error instanceof Refusal
        ? [error.status === 401 ? "A token is needed" : "The search is not possible", error.message]
        : ["Something went wrong", String(error)];
  pages.clear();
  byId("marked").hidden = true;
  byId("notice-title").textContent = title;
  byId("notice-text").textContent = text;
  byId("retry").textContent = error instanceof Refusal && error.status === 401 ? "Enter the token" : "Try again";
  document.title = `${title} · deeprank`;
  show("notice");
  announce(`${title}. ${text}`);
}

/** @param {...string} parts of main that are shown; the others are not */
function show(...parts) {
  for (const part of PARTS) byId(part).hidden = !parts.includes(part);
}

/** @param {boolean} busy */
function working(busy) {
  byId("main").setAttribute("aria-busy", String(busy));
  byId("progress").hidden = !busy;
}

/**
 * @template {any[]} A
 * @param {(...values: A) => void} change
 * @returns {(...values: A) => void} which shows the sum, too
 */
function changing(change) {
  return (...values) => {
    change(...values);
    saved = false;
    showMarked();
  };
}

function showMarked() {
  const { pictures, bytes } = choices.sum();
  byId("marked-count").textContent = `${counted(pictures, "picture")} marked`;
  byId("marked-bytes").textContent = pictures ? fileSize(bytes) : "";
  byId("copy-list").disabled = byId("save-list").disabled = pictures === 0;
  byId("mark-every").textContent = pictures ? "Unmark all" : "Mark the others of every group";
}

/** @returns {Promise<string>} the paths of the marked pictures, one a line */
async function list() {
  if (pages.next !== null && choices.reachesBeyond(pages.groups)) {
    say("Reading all groups …");
    await pages.loadAll();
  }
  const lines = pages.groups.flatMap((group) => choices.marked(group).map(line));
  return lines.join("\n") + "\n";
}

async function copyList() {
  const { pictures } = choices.sum();
  await copy(await list(), `List of ${counted(pictures, "path")}`);
  saved = true;
}

async function saveList() {
  const source = URL.createObjectURL(new Blob([await list()], { type: "text/plain" }));
  const link = make("a", { href: source, download: "near-duplicates.txt" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(source), 10_000);
  saved = true;
  say("List saved. The server deletes nothing.");
}

/** @param {Record<string, string>} more parameters */
function address(more = {}) {
  return `${ADDRESS}?${new URLSearchParams({ max_distance: String(distance), ...more })}`;
}

function readDistance() {
  const text = new URLSearchParams(location.search).get("max_distance");
  const number = Number(text);
  return text && number >= 0 && number <= 4 ? number : DEFAULT_DISTANCE;
}

function showDistance() {
  byId("distance").value = String(distance);
  for (const step of byId("distances").elements.namedItem("step")) step.checked = Number(step.value) === distance;
}

/** @param {number} next */
function choose(next) {
  if (next === distance) return;
  distance = next;
  history.pushState(null, "", `?${new URLSearchParams({ max_distance: String(distance) })}`);
  scrollTo({ top: 0 });
  refresh();
}

function rowHeight() {
  return matchMedia("(max-width: 47.99rem)").matches ? 128 : 176;
}

/**
 * Arrows lead from picture to picture; m marks, k keeps.
 * @param {KeyboardEvent} event
 */
function press(event) {
  const target = event.target instanceof Element ? event.target.closest(".twin-picture") : null;
  if (!target || event.ctrlKey || event.metaKey || event.altKey) return;
  const item = /** @type {HTMLElement} */ (target.closest(".twin"));
  const steps = { ArrowLeft: -1, ArrowRight: 1 };
  if (event.key in steps) step(target, steps[/** @type {"ArrowLeft" | "ArrowRight"} */ (event.key)]);
  else if (event.key === "ArrowUp" || event.key === "ArrowDown") leap(item, event.key === "ArrowUp" ? -1 : 1);
  else if (event.key === "m" || event.key === "k") choosePicture(item, event.key);
  else return;
  event.preventDefault();
}

/**
 * @param {Element} target
 * @param {number} by
 */
function step(target, by) {
  const all = [...byId("groups").querySelectorAll(".twin-picture")];
  all[all.indexOf(target) + by]?.focus();
}

/**
 * @param {HTMLElement} item
 * @param {number} by
 */
function leap(item, by) {
  const all = [...byId("groups").querySelectorAll(".group")];
  all[all.indexOf(item.closest(".group")) + by]?.querySelector(".twin-picture").focus();
}

/**
 * @param {HTMLElement} item
 * @param {string} key
 */
function choosePicture(item, key) {
  const shown = shownBy(item);
  if (!shown) return;
  const { group, picture } = shown;
  if (key === "k") actions.keep(group, picture.id);
  else if (choices.kept(group) !== picture.id) actions.mark(group, picture.id, !choices.isMarked(group, picture.id));
  pages.refresh();
}

byId("distances").addEventListener("change", (/** @type {Event} */ { target }) => {
  const field = /** @type {HTMLInputElement} */ (target);
  if (field.value !== "" && field.checkValidity()) choose(Number(field.value));
});
byId("distances").addEventListener("submit", (/** @type {SubmitEvent} */ event) => event.preventDefault());
byId("groups").addEventListener("keydown", press);
byId("mark-every").addEventListener("click", () => {
  changing(() => choices.markEvery(choices.sum().pictures === 0))();
  pages.refresh();
});
byId("copy-list").addEventListener("click", () => copyList().catch(fail));
byId("save-list").addEventListener("click", () => saveList().catch(fail));
byId("retry").addEventListener("click", refresh);
byId("again").addEventListener("click", refresh);
byId("forget").addEventListener("click", () => session.forget(api).then(() => location.reload(), fail));
for (const button of document.querySelectorAll("[data-close]")) {
  button.addEventListener("click", () => button.closest("dialog")?.close());
}
matchMedia("(max-width: 47.99rem)").addEventListener("change", () => {
  view.height = rowHeight();
});
addEventListener("popstate", () => {
  distance = readDistance();
  refresh();
});
addEventListener("beforeunload", (event) => {
  if (!saved && choices.sum().pictures > 0) event.preventDefault();
});
addEventListener("pageshow", (event) => event.persisted && location.reload());
refresh();
