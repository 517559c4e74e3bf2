// What the reader keeps: notes, names, groups, pins. Saved beside the circuit by a server or a notebook, else in this
// browser; a save on top of somebody else's is told, and nothing of either is lost.

import { count } from "./text.js";

const PARTS = ["notes", "names", "groups", "pinned"];

/** Most characters of a text that a server or a widget keeps. */
const LONGEST = 10_000;

/** Notes with nothing in them. */
export function emptyNotes() {
  return { format: "sparse-circuits circuit notes", version: 1, notes: {}, names: {}, groups: [], pinned: [] };
}

/** Whether a value read from a file or a browser's store is notes. */
export function areNotes(value) {
  const isText = (part) => part && typeof part === "object" && Object.values(part).every((text) => typeof text === "string");
  return Boolean(value) && value.version === 1 && isText(value.notes) && isText(value.names)
    && Array.isArray(value.groups) && value.groups.every((group) => typeof group.name === "string" && Array.isArray(group.nodes))
    && Array.isArray(value.pinned);
}

/** All that either of two readers wrote; throws an Error where two texts on one node are too long to stand together. */
export function merged(mine, theirs) {
  const texts = (part, between) => {
    const found = { ...theirs[part] };
    for (const [node, text] of Object.entries(mine[part])) {
      found[node] = found[node] === undefined ? text : joined(text, found[node], between);
      if ([...found[node]].length > LONGEST) throw new Error(`both ${part} of ${node} together have more than ${count(LONGEST)} characters: shorten yours, then keep both`);
    }
    return found;
  };
  return { ...mine, notes: texts("notes", "\n"), names: texts("names", " / "), groups: allGroups(mine.groups, theirs.groups), pinned: [...new Set([...mine.pinned, ...theirs.pinned])] };
}

/** Two texts one after the other, or the one that has the other in it whole. */
function joined(a, b, between) {
  const holds = (outer, inner) => `${between}${outer}${between}`.includes(`${between}${inner}${between}`);
  return holds(a, b) ? a : holds(b, a) ? b : `${a}${between}${b}`;
}

/** The groups of both; those of one name become one with the nodes of both. */
function allGroups(mine, theirs) {
  const found = new Map();
  for (const group of [...mine, ...theirs]) {
    const own = found.get(group.name);
    found.set(group.name, own ? { ...own, nodes: [...new Set([...own.nodes, ...group.nodes])] } : group);
  }
  return [...found.values()];
}

/** A short hash of a text (FNV-1a), to tell circuits apart. */
function fingerprint(text) {
  let hash = 2166136261;
  for (const letter of text) hash = Math.imul(hash ^ letter.codePointAt(0), 16777619);
  return (hash >>> 0).toString(16);
}

/** Notes kept in this browser, for pages from disk; other tabs may write them too, and a page may come with its own. */
export class BrowserNotes {
  constructor(view) {
    const { model_hash: model, task_hash: task } = view.provenance;
    this.key = `sparse-circuits notes ${model.slice(0, 16)} ${task.slice(0, 16)} ${view.title} ${fingerprint(view.nodes.map((node) => node.name).join(" "))}`;
    this.page = areNotes(view.notes) ? view.notes : emptyNotes();
    this.where = "this browser";
  }

  /** Read what is kept here, and with it what the page came with if that is news. */
  async read() {
    const stored = this.stored();
    this.revision = stored?.revision ?? 0;
    const isNews = stored && ![stored.page ?? emptyNotes(), stored.notes, emptyNotes()].some((known) => sameNotes(known, this.page));
    this.conflict = isNews ? this.page : null;
    return stored?.notes ?? null;
  }

  /** Save, or return what another tab saved meanwhile. */
  async save(notes) {
    const stored = this.stored();
    if (stored && stored.revision !== this.revision) {
      this.theirs = stored.revision;
      return { conflict: stored.notes };
    }
    if (this.write({ revision: this.revision + 1, notes, page: this.page })) this.revision += 1;
    return {};
  }

  /** Save on top of what the last conflict showed, and of nothing newer. */
  async adopt() {
    this.revision = this.theirs ?? this.revision;
  }

  stored() {
    try {
      const found = JSON.parse(localStorage.getItem(this.key));
      return found && Number.isInteger(found.revision) && areNotes(found.notes) ? found : null;
    } catch {
      return null; // no store here, or not ours: the page works without
    }
  }

  /** Write if there is a store with room, and say whether there is. */
  write(value) {
    try {
      localStorage.setItem(this.key, JSON.stringify(value));
      this.where = "this browser";
      return true;
    } catch {
      this.where = "this page only; save them as a file";
      return false;
    }
  }
}

/** Notes kept in `notes.json` by a server. Saves go one after the other: each names the revision that it is made from. */
export class ServedNotes {
  constructor(ask) {
    Object.assign(this, { ask, turn: Promise.resolve(), where: "notes.json beside the circuit" });
  }

  read() {
    return this.inTurn(async () => {
      const found = await this.asked("GET", "api/notes");
      this.revision = found.revision;
      return found.notes;
    });
  }

  save(notes) {
    return this.inTurn(async () => {
      const found = await this.asked("PUT", "api/notes", { notes, revision: this.revision });
      if (found.conflict) this.theirs = found.revision;
      else this.revision = found.revision;
      return { conflict: found.conflict };
    });
  }

  adopt() {
    const { theirs } = this;
    return this.inTurn(async () => { this.revision = theirs; });
  }

  inTurn(work) {
    const done = this.turn.then(work);
    this.turn = done.catch(() => {}); // told to whoever asked; the next has its turn
    return done;
  }

  async asked(...request) {
    this.where = "this page only, for the server did not take them; save them as a file";
    const found = await this.ask(...request);
    this.where = "notes.json beside the circuit";
    return found;
  }
}

/** Notes kept by a notebook's widget, which Python and other views of it change too. */
export class WidgetNotes {
  /** `changed(notes)` is called when somebody else changed them, and says whether they are shown now. */
  constructor(model, changed) {
    Object.assign(this, { model, where: "the widget's `notes`" });
    this.heard = () => {
      const now = this.now();
      if (!sameNotes(now, this.last) && changed(now)) this.last = now;
    };
    model.on("change:notes", this.heard);
  }

  now() {
    return this.model.get("notes") ?? emptyNotes();
  }

  async read() {
    this.last = this.now();
    return this.model.get("notes");
  }

  async save(notes) {
    const now = this.now();
    if (!sameNotes(now, this.last)) {
      this.theirs = now;
      return { conflict: now, how: "set by Python or another view meanwhile" };
    }
    this.last = notes;
    this.model.set("notes", notes);
    this.model.save_changes();
    return {};
  }

  async adopt() {
    this.last = this.theirs;
  }

  /** Hear no more of changes: the view is gone. */
  close() {
    this.model.off("change:notes", this.heard);
  }
}

/** Whether two readers' notes say the same. */
export function sameNotes(a, b) {
  const sorted = (_, value) => (value === null || typeof value !== "object" || Array.isArray(value) ? value : Object.fromEntries(Object.entries(value).sort()));
  const [first, second] = [a, b].map((notes) => JSON.stringify(PARTS.map((part) => notes[part]), sorted));
  return first === second;
}
