/** Which picture of each group is kept, and which are marked; every choice is the user's. */

/**
 * @typedef {object} Picture
 * @property {number} id
 * @property {string} path
 * @property {string} root
 * @property {string} relative
 * @property {string | null} label
 * @property {number} bytes
 * @property {string | null} modified
 * @property {number | null} width
 * @property {number | null} height
 * @property {number} [distance] to the picture that the server keeps
 * @property {boolean} [identical]
 *
 * @typedef {{kept: Picture, others: Picture[]}} Group
 * @typedef {{group: Group, kept: number, marked: Set<number>}} Choice
 * @typedef {{pictures: number, bytes: number}} Sum
 */

export class Choices {
  /** @param {Sum} all the pictures beside the kept ones, of all groups */
  constructor(all) {
    this.all = all;
    /** Whether the others of every group are marked that has no choice of its own. */
    this.every = false;
    /** By the id of the picture that the server keeps. @type {Map<number, Choice>} */
    this.own = new Map();
  }

  /** @param {Group} group */
  kept(group) {
    return this.own.get(group.kept.id)?.kept ?? group.kept.id;
  }

  /**
   * @param {Group} group
   * @param {number} id
   */
  isMarked(group, id) {
    const own = this.own.get(group.kept.id);
    return own ? own.marked.has(id) : this.every && id !== group.kept.id;
  }

  /**
   * @param {Group} group
   * @param {number} id not of the kept one
   * @param {boolean} marked
   */
  mark(group, id, marked) {
    const { marked: all } = this.#change(group);
    if (marked) all.add(id);
    else all.delete(id);
  }

  /**
   * @param {Group} group
   * @param {boolean} marked
   */
  markOthers(group, marked) {
    const choice = this.#change(group);
    choice.marked = new Set(marked ? idsOf(group).filter((id) => id !== choice.kept) : []);
  }

  /**
   * Keep another one; if it was marked, the mark goes to the one that was kept.
   * @param {Group} group
   * @param {number} id
   */
  keep(group, id) {
    const choice = this.#change(group);
    if (choice.marked.delete(id)) choice.marked.add(choice.kept);
    choice.kept = id;
  }

  /** @param {boolean} marked */
  markEvery(marked) {
    this.every = marked;
    for (const { group, kept } of [...this.own.values()]) {
      if (kept === group.kept.id) this.own.delete(kept);
      else this.markOthers(group, marked);
    }
  }

  /**
   * @param {Group} group
   * @returns {Picture[]} in their order
   */
  marked(group) {
    return [group.kept, ...group.others].filter(({ id }) => this.isMarked(group, id));
  }

  /** @returns {Sum} */
  sum() {
    let { pictures, bytes } = this.every ? this.all : { pictures: 0, bytes: 0 };
    for (const { group } of this.own.values()) {
      const marked = this.marked(group);
      const others = this.every ? group.others : [];
      pictures += marked.length - others.length;
      bytes += bytesOf(marked) - bytesOf(others);
    }
    return { pictures, bytes };
  }

  /**
   * @param {Group[]} groups
   * @returns {boolean} whether groups beyond these have marks
   */
  reachesBeyond(groups) {
    const ids = new Set(groups.map(({ kept }) => kept.id));
    return this.every || [...this.own.keys()].some((id) => !ids.has(id));
  }

  /**
   * @param {Group} group
   * @returns {Choice} its own, which may be changed
   */
  #change(group) {
    let own = this.own.get(group.kept.id);
    if (!own) {
      own = { group, kept: group.kept.id, marked: new Set(this.every ? group.others.map(({ id }) => id) : []) };
      this.own.set(group.kept.id, own);
    }
    return own;
  }
}

/** @param {Group} group */
export function idsOf(group) {
  return [group.kept, ...group.others].map(({ id }) => id);
}

/** @param {Picture[]} pictures */
export function bytesOf(pictures) {
  return pictures.reduce((sum, { bytes }) => sum + bytes, 0);
}
