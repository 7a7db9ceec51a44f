/** Signing in, by the token or a link: it is given to the server once, and only the browser's cookie stays. */

import { addDeviceButton } from "./add-device.js";
import { Refusal } from "./api.js";
import { byId } from "./dom.js";

const ADDRESS = "v1/session";
/** Name of a link's secret, after the # of the address. */
const SECRET = "sign-in";

export class Session {
  constructor() {
    /** @type {Promise<void> | null} */
    this.asking = null;
    this.dialog = byId("sign-in");
    this.field = byId("token");
    this.error = byId("sign-in-error");
    /** @type {HTMLElement | null} */
    this.addDevice = null;
    const secret = takeSecret();
    /** Why the link of the address does not sign in; empty if it does, or without one. */
    this.linked = secret === null ? Promise.resolve("") : offer({ link: secret });
    addEventListener("hashchange", () => secretOf(location) !== null && location.reload());
  }

  /**
   * Sign in by the link of the address, or ask for the token if the server wants one.
   * @param {import("./api.js").Api} api
   * @param {AbortSignal} signal
   */
  async begin(api, signal) {
    const problem = await this.linked;
    this.linked = Promise.resolve("");
    const said = await api.json(ADDRESS, { signal });
    byId("forget").hidden = !said.token_required;
    if (said.token_required && !said.authenticated) await this.ask(problem);
    if (said.links && !this.addDevice) {
      this.addDevice = addDeviceButton(api);
      byId("forget").before(this.addDevice);
    }
  }

  /**
   * @param {string} [problem] why the user is asked
   * @returns {Promise<void>} one for all who wait; resolves once the server has accepted a token
   */
  ask(problem = "") {
    this.asking ??= this.#open(problem).finally(() => {
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

  /**
   * @param {string} problem
   * @returns {Promise<void>}
   */
  #open(problem) {
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
      this.error.textContent = problem;
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
    const problem = await offer({ token: this.field.value.trim() });
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
 * @param {Location} address
 * @returns {string | null}
 */
function secretOf(address) {
  return new URLSearchParams(address.hash.slice(1)).get(SECRET);
}

/** @returns {string | null} the secret of the link that led here, which no longer stands in the address then */
function takeSecret() {
  const secret = secretOf(location);
  if (secret !== null) history.replaceState(history.state, "", location.pathname + location.search);
  return secret;
}

/**
 * @param {{token: string} | {link: string}} proof
 * @returns {Promise<string>} why the server does not take it; empty if it does
 */
async function offer(proof) {
  try {
    const headers = { "Content-Type": "application/json" };
    const response = await fetch(ADDRESS, { method: "POST", headers, body: JSON.stringify(proof) });
    if (response.ok) return "";
    if (response.status === 401 && "token" in proof) return "The server does not know this token. Check it, and try again.";
    const said = await response.json().catch(() => ({}));
    return said.error ?? `The server answered with status ${response.status}.`;
  } catch {
    return "The server does not answer. Try again.";
  }
}
