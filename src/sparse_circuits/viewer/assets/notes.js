// What the reader keeps: notes, names, groups, pins. Saved beside the circuit by a server or a notebook, else in this
// browser; a save on top of somebody else's is told, and nothing of either is lost.

const PARTS = ["notes", "names", "groups", "pinned"];

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

/** All that either of two readers wrote; where both wrote about one node, both texts. */
export function merged(mine, theirs) {
  const texts = (a, b) => {
    const found = { ...b };
    for (const [name, text] of Object.entries(a)) found[name] = b[name] === undefined || b[name] === text ? text : `${text}\n${b[name]}`;
    return found;
  };
  const names = { ...theirs.names, ...mine.names };
  const groups = [...mine.groups, ...theirs.groups.filter((group) => !mine.groups.some((own) => own.name === group.name))];
  return { ...mine, notes: texts(mine.notes, theirs.notes), names, groups, pinned: [...new Set([...mine.pinned, ...theirs.pinned])] };
}

/** Notes kept in this browser, for pages from disk; other tabs may write them too. */
export class BrowserNotes {
  constructor(view) {
    this.key = `sparse-circuits notes ${view.provenance.model_hash.slice(0, 16)} ${view.provenance.task_hash.slice(0, 16)} ${view.title} ${view.summary.n_node}`;
    this.where = "this browser";
  }

  async read() {
    const stored = this.stored();
    this.revision = stored?.revision ?? 0;
    return stored?.notes ?? null;
  }

  /** Save, or return what another tab saved meanwhile. */
  async save(notes) {
    const stored = this.stored();
    if ((stored?.revision ?? 0) !== this.revision) return { conflict: stored.notes };
    this.revision += 1;
    this.write({ revision: this.revision, notes });
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

  write(value) {
    try {
      localStorage.setItem(this.key, JSON.stringify(value));
    } catch {
      this.where = "this page only; save them as a file";
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
