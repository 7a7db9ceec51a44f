/** The access token: asked once, given to the server, and kept by nobody but the browser's cookie. */

import { Refusal } from "./api.js";
import { byId } from "./dom.js";

const ADDRESS = "v1/session";

export class Session {
  constructor() {
    /** @type {Promise<void> | null} */
    this.asking = null;
    this.dialog = byId("sign-in");
    this.field = byId("token");
    this.error = byId("sign-in-error");
  }

  /**
   * Ask for the token if the server wants one; it resolves once that is settled.
   * @param {import("./api.js").Api} api
   * @param {AbortSignal} signal
   */
  async begin(api, signal) {
    const said = await api.json(ADDRESS, { signal });
    byId("forget").hidden = !said.token_required;
    if (said.token_required && !said.authenticated) await this.ask();
  }

  /** @returns {Promise<void>} one for all who wait; resolves once the server has accepted a token */
  ask() {
    this.asking ??= this.#open().finally(() => {
      this.asking = null;
    });
    return this.asking;
  }

  /**
   * Let the server forget the cookie.
   *
   * @param {import("./api.js").Api} api
   */
  async forget(api) {
    await api.send(ADDRESS, { method: "DELETE" });
  }

  /** @returns {Promise<void>} */
  #open() {
    return new Promise((resolve, reject) => {
      const closed = new AbortController();
      const { signal } = closed;
      byId("sign-in-form").addEventListener(
        "submit",
        (/** @type {SubmitEvent} */ event) => this.#submit(event, resolve),
        { signal },
      );
      this.dialog.addEventListener(
        "close",
        () => {
          closed.abort();
          this.field.value = this.error.textContent = "";
          reject(new Refusal(401, "This server requires a token."));
        },
        { signal },
      );
      this.dialog.showModal();
      this.field.focus();
    });
  }

  /**
   * @param {SubmitEvent} event
   * @param {() => void} accepted
   */
  async #submit(event, accepted) {
    event.preventDefault();
    this.error.textContent = "";
    const problem = await offer(this.field.value);
    if (problem) {
      this.error.textContent = problem;
      this.field.select();
      return;
    }
    accepted();
    this.dialog.close();
    byId("forget").hidden = false;
  }
}

/**
 * @param {string} token
 * @returns {Promise<string>} why the server does not take it; empty if it does
 */
async function offer(token) {
  try {
    const headers = { "Content-Type": "application/json" };
    const response = await fetch(ADDRESS, { method: "POST", headers, body: JSON.stringify({ token: token.trim() }) });
    if (response.ok) return "";
    if (response.status === 401) return "The server does not know this token. Check it, and try again.";
    const said = await response.json().catch(() => ({}));
    return said.error ?? `The server answered with status ${response.status}.`;
  } catch {
    return "The server does not answer. Try again.";
  }
}
