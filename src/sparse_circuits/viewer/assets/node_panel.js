// All about one node.

import { headSection } from "./attention.js";
import { balance, histogram } from "./curves.js";
import { differing, strip } from "./strips.js";
import { copy, describe, h, heat, plural, short, signed, tokenText } from "./text.js";
import { effectOf, largest, onPrompt, promptScale, unpack } from "./view.js";

/** The panel of the chosen node. `app` has state, notes, and what changes them. */
export function nodePanel(view, app) {
  const node = view.byName.get(app.state.node);
  if (!node) return hint(view, app);
  const sections = [
    head(view, node, app),
    section("Edges", edgeLists(view, node, app)),
    section("On the task", onTask(view, node, app)),
    node.head === undefined ? null : section(`Head ${node.head}`, headSection(view, node, app.state, app.change)),
    section("In the corpus", inCorpus(view, node, app)),
    view.channels[String(node.channel)] && isResidual(node) ? section(`Residual channel ${node.channel}`, channel(view, node)) : null,
    section("Notes", ownWords(node, app)),
  ];
  return h("div", { class: "node-panel" }, sections);
}

/** A titled part of a panel that can be folded. */
export function section(title, ...body) {
  return h("details", { open: true, class: "section" }, h("summary", {}, title), ...body);
}

function hint(view, app) {
  const ranked = [...view.nodes].sort((a, b) => (effectOf(b) ?? 0) - (effectOf(a) ?? 0)).slice(0, 12);
  return h("div", { class: "node-panel" }, h("p", { class: "quiet" }, "Choose a node in the picture, or one of those that matter most:"),
    h("table", { class: "plain" }, h("tbody", {}, ranked.map((node) => h("tr", {}, h("td", {}, nodeLink(node.name, app)), h("td", { class: "quiet" }, describe(node)),
      h("td", { class: "number" }, effectOf(node) === undefined ? "" : signed(effectOf(node))))))));
}

function head(view, node, app) {
  const [location, channel] = node.name.split(":");
  const python = `with sc.reading(circuit.model, "${location}") as seen:\n    circuit.model(tokens)\nseen["${location}"][..., ${channel}]`;
  const estimate = node.effect_estimate, effect = effectOf(node);
  const isPinned = app.notes.pinned.includes(node.name);
  return h("header", { class: "node-head" },
    h("h2", {}, app.notes.names[node.name] ? h("bdi", {}, tokenText(app.notes.names[node.name])) : null, h("code", {}, node.name)),
    h("p", { class: "quiet" }, describe(node)),
    h("div", { class: "actions" },
      h("button", { onclick: () => copy(node.name, app.tell) }, "Copy name"),
      h("button", { onclick: () => copy(python, app.tell), title: python }, "Copy Python"),
      h("button", { onclick: () => app.pin(node.name), "aria-pressed": String(isPinned), "data-keep": "pin" }, isPinned ? "Unpin" : "Pin"),
      h("button", { onclick: () => app.groupWith(node.name) }, "Group…")),
    h("p", { class: "effect" }, effect === undefined ? "Its effect was not measured." : [
      h("b", {}, `${signed(effect)} nats`), " when ablated",
      estimate ? h("span", { class: "quiet" }, `  ${estimate.low === null ? "no interval" : `[${signed(estimate.low)}, ${signed(estimate.high)}], 95 %`}, ${estimate.n_pair} pairs of select`) : null]));
}

/** A button that chooses a node. */
export function nodeLink(name, app) {
  const own = app.notes.names[name];
  return h("button", { class: "link-button", onclick: () => app.choose(name) }, own ? h("bdi", {}, `${tokenText(own)} `) : null, h("code", {}, name));
}

function edgeLists(view, node, app) {
  const list = (title, links, other) => {
    const most = largest(links.map((link) => Math.abs(link.weight ?? 0)), 1e-9);
    if (!links.length) return h("p", { class: "quiet" }, `${title}: none`);
    return h("table", { class: "plain edges" }, h("caption", {}, `${title} · ${links.length}`), h("tbody", {},
      [...links].sort((a, b) => Math.abs(b.weight ?? 0) - Math.abs(a.weight ?? 0)).map((link) => h("tr", {},
        h("td", {}, end(link[other])), h("td", { class: "number" }, link.weight === undefined ? h("span", { class: "quiet" }, link.kind === "carry" ? "carried" : "× in score") : signed(link.weight)),
        h("td", {}, link.weight === undefined ? null : balance(link.weight, most)),
        h("td", { class: "number quiet", title: "effect when this edge is cut, in nats" }, link.effect === undefined ? "" : signed(link.effect))))));
  };
  const end = (name) => {
    if (view.byName.has(name)) return nodeLink(name, app);
    const [kind, id] = name.split(":");
    return h("span", {}, h("span", { class: "quiet" }, kind === "token" ? "token " : "logit of "), h("bdi", { class: "tok" }, tokenText(view.token(Number(id)))));
  };
  return h("div", {}, list("in", view.links.filter((link) => link.target === node.name), "source"), list("out", view.links.filter((link) => link.source === node.name), "target"));
}

function onTask(view, node, app) {
  if (!view.prompts) return h("p", { class: "quiet" }, `No prompts: ${view.missing.prompts ?? ""}.`);
  const most = promptScale(view, node.name);
  const { pair: index, run } = app.state;
  const shown = [0, 1, 2].map((i) => (index + i) % view.prompts.pairs.length).slice(0, view.prompts.pairs.length);
  return h("div", {}, pairControls(view, app), [...new Set(shown)].map((i) => {
    const pair = view.prompts.pairs[i], changed = differing(pair);
    const sides = [0, 1].map((side) => onPrompt(view, pair, run, node.name, side));
    const difference = Array.from(sides[0], (value, k) => value - sides[1][k]);
    const answers = pair.answers.map((token) => tokenText(view.token(token)));
    const row = (name, texts, values, shown = name) => h("div", { class: "strip-row" }, h("span", { class: "strip-label" }, shown),
      strip(texts, values, most, { changed, label: `${name}: activations of ${node.name} on` }));
    return h("div", { class: "pair" },
      [0, 1].map((side) => row(answers[side], pair.tokens[side].map(view.token), sides[side], h("bdi", { class: "tok" }, answers[side]))),
      row("difference", pair.tokens[0].map((token, k) => (changed.has(k) ? `${view.token(token)}/${view.token(pair.tokens[1][k])}` : view.token(token))), difference));
  }), h("p", { class: "scale quiet" }, h("i", { style: `background:${heat(-1)}` }), `−${short(most)}`, h("i", { style: `background:${heat(1)}` }), `+${short(most)}`));
}

/** Which pair, which run, which side. */
export function pairControls(view, app, { sides = false } = {}) {
  const { state, change } = app;
  const n = view.prompts.pairs.length;
  const step = (by) => change({ pair: (state.pair + by + n) % n });
  const choice = (name, value, text) => h("button", { "aria-pressed": String(state[name] === value), onclick: () => change({ [name]: value }) }, text);
  return h("div", { class: "controls" },
    h("span", { class: "stepper" }, h("button", { onclick: () => step(-1), "aria-label": "previous pair" }, "‹"), h("span", {}, `pair ${state.pair + 1} of ${n}`), h("button", { onclick: () => step(1), "aria-label": "next pair" }, "›")),
    h("span", { class: "choices", role: "group", "aria-label": "run" }, choice("run", "model", "full model"), choice("run", "circuit", "circuit")),
    sides ? h("span", { class: "choices", role: "group", "aria-label": "side" }, [0, 1].map((side) => choice("side", side, h("bdi", {}, tokenText(view.token(view.prompts.pairs[state.pair].answers[side])))))) : null);
}

function inCorpus(view, node, app) {
  const samples = view.samples, found = samples?.nodes[node.name];
  if (!found) return h("p", { class: "quiet" }, `No examples: ${view.missing.samples ?? "this node was not read"}.`);
  const bins = samples.bins.map((bin, i) => ({ ...bin, i }));
  const end = app.state.end ?? "top";
  const tokens = unpack(found.tokens), row = unpack(found.activations).row(0);
  const width = samples.before + samples.after + 1;
  const tab = (name) => h("button", { "aria-pressed": String(end === name), onclick: () => app.change({ end: name }) }, name);
  const places = bins.filter((bin) => bin.end === end).map((bin) => h("div", { class: "bin" },
    h("h4", {}, bin.fraction === null ? "any tokens" : bin.fraction === 0 ? `the ${end === "top" ? "highest" : "lowest"}` : `${short(100 * bin.fraction)} % further in`),
    Array.from({ length: samples.n_example }, (_, k) => {
      const first = (bin.i * samples.n_example + k) * width;
      const texts = Array.from(tokens.numbers.subarray(first, first + width), (id) => (id === 65535 ? null : view.token(id)));
      const values = row.subarray(first, first + width);
      return h("div", { class: "strip-row" }, h("span", { class: "strip-label number" }, signed(values[samples.before], 2)), strip(texts, values, found.largest || 1, { focus: samples.before, label: `example, activation ${short(values[samples.before])}:` }));
    })));
  return h("div", {}, h("div", { class: "controls" }, h("span", { class: "choices", role: "group", "aria-label": "examples" }, ["top", "bottom", "random"].map(tab))),
    places, histogram(found.histogram, { nZero: samples.n_token - found.n_nonzero, nToken: samples.n_token }),
    h("p", { class: "quiet" }, `mean ${short(found.mean)}, deviation ${short(found.deviation)} over ${plural(samples.n_token, "token")} of held-out text`));
}

function isResidual(node) {
  return node.site.endsWith("resid_delta") || (node.site.endsWith("act_in") && node.position_channel === undefined);
}

function channel(view, node) {
  const lists = view.channels[String(node.channel)];
  const list = (title, entries) => {
    const most = Math.max(1e-9, ...entries.map(([, weight]) => Math.abs(weight)));
    return h("table", { class: "plain" }, h("caption", {}, title), h("tbody", {}, entries.length ? entries.map(([token, weight]) => h("tr", {},
      h("td", {}, h("bdi", { class: "tok" }, tokenText(view.token(token)))), h("td", { class: "number" }, signed(weight, 2)), h("td", {}, balance(weight, most)))) : h("tr", {}, h("td", { class: "quiet" }, "none"))));
  };
  const same = view.nodes.filter((other) => other.channel === node.channel && isResidual(other) && other.name !== node.name);
  return h("div", {}, same.length ? h("p", { class: "quiet" }, `Also on this channel: ${same.map((other) => other.name).join(", ")}`) : null,
    h("div", { class: "columns" }, list("tokens that write to it", lists.embedding), list("logits that read from it", lists.unembedding)));
}

function ownWords(node, app) {
  const name = h("input", { id: "own-name", value: app.notes.names[node.name] ?? "", maxlength: 80, placeholder: "a name of your own", "data-keep": "own-name",
    onchange: (event) => app.write("names", node.name, event.target.value) });
  const note = h("textarea", { id: "own-note", rows: 4, value: app.notes.notes[node.name] ?? "", maxlength: 10000, placeholder: "what you think it does, and why", "data-keep": "own-note",
    onchange: (event) => app.write("notes", node.name, event.target.value) });
  return h("div", { class: "own" }, h("label", { for: "own-name" }, "Name"), name, h("label", { for: "own-note" }, "Note"), note);
}
