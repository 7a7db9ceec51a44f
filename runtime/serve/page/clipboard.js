/** Text for the clipboard; where a page may not use it, the text is selected for the user to copy. */

import { say } from "./announce.js";
import { byId } from "./dom.js";

/**
 * @param {string} text
 * @param {string} name what it is, for example "Link"
 */
export async function copy(text, name) {
  try {
    await navigator.clipboard.writeText(text);
    say(`${name} copied.`);
  } catch {
    byId("link-text").value = text;
    byId("link").showModal();
    byId("link-text").select();
  }
}
