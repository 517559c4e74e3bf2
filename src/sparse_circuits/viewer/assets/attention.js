// A head on one prompt: its pattern in the full model beside the circuit, the sink included, and what each channel pair
// adds to a score. Scores are sums of products of the queries and keys that the view-model holds.

import { balance } from "./curves.js";
import { h, inlineText, signed, tokenText } from "./text.js";
import { onPrompt, unpack } from "./view.js";

/** Queries and keys of a head on one side of a pair: {q, k}, functions of (position, channel in the head). */
export function queriesAndKeys(view, pair, h0, side, run) {
  const head = view.prompts.heads[h0];
  const { shape, row } = unpack(pair.queries_and_keys);
  const d = head.d_head;
  const recorded = [0, 1].map((part) => row((side * view.prompts.heads.length + h0) * 2 + part));
  if (shape[2] !== d) throw new Error("queries and keys are not of the head's width");
  const kept = ["q", "k"].map((name, part) => new Map(head.kept[part].map((channel) => [channel,
    onPrompt(view, pair, run, `${head.layer}.attn.${name}:${head.head * d + channel}`, side)])));
  const of = (part) => (position, channel) => {
    if (run === "model") return recorded[part][position * d + channel];
    return kept[part].get(channel)?.[position] ?? head.ablated[part][channel];
  };
  return { q: of(0), k: of(1), n: pair.tokens[side].length, d, sink: head.sink };
}

/** The same of a prompt that the server explained; `h0` counts its heads. */
export function queriesAndKeysAsked(found, h0, run) {
  const head = found.heads[h0];
  const { shape, row } = unpack(found[run].queries_and_keys);
  const of = (part) => {
    const values = row(2 * h0 + part);
    return (position, channel) => values[position * head.d_head + channel];
  };
  return { q: of(0), k: of(1), n: shape[1], d: head.d_head, sink: head.sink };
}

/** What each channel pair adds to the score of a query and a key, and to its logit before the softmax. */
export function scoreParts({ q, k, d }, query, key) {
  return Array.from({ length: d }, (_, c) => (q(query, c) * k(key, c)) / Math.sqrt(d));
}

/** The pattern: rows are queries, n numbers and the sink's share last. */
export function pattern(head) {
  const rows = [];
  for (let i = 0; i < head.n; i += 1) {
    const scores = Array.from({ length: i + 1 }, (_, j) => scoreParts(head, i, j).reduce((a, b) => a + b, 0));
    if (head.sink !== null) scores.push(head.sink);
    const most = Math.max(...scores);
    const weights = scores.map((score) => Math.exp(score - most));
    const total = weights.reduce((a, b) => a + b, 0);
    const row = new Array(head.n + 1).fill(0);
    for (let j = 0; j <= i; j += 1) row[j] = weights[j] / total;
    row[head.n] = head.sink === null ? 0 : weights[i + 1] / total;
    rows.push(row);
  }
  return rows;
}

/** The head's section of a node's panel. */
export function headSection(view, node, state, change) {
  const h0 = view.prompts?.heads.findIndex((head) => head.layer === node.layer && head.head === node.head) ?? -1;
  const pair = view.prompts?.pairs[state.pair];
  if (h0 < 0 || !pair) return h("p", { class: "quiet" }, "No prompts, so no attention: ", view.missing.prompts ?? "");
  if (!pair.queries_and_keys) {
    return h("p", { class: "quiet" }, "Attention is kept for the first pairs only. ",
      h("button", { class: "link-button", onclick: () => change({ pair: 0 }) }, "Go to the first"));
  }
  const heads = { model: queriesAndKeys(view, pair, h0, state.side, "model"), circuit: queriesAndKeys(view, pair, h0, state.side, "circuit") };
  return headFigure(heads, pair.tokens[state.side].map(view.token), view.prompts.heads[h0]);
}

/** One of a prompt's heads, and a list to choose it from; `prompt.heads` are {head, of(run)}. */
export function headOfMany(prompt, app) {
  if (!prompt.heads.length) return h("p", { class: "quiet" }, prompt.noHeads);
  const nameOf = ({ head }) => `layer ${head.layer}, head ${head.head}`;
  const chosen = prompt.heads.find((one) => nameOf(one) === app.head) ?? prompt.heads[0];
  const list = h("select", { id: "head", "aria-label": "head", "data-keep": "head", onchange: () => { app.head = list.value; app.renderPanel(); } },
    prompt.heads.map((one) => h("option", { selected: one === chosen }, nameOf(one))));
  return h("div", {}, prompt.heads.length > 1 ? list : h("h4", {}, nameOf(chosen)),
    headFigure({ model: chosen.of("model"), circuit: chosen.of("circuit") }, prompt.texts, chosen.head));
}

/** Both patterns, the last query's row, and the parts of one score: what a pointer or a button asks for. */
function headFigure(heads, texts, head) {
  const about = h("div", { class: "score" });
  const query = texts.length - 1;
  const patterns = { model: pattern(heads.model), circuit: pattern(heads.circuit) };
  const show = (i, j) => about.replaceChildren(scoreTable(heads, patterns, texts, i, j, head));
  const most = patterns.model[query].slice(0, -1).reduce((best, value, j, row) => (value > row[best] ? j : best), 0);
  show(query, most);
  return h("div", {},
    h("div", { class: "patterns" }, ["model", "circuit"].map((run) => h("figure", {}, h("figcaption", {}, run === "model" ? "full model" : "circuit"),
      grid(patterns[run], texts, show)))),
    rowStrips(patterns, texts, query, (j) => show(query, j)), about);
}

function grid(rows, texts, show) {
  const n = rows.length, cell = Math.max(3, Math.min(10, Math.floor(168 / (n + 2))));
  const scale = window.devicePixelRatio || 1;
  const canvas = h("canvas", { width: (n + 2) * cell * scale, height: n * cell * scale, style: `width:${(n + 2) * cell}px;height:${n * cell}px`,
    role: "img", "aria-label": `Attention of ${n} queries (rows) to ${n} keys and the sink (last column)` });
  const paint = () => {
    const colours = getComputedStyle(canvas);
    const context = canvas.getContext("2d");
    context.scale(scale, scale);
    context.fillStyle = colours.getPropertyValue("--plus");
    rows.forEach((row, i) => row.forEach((value, j) => {
      if (value < 0.004) return;
      context.globalAlpha = 0.06 + 0.94 * value;
      context.fillRect((j === n ? j + 1 : j) * cell, i * cell, cell, cell);
    }));
    context.globalAlpha = 1;
    context.fillStyle = colours.getPropertyValue("--line");
    context.fillRect((n + 0.5) * cell, 0, 1, n * cell);
  };
  requestAnimationFrame(paint);
  canvas.addEventListener("pointermove", (event) => {
    const box = canvas.getBoundingClientRect();
    const i = Math.floor((event.clientY - box.top) / cell), j = Math.floor((event.clientX - box.left) / cell);
    if (i >= 0 && i < n && j >= 0 && j <= i) {
      canvas.title = `${tokenText(texts[i])} → ${tokenText(texts[j])}: ${rows[i][j].toFixed(3)}`;
      show(i, j);
    }
  });
  return canvas;
}

function rowStrips(patterns, texts, query, show) {
  return ["model", "circuit"].map((run) => {
    const row = patterns[run][query];
    return h("div", { class: "strip-row" }, h("span", { class: "strip-label" }, run),
      h("div", { class: "strip" }, texts.slice(0, query + 1).map((text, j) => h("button", {
        class: `tok ${j === query ? "focus" : ""}`, style: `background:color-mix(in oklab, var(--plus) ${(100 * row[j] * 0.8).toFixed(0)}%, transparent)`,
        title: `${row[j].toFixed(3)}`, onclick: () => show(j), "aria-label": `${tokenText(text)}, attention ${row[j].toFixed(3)}`,
      }, inlineText(text))), h("span", { class: "tok sink", style: `background:color-mix(in oklab, var(--plus) ${(100 * row.at(-1) * 0.8).toFixed(0)}%, transparent)`, title: row.at(-1).toFixed(3) }, "sink")));
  });
}

function scoreTable(heads, patterns, texts, i, j, head) {
  const parts = { model: scoreParts(heads.model, i, j), circuit: scoreParts(heads.circuit, i, j) };
  const order = parts.model.map((_, c) => c).filter((c) => Math.abs(parts.model[c]) + Math.abs(parts.circuit[c]) > 1e-6)
    .sort((a, b) => Math.abs(parts.circuit[b]) + Math.abs(parts.model[b]) - Math.abs(parts.circuit[a]) - Math.abs(parts.model[a])).slice(0, 8);
  const most = Math.max(1e-9, ...parts.model.map(Math.abs), ...parts.circuit.map(Math.abs));
  const sum = (values) => values.reduce((a, b) => a + b, 0);
  const kind = (c) => ["q", "k"].map((name, part) => `${name}${head.kept[part].includes(c) ? "" : "°"}`).join(" · ");
  return h("table", { class: "plain" },
    h("caption", {}, "score of ", h("bdi", { class: "tok" }, tokenText(texts[i])), " for ", h("bdi", { class: "tok" }, tokenText(texts[j])),
      `: attention ${patterns.model[i][j].toFixed(2)} in the model, ${patterns.circuit[i][j].toFixed(2)} in the circuit`),
    h("thead", {}, h("tr", {}, h("th", {}, "channel"), h("th", {}, "pair"), h("th", { colspan: 2 }, "model"), h("th", { colspan: 2 }, "circuit"))),
    h("tbody", {}, order.map((c) => h("tr", {}, h("td", {}, String(c)), h("td", { class: "quiet" }, kind(c)),
      ["model", "circuit"].map((run) => [h("td", { class: "number" }, signed(parts[run][c], 2)), h("td", {}, balance(parts[run][c], most))]))),
    h("tr", { class: "total" }, h("td", {}, "all"), h("td", { class: "quiet" }, "° constant in the circuit"),
      ["model", "circuit"].map((run) => [h("td", { class: "number" }, signed(sum(parts[run]), 2)), h("td", {})]))));
}
