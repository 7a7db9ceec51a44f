/** The groups, page after page as the user scrolls; pages far from the screen have no elements. */

import { make } from "../dom.js";
import { groupElement, refresh } from "./group.js";

/** Of the screen's height: how far from it a page is loaded and shown. */
const NEAR = "150%";
/** Groups of a page, and groups asked for at a time where all are needed. */
const OF_PAGE = 50;
const AT_ONCE = 200;

/**
 * @typedef {object} Page
 * @property {HTMLElement} element
 * @property {import("./choices.js").Group[]} groups
 * @property {number} first number of its first group
 */

export class GroupPages {
  /**
   * @param {HTMLElement} list
   * @param {HTMLElement} end an element below the list
   * @param {import("./group.js").View} view
   * @param {(cursor: string, limit: number) => Promise<{groups: import("./choices.js").Group[], next: string | null}>} load
   * @param {(error: unknown) => void} fail
   */
  constructor(list, end, view, load, fail) {
    this.list = list;
    this.end = end;
    this.view = view;
    this.load = load;
    this.fail = fail;
    /** @type {Map<Element, Page>} */
    this.pages = new Map();
    /** @type {string | null} */
    this.next = null;
    this.loading = false;
    this.epoch = 0;
    this.watcher = new IntersectionObserver((entries) => entries.forEach((entry) => this.#move(entry)), {
      rootMargin: `${NEAR} 0px`,
    });
    this.watcher.observe(end);
  }

  clear() {
    this.epoch += 1;
    this.loading = false;
    this.next = null;
    for (const element of this.pages.keys()) this.watcher.unobserve(element);
    this.pages.clear();
    this.list.replaceChildren();
    this.end.hidden = true;
  }

  /**
   * @param {import("./choices.js").Group[]} groups
   * @param {string | null} next
   */
  add(groups, next) {
    const height = this.list.lastElementChild?.getBoundingClientRect().height;
    for (let start = 0; start < groups.length; start += OF_PAGE) {
      const element = make("div", { className: "groups-page" });
      const page = { element, groups: groups.slice(start, start + OF_PAGE), first: this.length + 1 };
      this.pages.set(element, page);
      this.list.append(element);
      if (height) element.style.height = `${height}px`;
      else this.#show(page);
      this.watcher.observe(element);
    }
    this.next = next;
    this.end.hidden = next === null;
    // Observed anew, the end is told of even if it has not left the screen.
    this.watcher.unobserve(this.end);
    this.watcher.observe(this.end);
  }

  get length() {
    return [...this.pages.values()].reduce((sum, { groups }) => sum + groups.length, 0);
  }

  /** @returns {import("./choices.js").Group[]} */
  get groups() {
    return [...this.pages.values()].flatMap(({ groups }) => groups);
  }

  /** Show the choices anew. */
  refresh() {
    for (const element of this.list.querySelectorAll(".group")) refresh(this.view, element);
  }

  /** Load all pages that are left, one after another. */
  async loadAll() {
    while (this.next !== null) await this.#loadNext(AT_ONCE);
  }

  /** @param {number} [limit] */
  async #loadNext(limit = OF_PAGE) {
    const { next, epoch } = this;
    if (next === null) return;
    if (this.loading) return void (await new Promise((resolve) => setTimeout(resolve, 50)));
    this.loading = true;
    try {
      const page = await this.load(next, limit);
      if (epoch === this.epoch) this.add(page.groups, page.next);
    } finally {
      if (epoch === this.epoch) this.loading = false;
    }
  }

  /** @param {IntersectionObserverEntry} entry */
  #move({ target, isIntersecting }) {
    if (target === this.end) {
      if (isIntersecting && !this.loading) this.#loadNext().catch(this.fail);
      return;
    }
    const page = this.pages.get(target);
    if (!page) return;
    if (isIntersecting) this.#show(page);
    else if (!target.contains(document.activeElement)) hide(page);
  }

  /** @param {Page} page */
  #show({ element, groups, first }) {
    if (element.childElementCount) return;
    element.append(...groups.map((group, place) => groupElement(this.view, group, first + place)));
    element.style.height = "";
  }
}

/** @param {Page} page */
function hide({ element }) {
  if (!element.childElementCount) return;
  element.style.height = `${element.offsetHeight}px`;
  element.replaceChildren();
}
