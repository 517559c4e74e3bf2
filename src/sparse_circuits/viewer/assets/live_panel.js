// Live against the model: a prompt of one's own, nodes changed by hand, a rule scored over the corpus.

import { explained, fromServer, nextTokens } from "./prompt_panel.js";
import { section } from "./node_panel.js";
import { copy, h, short, tokenText } from "./text.js";

/** The panel that talks to the server. */
export function livePanel(view, app) {
  const { live } = app;
  return h("div", { class: "live-panel" }, h("div", { class: "pad" }, promptForm(app), live.error ? h("p", { class: "warning", role: "alert" }, live.error) : null),
    section("Next tokens", outcome(app)),
    section("Changes", changes(view, app)),
    section("A rule for a node", predicate(app)),
    live.explanation ? explained(view, fromServer(view, live.explanation), app) : null);
}

function promptForm(app) {
  const { live } = app;
  const area = h("textarea", { id: "live-prompt", rows: 4, value: live.prompt, spellcheck: "false", "data-keep": "live-prompt", oninput: () => { live.prompt = area.value; } });
  area.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) live.run();
  });
  return h("form", { onsubmit: (event) => { event.preventDefault(); live.run(); } }, h("label", { for: "live-prompt" }, "Prompt"), area,
    h("div", { class: "actions" }, h("button", { type: "submit", class: "primary" }, "Run"), h("button", { type: "button", onclick: () => live.explain() }, "Explain"),
      h("span", { class: "choices", role: "group", "aria-label": "where changes act" }, ["model", "circuit"].map((where) => h("button", { type: "button", "aria-pressed": String(live.where === where),
        onclick: () => { live.where = where; live.run(); } }, where === "model" ? "full model" : "circuit"))),
      live.milliseconds === undefined ? null : h("span", { class: "quiet" }, `${Math.round(live.milliseconds)} ms`)));
}

function outcome(app) {
  const { result, edits } = app.live;
  if (!result) return h("p", { class: "quiet" }, "Type a prompt and run it.");
  const before = new Map(result.before);
  return h("div", {}, result.watched.length ? [h("h4", {}, "the task's answers"), nextTokens(result.watched.map(([text, , after]) => [text, after]), edits.length ? new Map(result.watched) : null), h("h4", {}, "the likeliest")] : null,
    nextTokens(result.next, edits.length ? before : null),
    h("p", { class: "quiet" }, edits.length ? "The marks are the probabilities without the changes." : "Choose a node in the picture and change it below to see these move."));
}

function changes(view, app) {
  const { live, state } = app;
  const value = h("input", { id: "edit-value", type: "number", step: "any", value: live.value ?? "0", "aria-label": "value or factor", "data-keep": "edit-value", oninput: () => { live.value = value.value; } });
  const add = (action) => live.edit({ node: state.node, action, value: action === "ablate" ? 0 : Number(value.value) });
  return h("div", {}, live.edits.length ? h("ol", { class: "edits" }, live.edits.map((edit, i) => h("li", {}, h("code", {}, edit.node), ` ${told(edit)} `,
    h("button", { class: "link-button", onclick: () => live.removeEdit(i) }, "undo")))) : h("p", { class: "quiet" }, "Nothing changed."),
  state.node && view.byName.has(state.node) ? h("div", { class: "actions" }, h("code", {}, state.node), h("button", { onclick: () => add("ablate") }, "Ablate"), value,
    h("button", { onclick: () => add("set") }, "Set to"), h("button", { onclick: () => add("scale") }, "Scale by")) : h("p", { class: "quiet" }, "Choose a node to change it."),
  h("div", { class: "actions" }, h("button", { onclick: () => live.removeEdit(-1), disabled: !live.edits.length }, "Undo last"), h("button", { onclick: () => live.removeEdit(null), disabled: !live.edits.length }, "Undo all"),
    h("button", { onclick: () => copy(live.result?.python ?? "", app.tell), disabled: !live.result }, "Copy as Python")));
}

function told(edit) {
  return edit.action === "ablate" ? "ablated" : edit.action === "set" ? `set to ${short(edit.value)}` : `scaled by ${short(edit.value)}`;
}

function predicate(app) {
  const { live, state } = app;
  const area = h("input", { id: "predicate", value: live.predicate ?? "token in ('\"', \"'\")", spellcheck: "false", "data-keep": "predicate", oninput: () => { live.predicate = area.value; } });
  const found = live.score;
  return h("form", { onsubmit: (event) => { event.preventDefault(); live.scoreRule(area.value); } },
    h("label", { for: "predicate" }, "A Python expression on ", h("code", {}, "token"), ", ", h("code", {}, "before"), " (texts, the last is the nearest), ", h("code", {}, "text"), " and ", h("code", {}, "position")),
    area, h("div", { class: "actions" }, h("button", { type: "submit", disabled: !state.node, "data-keep": "score" }, state.node ? `Score against ${state.node}` : "Choose a node first")),
    found ? h("table", { class: "plain" }, h("caption", {}, h("code", {}, found.expression), ` on ${found.node}: ${found.n_token} tokens`), h("tbody", {},
      [["precision", found.precision], ["recall", found.recall], ["F1", found.f1], ["tokens where the rule holds", found.n_true], ["tokens where the node is active", found.n_active], ["active above", found.threshold]]
        .map(([name, value]) => h("tr", {}, h("td", {}, name), h("td", { class: "number" }, value === null ? "–" : short(value))))),
    found.misses?.length ? h("tr", {}, h("td", { colspan: 2, class: "quiet" }, "active where the rule fails: ", found.misses.map((text) => [h("bdi", { class: "tok" }, tokenText(text)), " "]))) : null) : null);
}
