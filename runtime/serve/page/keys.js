/** Single keys that work anywhere on the page, unless the user has switched them off. */

import { byId } from "./dom.js";

const OFF = "single-keys-off";

/** @param {Record<string, () => void>} actions what each key does */
export function listenForKeys(actions) {
  const control = byId("single-keys");
  control.checked = localStorage.getItem(OFF) === null;
  control.addEventListener("change", () => {
    if (control.checked) localStorage.removeItem(OFF);
    else localStorage.setItem(OFF, "1");
  });
  document.addEventListener("keydown", (event) => {
    const busy = event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented || isTyping(event.target);
    if (busy || event.repeat || !control.checked || document.querySelector("dialog[open]") || !Object.hasOwn(actions, event.key))
      return;
    event.preventDefault();
    actions[event.key]();
  });
}

/** @param {EventTarget | null} target */
function isTyping(target) {
  return (
    target instanceof Element &&
    target.closest("input:not([type=checkbox], [type=radio], [type=range]), select") !== null
  );
}
