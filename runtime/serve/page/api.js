/** The server's JSON interface: waits where it is busy, asks for the token where one is needed. */

const TRIES = 5;
const LONGEST_PAUSE = 10;
const GATEWAY = [502, 504];

/** The server refused; the message is its own sentence. */
export class Refusal extends Error {
  /**
   * @param {number} status
   * @param {string} message
   */
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** The server does not answer. */
export class Unreachable extends Error {}

/**
 * @typedef {RequestInit & {timeout?: number, tries?: number}} Options
 *     timeout: of each try, in ms, instead of a signal; tries: while the server is busy
 */

export class Api {
  /**
   * @param {() => Promise<void>} askToken resolves once the server has accepted one
   * @param {(seconds: number) => void} tellBusy
   */
  constructor(askToken, tellBusy) {
    this.askToken = askToken;
    this.tellBusy = tellBusy;
  }

  /**
   * @param {string} path
   * @param {Options} [options]
   * @returns {Promise<any>} what the JSON document of the answer says
   * @throws {Refusal | Unreachable}
   */
  async json(path, options) {
    const response = await this.send(path, options);
    return reached(() => response.json());
  }

  /**
   * @param {string} path
   * @param {Options} [options]
   * @returns {Promise<Response>} whose status is one of success
   * @throws {Refusal | Unreachable}
   */
  async send(path, { timeout, tries = TRIES, ...options } = {}) {
    let tokenRequested = false;
    for (let attempt = 1; ; attempt++) {
      const ends = timeout === undefined ? {} : { signal: AbortSignal.timeout(timeout) };
      const response = await reached(() => fetch(path, { credentials: "same-origin", ...options, ...ends }));
      if (response.ok) return response;
      if (response.status === 401 && !tokenRequested) {
        tokenRequested = true;
        await this.askToken();
      } else if (response.status === 503 && attempt < tries) {
        await this.#wait(response, options.signal);
      } else throw await refusal(response);
    }
  }

  /**
   * @param {Response} response
   * @param {AbortSignal | null} [signal]
   */
  async #wait(response, signal) {
    const seconds = Math.min(Number(response.headers.get("Retry-After")) || 1, LONGEST_PAUSE);
    this.tellBusy(seconds);
    await new Promise((resolve) => setTimeout(resolve, seconds * 1000));
    signal?.throwIfAborted();
  }
}

/**
 * @template T
 * @param {() => Promise<T>} action
 * @returns {Promise<T>}
 */
async function reached(action) {
  try {
    return await action();
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") throw error;
    throw new Unreachable("The server does not answer.", { cause: error });
  }
}

/**
 * @param {Response} response
 * @returns {Promise<Error>}
 */
async function refusal(response) {
  if (GATEWAY.includes(response.status)) return new Unreachable("The server does not answer.");
  const said = await response.json().catch(() => ({}));
  const unknown =
    response.status === 413
      ? "It is larger than the proxy in front of this server accepts. Make it smaller, and try again."
      : `The server answered with status ${response.status}.`;
  const sentence = String(said.error || unknown);
  return new Refusal(response.status, sentence[0].toUpperCase() + sentence.slice(1));
}
