// One prompt explained: what every node of the circuit does at every token, and what adds to the answer.

import { headOfMany, queriesAndKeys, queriesAndKeysAsked } from "./attention.js";
import { balance } from "./curves.js";
import { nodeLink, pairControls, section } from "./node_panel.js";
import { differing } from "./strips.js";
import { h, heat, short, signed, tokenText } from "./text.js";
import { edgeContributions, onPrompt, promptScale } from "./view.js";

const NO_HEADS = "The circuit has no query, key or value.";

/** The panel of the task's prompts. */
export function promptPanel(view, app) {
  if (!view.prompts) return h("p", { class: "quiet pad" }, `No prompts: ${view.missing.prompts ?? ""}.`);
  const pair = view.prompts.pairs[app.state.pair], { side } = app.state;
  return h("div", { class: "prompt-panel" }, h("div", { class: "pad" }, pairControls(view, app, { sides: true }),
    h("p", { class: "quiet" }, `template ${pair.template}, level ${pair.level}, split ${view.prompts.split}`)),
  explained(view, fromPair(view, pair, side), app));
}

/** A stored prompt in the form that `explained` takes. */
export function fromPair(view, pair, side) {
  const run = (name) => ({
    difference: pair[name].differences[side],
    next: pair[name].next[side],
    direct: pair[name].direct[side],
    activation: (node) => onPrompt(view, pair, name, node, side),
    contribution: (node) => onPrompt(view, pair, name, node, side, "node_contributions"),
    edges: edgeContributions(pair, name, side),
  });
  return { texts: pair.tokens[side].map(view.token), answers: pair.answers.map(view.token), changed: differing(pair), model: run("model"), circuit: run("circuit"),
    scale: (node) => promptScale(view, node), noHeads: pair.queries_and_keys ? NO_HEADS : "Attention is kept for the first pairs only.",
    heads: pair.queries_and_keys ? view.prompts.heads.map((head, i) => ({ head, of: (name) => queriesAndKeys(view, pair, i, side, name) })) : [] };
}

/** What the server says of a prompt in the same form. */
export function fromServer(view, found) {
  const run = (trace) => ({ ...trace, activation: (node) => trace.activations[view.place.get(node)], contribution: (node) => trace.node_contributions[view.place.get(node)], edges: trace.edge_contributions });
  const most = (node) => Math.max(1e-9, ...["model", "circuit"].flatMap((name) => found[name].activations[view.place.get(node)].map(Math.abs)));
  return { texts: found.tokens, answers: found.answers, changed: new Set(), model: run(found.model), circuit: run(found.circuit), scale: most,
    noHeads: NO_HEADS, heads: found.heads.map((head, i) => ({ head, of: (name) => queriesAndKeysAsked(found, i, name) })) };
}

/** Draw an explained prompt. */
export function explained(view, prompt, app) {
  const { run } = app.state;
  const trace = prompt[run];
  return h("div", {},
    section("Answer", answer(prompt)),
    section("Activations", matrix(view, prompt, trace, app)),
    section("Attention", headOfMany(prompt, app)),
    section("Edges that make the difference", edges(view, trace, app)),
    section("Writes at the last token", direct(trace, app)));
}

function answer(prompt) {
  const [first, second] = prompt.answers.map((text) => h("bdi", { class: "tok" }, tokenText(text)));
  return h("div", {}, h("p", {}, "logit ", first, " − logit ", second, h("span", { class: "quiet" }, " in nats, uncalibrated")),
    h("div", { class: "columns" }, ["model", "circuit"].map((run) => h("div", {}, h("h4", {}, run === "model" ? "full model" : "circuit"),
      h("p", { class: "big" }, signed(prompt[run].difference, 2)), nextTokens(prompt[run].next)))));
}

/** The likeliest next tokens as bars; `before` shows what each was without edits. */
export function nextTokens(next, before = null) {
  return h("table", { class: "plain next" }, h("tbody", {}, next.map(([text, p]) => h("tr", {}, h("td", {}, h("bdi", { class: "tok" }, tokenText(text))),
    h("td", { class: "number" }, p.toFixed(3)), h("td", {}, h("span", { class: "meter", "aria-hidden": "true" }, h("span", { style: `width:${(100 * p).toFixed(1)}%` }),
      before?.has(text) ? h("i", { style: `left:${(100 * before.get(text)).toFixed(1)}%` }) : null))))));
}

function matrix(view, prompt, trace, app) {
  const cells = (node) => {
    const values = trace.activation(node.name), shares = trace.contribution(node.name), most = prompt.scale(node.name);
    return Array.from(values, (value, i) => h("td", { style: `background:${heat(value / most)}`, title: `${node.name} at ${tokenText(prompt.texts[i])}: ${signed(value)}, contribution ${signed(shares[i])}` }));
  };
  const total = (node) => Array.from(trace.contribution(node.name)).reduce((a, b) => a + b, 0);
  const most = Math.max(1e-9, ...view.nodes.map((node) => Math.abs(total(node))));
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "activations by node and token" }, h("table", { class: "matrix" },
    h("thead", {}, h("tr", {}, h("td", { class: "quiet" }, "contribution"), h("td"), h("td"), prompt.texts.map((text, i) => h("th", { scope: "col", class: prompt.changed.has(i) ? "changed" : "" }, h("bdi", {}, tokenText(text)))))),
    h("tbody", {}, [...view.nodes].reverse().map((node) => h("tr", {}, h("th", { scope: "row" }, nodeLink(node.name, app)), h("td", { class: "number" }, signed(total(node), 2)), h("td", {}, balance(total(node), most)), cells(node))))));
}

function edges(view, trace, app) {
  const ranked = view.edges.map((edge, i) => [edge, trace.edges[i]]).sort((a, b) => Math.abs(b[1]) - Math.abs(a[1])).slice(0, 14);
  const most = Math.max(1e-9, ...ranked.map(([, value]) => Math.abs(value)));
  return h("div", {}, h("p", { class: "quiet" }, "How much each edge adds to the difference, to first order: from its source's ablation value to what it is."),
    h("button", { onclick: () => app.change({ colours: app.state.colours === "contribution" ? "weight" : "contribution" }), "aria-pressed": String(app.state.colours === "contribution") }, "Colour the picture by contribution"),
    h("table", { class: "plain" }, h("tbody", {}, ranked.map(([edge, value]) => h("tr", {}, h("td", {}, nodeLink(edge.source, app), " → ", nodeLink(edge.target, app)), h("td", { class: "number" }, signed(value)), h("td", {}, balance(value, most)))))));
}

function direct(trace, app) {
  const entries = Object.entries(trace.direct);
  if (!entries.length) return h("p", { class: "quiet" }, "In this model the stream is not a sum of writes.");
  const ranked = entries.sort((a, b) => Math.abs(b[1]) - Math.abs(a[1]));
  const shown = ranked.filter(([name], i) => i < 12 || !name.includes(":"));
  const most = Math.max(1e-9, ...ranked.map(([, value]) => Math.abs(value)));
  return h("table", { class: "plain" }, h("caption", {}, `exact shares; all together ${short(entries.reduce((sum, [, value]) => sum + value, 0))}`),
    h("tbody", {}, shown.map(([name, value]) => h("tr", {}, h("td", {}, name.includes(":") ? nodeLink(name, app) : { outside: "writes outside the circuit" }[name] ?? name), h("td", { class: "number" }, signed(value)), h("td", {}, balance(value, most))))));
}
