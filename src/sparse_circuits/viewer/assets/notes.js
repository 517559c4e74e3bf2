// What the reader keeps: notes, names, groups, pins. Saved beside the circuit by a server or a notebook, else in this
// browser; a save on top of somebody else's is told, and nothing of either is lost.

const PARTS = ["notes", "names", "groups", "pinned"];

/** Notes with nothing in them. */
export function emptyNotes() {
/** Most characters of a text that a server or a widget keeps. */
const LONGEST = 10_000;

  return { format: "sparse-circuits circuit notes", version: 1, notes: {}, names: {}, groups: [], pinned: [] };
}

/** Whether a value read from a file or a browser's store is notes. */
export function areNotes(value) {
  const isText = (part) => part && typeof part === "object" && Object.values(part).every((text) => typeof text === "string");
  return Boolean(value) && value.version === 1 && isText(value.notes) && isText(value.names)
    && Array.isArray(value.groups) && value.groups.every((group) => typeof group.name === "string" && Array.isArray(group.nodes))
    && Array.isArray(value.pinned);
}

/** All that either of two readers wrote; where both wrote about one node, both texts. */
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
    if (stored && stored.revision !== this.revision) return { conflict: stored.notes };
    if (this.write({ revision: this.revision + 1, notes, page: this.page })) this.revision += 1;
    return {};
  }

  async adopt() {
    this.revision = this.stored()?.revision ?? 0;
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

/** Notes kept in `notes.json` by a server. */
export class ServedNotes {
  constructor(ask) {
    this.ask = ask;
    this.where = "notes.json beside the circuit";
  }

  async read() {
    const found = await this.ask("GET", "api/notes");
    this.revision = found.revision;
    return found.notes;
  }

  async save(notes) {
    const found = await this.ask("PUT", "api/notes", { notes, revision: this.revision });
    if (found.conflict) {
      this.theirs = found.revision;
      return { conflict: found.conflict };
    }
    this.revision = found.revision;
    return {};
  }

  async adopt() {
    this.revision = this.theirs;
  }
}

/** Notes kept by a notebook's widget. */
export class WidgetNotes {
  constructor(model) {
    this.model = model;
    this.where = "the widget's `notes`";
  }

  async read() {
    return this.model.get("notes");
  }

  async save(notes) {
    this.model.set("notes", notes);
    this.model.save_changes();
    return {};
  }

  async adopt() {}
}

/** Whether two readers' notes say the same. */
export function sameNotes(a, b) {
  return JSON.stringify(PARTS.map((part) => a[part])) === JSON.stringify(PARTS.map((part) => b[part]));
}
