/** What stands in the place of results: why there are none, and what to do. */

import { Refusal, Unreachable } from "./api.js";
import { announce } from "./announce.js";
import { byId, make } from "./dom.js";
import { changedOptions, INITIAL, isItem, OPTIONS } from "./state.js";

/**
 * @typedef {object} Notice
 * @property {string} title
 * @property {string} text
 * @property {string} [command]
 * @property {{text: string, action: () => void}[]} [buttons] the first one is the likeliest
 *
 * @typedef {object} Ways what a notice may offer
 * @property {() => void} retry
 * @property {() => void} choose
 * @property {() => void} restart
 * @property {(changes: Partial<import("./state.js").State>) => void} change
 */

/** @param {Notice} notice */
export function showNotice({ title, text, command = "", buttons = [] }) {
  byId("notice-title").textContent = title;
  byId("notice-text").textContent = text;
  byId("notice-command").textContent = command;
  byId("notice-command").hidden = !command;
  byId("notice-buttons").replaceChildren(
    ...buttons.map(({ text, action }, place) => {
      const button = make("button", { type: "button", className: place ? "" : "primary" }, text);
      button.addEventListener("click", action);
      return button;
    }),
  );
  byId("notice").hidden = false;
  announce(`${title}. ${text}`);
}

/**
 * @param {string} index
 * @param {Ways} ways
 * @returns {Notice}
 */
export function emptyIndex(index, ways) {
  return {
    title: "This index holds no pictures yet",
    text: "Add a folder of pictures on the machine that holds the index:",
    command: `deeprank-index sync FOLDER --index ${index}`,
    buttons: [{ text: "Look again", action: ways.retry }],
  };
}

/**
 * @param {import("./state.js").State} state
 * @param {Ways} ways
 * @returns {Notice}
 */
export function noMatch(state, ways) {
  const filters = changedOptions(state).filter((name) => OPTIONS[name].loosen);
  const buttons = filters.map((name) => ({
    text: OPTIONS[name].loosen.button,
    action: () => ways.change({ [name]: INITIAL[name] }),
  }));
  if (buttons.length === 0) {
    return {
      title: "No other picture",
      text: "The index holds only this picture.",
      buttons: [{ text: "Another picture", action: ways.choose }],
    };
  }
  const without = filters.map((name) => OPTIONS[name].loosen.text(state[name])).join("");
  return { title: "No picture matches", text: `The index has none${without}. Loosen a filter:`, buttons };
}

/**
 * @param {unknown} error
 * @param {import("./state.js").State} state
 * @param {File | undefined} file that was to be searched with, and is not embedded yet
 * @param {Ways} ways
 * @returns {Notice}
 */
export function failure(error, state, file, ways) {
  const retry = { text: "Try again", action: ways.retry };
  const choose = { text: "Choose another picture", action: ways.choose };
  const restart = { text: "Start again", action: ways.restart };
  if (error instanceof Unreachable) {
    const check = "Check that deeprank-serve is running there; this page then continues automatically.";
    const text = `Nothing answers at ${location.host}. ${check}`;
    return { title: "The server does not answer", text, buttons: [retry] };
  }
  if (!(error instanceof Refusal))
    return { title: "Something went wrong", text: String(error), buttons: [retry, restart] };
  const text = error.message;
  switch (error.status) {
    case 401:
      return { title: "A token is needed", text, buttons: [{ ...retry, text: "Enter the token" }] };
    case 404:
      if (!isItem(state.query)) break;
      return {
        title: "This picture is no longer in the index",
        text: `${text} A picture that has changed since the link was made has a new id. Search with the picture itself.`,
        buttons: [choose, restart],
      };
    case 409:
      return {
        title: "This link belongs to another model",
        text: `${text} Search with the picture itself.`,
        buttons: [choose, restart],
      };
    case 503:
      return { title: "The server cannot search at the moment", text, buttons: [retry] };
  }
  if (file) return { title: `${file.name} cannot be searched with`, text, buttons: [choose] };
  const reset = { text: "Reset the options", action: () => ways.change({ ...INITIAL }) };
  const first = changedOptions(state).length ? reset : retry;
  return { title: "This search is not possible", text, buttons: [first, restart] };
}
