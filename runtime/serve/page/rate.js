/** Questions to a rater: which of two pictures is more like a third one? */

import { announce, say } from "./announce.js";
import { Api, Refusal, Unreachable } from "./api.js";
import { copy } from "./clipboard.js";
import { byId } from "./dom.js";
import { listenForKeys } from "./keys.js";
import { emptyIndex, showNotice } from "./notices.js";
import { Outbox } from "./rate/outbox.js";
import { Shown, described } from "./rate/question.js";
import { rater, rememberRater } from "./rate/rater.js";
import { closeLesson, showAgreement, showCount } from "./rate/tally.js";
import { Session } from "./session.js";

/** Questions of one request, and how few are left when more are asked for. */
const AT_ONCE = 12;
const FEW = 6;
/** Questions whose pictures are asked for before they are shown. */
const AHEAD = 2;
/** A second tap within this time is one on the question before. */
const TOO_FAST_MS = 200;
/** The agreement is asked for after so many answers. */
const OFTEN = 5;
/** Answers that can be taken back; the same questions come again only as repeats. */
const KEPT = 20;

/**
 * @typedef {import("./rate/outbox.js").Answer} Answer
 * @typedef {import("./rate/question.js").Side} Side
 * @typedef {import("./rate/question.js").Question} Question
 */

const session = new Session();
const api = new Api(
  () => session.ask(),
  (seconds) => say(`The server is busy; trying again in ${seconds} s.`),
);
const outbox = new Outbox(api);
/** @type {any} */
let info = null;
/** @type {Shown | null} */
let current = null;
let shownAt = 0;
/** @type {Shown[]} that come next */
let upcoming = [];
/** @type {{shown: Shown, key: string, given: Answer}[]} the latest ones, with their answers and the keys of these */
const answered = [];
/** Ratings that the server counts. */
let ratings = 0;
let answers = 0;
/** Ratings that the server has acknowledged. */
let acknowledged = 0;
/** Whether the server did not answer the last question for questions. */
let isAway = false;
/** @type {Promise<void> | null} */
let filling = null;

/** Learn what the index is, and ask the first question. */
async function begin() {
  isAway = false;
  hideNotice();
  working(true);
  try {
    await session.begin(api, new AbortController().signal);
    info = await api.json("v1/info");
    const reason = refusal();
    if (reason) return stop(reason);
    byId("tally").hidden = false;
    outbox.open(info.index);
    outbox.send();
    learnAgreement();
    await next();
  } catch (error) {
    failNext(error);
  } finally {
    working(false);
  }
}

/** @returns {import("./notices.js").Notice | null} why there are no questions */
function refusal() {
  const { index, items, supports, writes } = info;
  if (!supports.ratings) {
    return { title: "This index takes no ratings", text: "Its pictures are in a store. Ratings need an index folder." };
  }
  if (!writes) {
    return {
      title: "This server takes no ratings",
      text: "Start it so that it may write to the index:",
      command: `deeprank-serve --index ${index} --token-file token --allow-writes`,
    };
  }
  if (items === 0) return emptyIndex(index, { retry: begin, choose: begin, restart: begin, change: begin });
  return null;
}

/** Show the next question, and have further ones. */
async function next() {
  if (upcoming.length === 0) {
    working(true);
    await fill().finally(() => working(false));
  } else if (upcoming.length < FEW) fill().catch(() => {}); // asked for again with the next question
  if (current) return; // an undo has asked its question again
  const shown = upcoming.shift();
  if (!shown) return stop(nothingLeft());
  show(shown);
  prepare();
}

/** @returns {Promise<void>} one for all who wait */
function fill() {
  filling ??= ask().finally(() => {
    filling = null;
  });
  return filling;
}

async function ask() {
  const before = acknowledged;
  const said = await api.json(`v1/ratings/questions?count=${AT_ONCE}`);
  count(acknowledged === before ? said.ratings : ratings); // the later one of two numbers
  const known = new Set([...(current ? [current] : []), ...upcoming, ...answered.map(({ shown }) => shown)].map(({ key }) => key));
  const all = said.questions.map((/** @type {Question} */ question) => new Shown(question, api));
  upcoming.push(...all.filter((/** @type {Shown} */ { key }) => !known.has(key)));
  prepare();
}

/** Ask for the pictures of the next questions. */
function prepare() {
  for (const shown of upcoming.slice(0, AHEAD)) shown.parts;
}

/** @param {Shown} shown */
function show(shown) {
  current = shown;
  shownAt = performance.now();
  for (const side of /** @type {const} */ (["query", "first", "second"])) byId(side).replaceChildren(...shown.parts[side]);
  const { query, first, second } = shown.question;
  byId("choose-first").ariaLabel = `The first: ${described(first)}`;
  byId("choose-second").ariaLabel = `The second: ${described(second)}`;
  hideNotice();
  byId("question").hidden = false;
  byId("skip-question").disabled = false;
  byId("undo").disabled = answered.length === 0;
  announce(`Which is more like ${described(query)}: ${described(first)}, or ${described(second)}?`);
}

/** @param {Side} side that is more like the query */
function answer(side) {
  if (current) take({ comparisons: [current.comparison(side)] });
}

function skip() {
  if (current) take({ skipped: [current.skipped()] });
}

/** @param {Answer} content */
function take(content) {
  if (!current || performance.now() - shownAt < TOO_FAST_MS) return;
  const given = { ...content, rater: rater() };
  answered.push({ shown: current, key: outbox.answer(given), given });
  if (answered.length > KEPT) answered.shift();
  answers += 1;
  current = null;
  next().catch(failNext);
}

/** Take the latest answer back, and ask its question again. */
function undo() {
  const last = answered.pop();
  if (!last) return;
  outbox.undo(last.key, last.given);
  if (current) upcoming.unshift(current);
  isAway = false; // there is a question, whatever became of those that were asked for
  show(last.shown);
}

/** @param {number} [said] how many ratings the server counts */
function count(said = ratings) {
  ratings = said;
  showCount(Math.max(0, ratings + outbox.uncounted), info.index);
}

async function learnAgreement() {
  const said = await api.json("v1/ratings", { tries: 1 }).catch(() => null);
  if (said) showAgreement(said.agreement);
}

/** @returns {import("./notices.js").Notice} */
function nothingLeft() {
  if (answered.length || ratings) {
    const buttons = [{ text: "Look again", action: begin }];
    return { title: "No more questions", text: "The index has no other pictures to compare.", buttons };
  }
  return {
    title: "Too few pictures to compare",
    text: "A question needs three pictures that do not look the same. Add pictures to the index.",
    buttons: [{ text: "Look again", action: begin }],
  };
}

/** @param {import("./notices.js").Notice} why there is no question */
function stop(why) {
  const held = isHeld();
  current = null;
  byId("question").hidden = true;
  byId("skip-question").disabled = true;
  byId("undo").disabled = answered.length === 0;
  showNotice(why);
  if (held) (byId("notice").querySelector("button") ?? byId("main")).focus();
}

/** @returns {boolean} whether the focus is where it cannot stay without a question */
function isHeld() {
  const held = document.activeElement;
  const isOff = held === byId("skip-question") || (held === byId("undo") && answered.length === 0);
  return isOff || byId("main").contains(held);
}

function hideNotice() {
  if (byId("notice").contains(document.activeElement)) byId("main").focus();
  byId("notice").hidden = true;
}

/** @param {unknown} error for which there is no next question, unless an undo has asked one again */
function failNext(error) {
  if (!current) fail(error);
}

/** @param {unknown} error */
function fail(error) {
  const retry = { text: "Try again", action: begin };
  isAway = error instanceof Unreachable;
  if (isAway) {
    const text = `Nothing answers at ${location.host}. Check that deeprank-serve is running there.`;
    stop({ title: "The server does not answer", text, buttons: [retry] });
  } else if (error instanceof Refusal && error.status === 401)
    stop({ title: "A token is needed", text: error.message, buttons: [{ ...retry, text: "Enter the token" }] });
  else if (error instanceof Refusal) stop({ title: "There are no questions at the moment", text: error.message, buttons: [retry] });
  else stop({ title: "Something went wrong", text: String(error), buttons: [retry] });
}

/** Say what the server has not acknowledged. */
function showUnsent() {
  const { problem } = outbox;
  byId("unsent").hidden = !problem;
  if (byId("unsent-text").textContent !== problem) byId("unsent-text").textContent = problem;
  count();
}

/** @param {boolean} busy */
function working(busy) {
  byId("main").setAttribute("aria-busy", String(busy));
  byId("progress").hidden = !busy;
}

/** @param {KeyboardEvent} event */
function press(event) {
  const busy = event.ctrlKey || event.metaKey || event.altKey || event.shiftKey || event.defaultPrevented;
  const target = /** @type {Element} */ (event.target);
  if (busy || document.querySelector("dialog[open]") || target.closest("input, pre")) return;
  /** @type {Record<string, () => void>} */
  const actions = {
    ArrowLeft: () => answer("first"),
    ArrowRight: () => answer("second"),
    ArrowDown: skip,
    Backspace: undo,
    Escape: () => location.assign("./"),
  };
  if (!Object.hasOwn(actions, event.key)) return;
  event.preventDefault();
  if (!event.repeat) actions[event.key]();
}

/**
 * Let a button that is held down act once: the browser would press it again and again.
 * @param {KeyboardEvent} event
 */
function holdBack(event) {
  const target = /** @type {Element} */ (event.target);
  if (event.repeat && ["Enter", " "].includes(event.key) && target.closest("button")) event.preventDefault();
}

outbox.addEventListener("change", () => info && showUnsent());
outbox.addEventListener("sent", (event) => {
  const { said } = /** @type {CustomEvent} */ (event).detail;
  ratings = said.ratings;
  acknowledged += 1;
  if (answers % OFTEN === 0) learnAgreement();
  if (isAway && !current) begin(); // it answers again
});
outbox.addEventListener("refused", (event) => say(/** @type {CustomEvent} */ (event).detail.error.message));
document.addEventListener("keydown", holdBack, true);
document.addEventListener("keydown", press);
listenForKeys({
  1: () => answer("first"),
  2: () => answer("second"),
  s: skip,
  u: undo,
  "?": () => byId("help-text").showModal(),
});
rememberRater(byId("rater"));
byId("choose-first").addEventListener("click", () => answer("first"));
byId("choose-second").addEventListener("click", () => answer("second"));
byId("skip-question").addEventListener("click", skip);
byId("undo").addEventListener("click", undo);
byId("send").addEventListener("click", () => outbox.send());
byId("lesson-close").addEventListener("click", closeLesson);
byId("lesson-copy").addEventListener("click", () => copy(byId("lesson-command").textContent, "Command"));
byId("help").addEventListener("click", () => byId("help-text").showModal());
byId("forget").addEventListener("click", () => session.forget(api).then(() => location.reload(), fail));
for (const button of document.querySelectorAll("[data-close]")) {
  button.addEventListener("click", () => button.closest("dialog")?.close());
}
addEventListener("online", () => current || begin());
addEventListener("pageshow", (event) => event.persisted && location.reload());
begin();
