/** The drop zone, and the other ways in: pictures that are pasted, chosen or photographed. */

import { above } from "./announce.js";
import { byId } from "./dom.js";

/**
 * @param {(file: File, remark: string) => void} take
 * @param {(sentence: string) => void} refuse
 */
export function listenForPictures(take, refuse) {
  const receive = (/** @type {File[]} */ files, /** @type {string} */ verb) => {
    if (files.length === 0) refuse(`No picture was ${verb}.`);
    else
      take(files[0], files.length > 1 ? `Only the first of ${files.length} ${verb} files is used: ${files[0].name}` : "");
  };
  listenForDrops(receive, refuse);
  listenForPastes(receive);
  for (const [id, buttons] of [
    ["file", ".choose"],
    ["camera", ".photograph"],
  ]) {
    const input = byId(id);
    for (const button of document.querySelectorAll(buttons)) button.addEventListener("click", () => input.click());
    input.addEventListener("change", () => {
      if (input.files.length) receive([...input.files], "chosen");
      input.value = "";
    });
  }
}

/**
 * @param {(files: File[], verb: string) => void} receive
 * @param {(sentence: string) => void} refuse
 */
function listenForDrops(receive, refuse) {
  const target = byId("drop-zone");
  const holdsFiles = (/** @type {DragEvent} */ event) => event.dataTransfer?.types.includes("Files");
  document.addEventListener("dragover", (event) => {
    if (!holdsFiles(event)) return;
    event.preventDefault();
    above().append(target);
    target.hidden = false;
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) target.hidden = true;
  });
  document.addEventListener("drop", (event) => {
    target.hidden = true;
    if (!event.dataTransfer || !holdsFiles(event)) return;
    event.preventDefault();
    const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry?.());
    if (entries[0]?.isDirectory) refuse(`${entries[0].name} is a folder. Drop a picture from it.`);
    else receive([...event.dataTransfer.files], "dropped");
  });
}

/** @param {(files: File[], verb: string) => void} receive */
function listenForPastes(receive) {
  document.addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    const typing = event.target instanceof HTMLInputElement;
    if (typing && files.length === 0) return;
    event.preventDefault();
    receive(files, "pasted");
  });
}
