/** The whole screen for one element, where the browser allows it. */

const IDLE_MS = 2500;

/**
 * @param {HTMLElement} element has the class idle while nobody moves the pointer or presses a key
 * @param {HTMLButtonElement} button that switches
 * @param {() => void} changed
 */
export function fullScreen(element, button, changed) {
  button.hidden = !document.fullscreenEnabled;
  const toggle = () => {
    if (!document.fullscreenEnabled) return;
    if (document.fullscreenElement) document.exitFullscreen();
    else element.requestFullscreen({ navigationUI: "hide" }).catch(() => {});
  };
  /** @type {number | undefined} */
  let timer;
  const wake = () => {
    element.classList.remove("idle");
    clearTimeout(timer);
    if (document.fullscreenElement) timer = setTimeout(() => element.classList.add("idle"), IDLE_MS);
  };
  const signs = ["pointermove", "pointerdown", "keydown", "fullscreenchange"];
  for (const sign of signs) element.addEventListener(sign, wake);
  button.addEventListener("click", toggle);
  element.addEventListener("fullscreenchange", () => {
    button.setAttribute("aria-pressed", String(document.fullscreenElement === element));
    changed();
  });
}
