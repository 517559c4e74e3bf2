// What is asked of the live page's server, and what it answered last.

/** Ask the server; throws an Error with what it says is wrong. A conflict of notes is an answer. */
export async function askServer(token, method, path, body) {
  const response = await fetch(path, { method, headers: { "X-Token": token, ...(body ? { "Content-Type": "application/json" } : {}) }, body: body ? JSON.stringify(body) : undefined });
  const found = await response.json();
  if (!response.ok && response.status !== 409) throw new Error(found.error ?? `the server answered ${response.status}`);
  return found;
}

/** The prompt that is typed, the changes made, where they act, and what came of them. */
export class Live {
  constructor(app) {
    Object.assign(this, { app, prompt: app.view.task.example?.[0]?.prompt ?? "", edits: [], where: "circuit" });
  }

  async asking(path, body, take) {
    try {
      this.error = null;
      take(await askServer(this.app.start.token, "POST", path, body));
    } catch (error) {
      this.error = error.message;
    }
    this.app.render();
  }

  run() {
    const before = performance.now();
    const watch = (this.app.view.task.example ?? []).map((side) => side.answer);
    return this.asking("api/run", { prompt: this.prompt, edits: this.edits, where: this.where, watch }, (found) => {
      this.result = found;
      this.milliseconds = performance.now() - before;
    });
  }

  explain() {
    return this.asking("api/explain", { prompt: this.prompt }, (found) => { this.explanation = found; });
  }

  scoreRule(expression) {
    return this.asking("api/predicate", { node: this.app.state.node, expression }, (found) => { this.score = found; });
  }

  edit(edit) {
    if (!Number.isFinite(edit.value)) return void this.app.tell("the value is not a number");
    this.edits = [...this.edits, edit];
    this.run();
  }

  /** Undo the edit at a place, -1 for the last, null for all. */
  removeEdit(which) {
    this.edits = which === null ? [] : this.edits.filter((_, i) => i !== (which < 0 ? this.edits.length - 1 : which));
    this.run();
  }
}
