/** The rater's name, which this browser remembers. */

const NAME = "rater";

/** @returns {string | undefined} undefined: not given */
export function rater() {
  return localStorage.getItem(NAME) ?? undefined;
}

/** @param {HTMLInputElement} field that shows the name, and takes another one */
export function rememberRater(field) {
  field.value = rater() ?? "";
  field.addEventListener("change", () => {
    const name = field.value.trim();
    field.value = name;
    if (name) localStorage.setItem(NAME, name);
    else localStorage.removeItem(NAME);
  });
}
