/** "Add a device": a link, and its QR code, that signs in one more browser, once. */

import { copy } from "./clipboard.js";
import { make } from "./dom.js";

const SIDE = 264;

/**
 * @param {import("./api.js").Api} api
 * @returns {HTMLButtonElement} which opens the dialog
 */
export function addDeviceButton(api) {
  const button = make("button", { type: "button", className: "quiet", title: "Sign in on another device" });
  button.append(phone(), make("span", { className: "words" }, "Add a device"));
  button.setAttribute("aria-label", "Add a device");
  button.addEventListener("click", () => open(api));
  return button;
}

/** @param {import("./api.js").Api} api */
async function open(api) {
  const text = make("p", { role: "status" }, "Making a link …");
  const close = make("button", { type: "button", className: "primary" }, "Close");
  const buttons = make("div", { className: "buttons" }, close);
  const title = make("h2", { id: "device-title" }, "Add a device");
  const dialog = make("dialog", {}, title, text, buttons);
  dialog.setAttribute("aria-labelledby", title.id);
  close.addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
  try {
    const page = new URL("./", location.href).href;
    const headers = { "Content-Type": "application/json" };
    const said = await api.json("v1/session/links", { method: "POST", headers, body: JSON.stringify({ page }) });
    show(said, text, buttons);
  } catch (error) {
    text.textContent = error instanceof Error ? error.message : String(error);
  }
}

/**
 * @param {{url: string, seconds: number, local: boolean, svg: string}} link
 * @param {HTMLElement} text
 * @param {HTMLElement} buttons
 */
function show({ url, seconds, local, svg }, text, buttons) {
  const source = URL.createObjectURL(new Blob([svg], { type: "image/svg+xml" }));
  const code = make("img", { alt: "QR code of the link", width: SIDE, height: SIDE });
  code.addEventListener("load", () => URL.revokeObjectURL(source), { once: true });
  code.src = source;
  const minutes = Math.round(seconds / 60);
  text.textContent = local
    ? `This server can be reached from this machine alone. The link signs in another browser of it, once, within ${minutes} minutes.`
    : `Scan the code with the other device, or open the link there. It works once, within ${minutes} minutes.`;
  if (!local) text.after(make("p", {}, code));
  const button = make("button", { type: "button" }, "Copy link");
  button.addEventListener("click", () => copy(url, "Link"));
  buttons.prepend(button);
}

/** @returns {SVGSVGElement} */
function phone() {
  const namespace = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(namespace, "svg");
  const path = document.createElementNS(namespace, "path");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  path.setAttribute("d", "M8.5 3.500h7a1.500 1.500 0 0 1 1.500 1.500v14a1.500 1.500 0 0 1-1.500 1.500h-7A1.500 1.500 0 0 1 7 19V5a1.500 1.500 0 0 1 1.500-1.500zM11 17.500h2");
  svg.append(path);
  return svg;
}
