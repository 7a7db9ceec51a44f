/** The whole screen for one element, where the browser allows it. */

/**
 * @param {HTMLElement} element
 * @param {HTMLButtonElement} button that switches
 * @param {() => void} changed
 * @returns {() => void} what switches
 */
export function fullScreen(element, button, changed) {
  button.hidden = !document.fullscreenEnabled;
  const toggle = () => {
    if (!document.fullscreenEnabled) return;
    if (document.fullscreenElement) document.exitFullscreen();
    else element.requestFullscreen({ navigationUI: "hide" }).catch(() => {});
  };
  button.addEventListener("click", toggle);
  element.addEventListener("fullscreenchange", () => {
    button.setAttribute("aria-pressed", String(document.fullscreenElement === element));
    changed();
  });
  return toggle;
}
