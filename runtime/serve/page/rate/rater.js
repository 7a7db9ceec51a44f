/** The rater's name, which this browser remembers. */

const NAME = "rater";
/** The server takes no longer one. */
const MOST = 100;
/** What it refuses: control characters, ends of lines, halves of characters, and what turns the direction of text. */
const REFUSED = /[\p{Cc}\p{Zl}\p{Zp}\p{Cs}\u202a-\u202e\u2066-\u2069]/gu;

/** @returns {string | undefined} undefined: not given */
export function rater() {
  return accepted(localStorage.getItem(NAME) ?? "") || undefined;
}

/** @param {HTMLInputElement} field that shows the name, and takes another one */
export function rememberRater(field) {
  const show = () => {
    field.value = rater() ?? "";
  };
  show();
  onOtherRater(show);
  field.addEventListener("change", () => {
    const name = accepted(field.value);
    field.value = name;
    if (name) localStorage.setItem(NAME, name);
    else localStorage.removeItem(NAME);
  });
}

/** @param {() => void} react to a name that another tab has */
export function onOtherRater(react) {
  addEventListener("storage", ({ key }) => {
    if (key === null || key === NAME) react();
  });
}

/**
 * @param {string} name
 * @returns {string} what the server takes of it: an answer under another name would be lost
 */
function accepted(name) {
  return [...name.replace(REFUSED, "").trim()].slice(0, MOST).join("").trim();
}
