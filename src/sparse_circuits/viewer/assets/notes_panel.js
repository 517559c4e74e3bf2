// The reader's own: pins, groups, names and notes in one place.

import { download, pickFile } from "./exports.js";
import { areNotes, emptyNotes } from "./notes.js";
import { nodeLink, section } from "./node_panel.js";
import { h, plural, tokenText } from "./text.js";

/** The panel of notes. */
export function notesPanel(app) {
  const { notes } = app;
  const known = (name) => app.knows(name);
  const written = [...new Set([...Object.keys(notes.names), ...Object.keys(notes.notes)])].filter(known);
  return h("div", { class: "notes-panel" },
    h("p", { class: "quiet pad" }, `Kept in ${app.store.where}. The circuit itself is never changed.`),
    app.conflict ? conflict(app) : null,
    section("Pinned", notes.pinned.filter(known).length ? h("ul", { class: "names" }, notes.pinned.filter(known).map((name) => h("li", {}, nodeLink(name, app),
      h("button", { class: "link-button quiet", onclick: () => app.pin(name) }, "unpin")))) : h("p", { class: "quiet" }, "Nothing pinned. Choose a node and press p.")),
    section("Groups", groups(app)),
    section("Notes", written.length ? h("dl", { class: "written" }, written.map((name) => [h("dt", {}, nodeLink(name, app)), h("dd", {}, notes.notes[name] ?? "")])) : h("p", { class: "quiet" }, "No notes yet; they are written in a node's panel.")),
    h("div", { class: "actions pad" },
      h("button", { onclick: () => download("notes.json", JSON.stringify(notes, null, 1), "application/json") }, "Save notes.json"),
      h("button", { onclick: () => open(app) }, "Open notes.json…")));
}

function groups(app) {
  const name = h("input", { id: "group-name", maxlength: 60, placeholder: "name of a new group", "data-keep": "group-name", "aria-label": "name of a new group" });
  const add = () => {
    if (name.value.trim()) app.addGroup(name.value.trim());
  };
  const chosen = app.notes.pinned.filter((pinned) => app.knows(pinned)).length;
  const rows = app.notes.groups.map((group) => h("div", { class: "group-row" },
    h("div", {}, h("b", {}, h("bdi", {}, tokenText(group.name))), h("span", { class: "quiet" }, ` ${plural(group.nodes.length, "node")}`)),
    h("div", { class: "actions" },
      h("button", { "data-keep": `fold ${group.name}`, "aria-pressed": String(Boolean(group.is_folded)), onclick: () => app.changeGroup(group.name, { is_folded: !group.is_folded }) }, group.is_folded ? "Unfold" : "Fold"),
      h("button", { onclick: () => app.changeGroup(group.name, null) }, "Remove")),
    h("ul", { class: "names" }, group.nodes.filter((node) => app.knows(node)).map((node) => h("li", {}, nodeLink(node, app),
      h("button", { class: "link-button quiet", onclick: () => app.changeGroup(group.name, { nodes: group.nodes.filter((other) => other !== node) }) }, "take out"))))));
  return h("div", {}, rows, h("form", { class: "new-group", onsubmit: (event) => { event.preventDefault(); add(); } }, name,
    h("button", { type: "submit", "data-keep": "add-group" }, chosen ? `Group the ${plural(chosen, "pinned node")}` : app.state.node ? "Group the chosen node" : "Make an empty group")));
}

function conflict(app) {
  return h("div", { class: "warning", role: "alert" }, h("p", {}, `There are two versions of these notes: ${app.conflictIs}. Nothing of yours or theirs is lost yet:`),
    h("div", { class: "actions" }, h("button", { onclick: () => app.settle("merge") }, "Keep both"), h("button", { onclick: () => app.settle("mine") }, "Keep mine"), h("button", { onclick: () => app.settle("theirs") }, "Take theirs")));
}

async function open(app) {
  const text = await pickFile(".json");
  if (text === null) return;
  let found = null;
  try {
    found = JSON.parse(text);
  } catch {
    // told below, as any other file that is no notes
  }
  const whole = { ...emptyNotes(), ...found };
  if (!found || !areNotes(whole)) app.tell("That file is no notes.json of version 1; nothing was changed.");
  else app.replaceNotes(whole);
}
