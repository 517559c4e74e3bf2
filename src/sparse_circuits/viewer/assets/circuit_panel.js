// All about the circuit: what it does, how well, how it was found, how to make it again.

import { bars, lineChart } from "./curves.js";
import { nodeLink, section } from "./node_panel.js";
import { codeText, copy, count, h, plural, short, tokenText } from "./text.js";

/** The panel of the circuit; `other` is the one beside it, if there is one. */
export function circuitPanel(view, app, other) {
  return h("div", { class: "circuit-panel" },
    other ? section("Beside the other", comparison(view, other, app)) : null,
    section("Loss", losses(view)),
    view.task.example?.length ? section("One pair of the task", examples(view)) : null,
    section("Size and training", curves(view)),
    view.removed.length ? section("Refinement", refinement(view)) : null,
    section("Verification", verification(view)),
    section("Provenance", provenance(view, app)));
}

function losses(view) {
  const { losses: own, chance } = view.summary;
  const test = view.report?.sufficiency?.test;
  const row = (label, estimate, kind) => (estimate === undefined ? null : typeof estimate === "number"
    ? { label, value: estimate, kind } : { label, value: estimate.value, low: estimate.low ?? undefined, high: estimate.high ?? undefined, kind });
  const rows = test ? [
    row("full model", test.model.loss), row("circuit", test.circuit.loss, "own"), row("circuit, sealed", test.sealed?.loss, "own"),
    row("model without circuit", view.report.necessity?.loss), row("chance", chance, "faint"),
  ] : [row("full model", own.model), row("circuit", own.circuit, "own"), row("chance", chance, "faint")];
  const shown = rows.filter(Boolean);
  return h("div", {}, bars(shown, { most: Math.max(chance * 1.15, ...shown.map((r) => r.value)) }),
    h("p", { class: "quiet" }, test ? `nats a side on ${count(test.model.loss.n_pair)} pairs of test that nothing was decided on, 95 % intervals` : "nats a side on select, where sizes were chosen; run sparse-circuits verify for test"),
    h("p", { class: "quiet" }, `calibration: scale ${short(view.summary.calibration.scale)}, shift ${short(view.summary.calibration.shift)}`));
}

function examples(view) {
  return h("div", {}, view.task.example.map((side) => h("pre", { class: "code" }, codeText(side.prompt), h("mark", {}, tokenText(side.answer)))));
}

function curves(view) {
  const parts = [];
  const scan = view.removed.find((record) => record.scan)?.scan ?? {};
  const points = (scan.sizes?.length ? scan.sizes : scan.curve ?? []).map((point) => (Array.isArray(point) ? point : [point.n_node, point.loss]));
  const usable = points.filter(([size, loss]) => size > 0 && Number.isFinite(loss));
  if (usable.length) {
    parts.push(lineChart(usable, { title: "loss, nats", xLabel: "nodes kept", log: true, rule: view.settings.target_loss ?? null,
      ruleLabel: `target ${short(view.settings.target_loss)}`, mark: view.summary.losses.circuit === undefined || !view.summary.n_node ? null : [view.summary.n_node, view.summary.losses.circuit] }));
  }
  if (view.history.length) {
    const last = 8;
    const smooth = view.history.map((record, i, all) => [record.step ?? i, mean(all.slice(Math.max(0, i - last), i + 1).map((r) => r.loss))]);
    parts.push(lineChart(smooth, { title: "mask learning: loss, nats", xLabel: "step" }));
    parts.push(lineChart(view.history.map((record, i) => [record.step ?? i, record.n_node]), { title: "mask learning: nodes kept", xLabel: "step" }));
  }
  return parts.length ? h("div", {}, parts) : h("p", { class: "quiet" }, "This circuit has no curves.");
}

function mean(values) {
  return values.reduce((a, b) => a + b, 0) / values.length;
}

function refinement(view) {
  return h("table", { class: "plain" }, h("thead", {}, h("tr", {}, h("th", {}, "step"), h("th", {}, "nodes"), h("th", {}, "loss"))),
    h("tbody", {}, view.removed.map((record) => (record.scan
      ? h("tr", {}, h("td", {}, `size ${count(record.scan.size)} chosen by a scan`), h("td", {}), h("td", {}))
      : h("tr", {}, h("td", {}, h("details", {}, h("summary", {}, `${plural(record.removed.length, "item")} removed`), h("code", { class: "wrap" }, record.removed.join("\n")))),
        h("td", { class: "number" }, short(record.n_node)), h("td", { class: "number" }, short(record.loss)))))));
}

function verification(view) {
  const report = view.report;
  if (!report) return h("p", { class: "quiet" }, "Not verified yet: run sparse-circuits verify on this circuit, then make the page again.");
  const rows = Object.entries(report.sufficiency ?? {});
  const estimate = (found) => (found ? h("td", { class: "number", title: `${short(found.low)} to ${short(found.high)}` }, found.value.toFixed(3)) : h("td", {}));
  return h("div", {},
    report.notes?.length ? h("ul", { class: "warnings" }, report.notes.map((note) => h("li", {}, note))) : null,
    report.verdict?.length ? verdict(report.verdict) : null,
    rows.length ? h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "sufficiency by split" }, h("table", { class: "plain" }, h("thead", {}, h("tr", {}, ["split", "pairs", "model", "circuit", "sealed", "accuracy"].map((title) => h("th", {}, title)))),
      h("tbody", {}, rows.map(([split, found]) => h("tr", {}, h("td", {}, split), h("td", { class: "number" }, count(found.model.loss.n_pair)),
        estimate(found.model.loss), estimate(found.circuit.loss), estimate(found.sealed?.loss), h("td", { class: "number" }, `${(100 * found.circuit.accuracy).toFixed(1)} %`)))))) : null,
    Object.entries(report).filter(([name, value]) => !["format", "version", "sufficiency", "notes", "task", "model_hash", "calibration", "verdict"].includes(name) && value !== null).map(([name, value]) => anything(name, value)));
}

function verdict(findings) {
  return h("table", { class: "plain" }, h("caption", {}, "each number against its limits; no grade"), h("tbody", {}, findings.map((found) => h("tr", {},
    h("td", {}, found.check.replaceAll("_", " "), h("div", { class: "quiet" }, found.measure.replaceAll("_", " "))),
    h("td", { class: "number" }, found.value === null ? "–" : short(found.value)),
    h("td", { class: `status ${found.status}`, title: found.why ?? "" }, found.status)))));
}

/** Whatever a report holds, as rows: new checks show up without a word here. */
function anything(name, value, depth = 0) {
  const title = name.replaceAll("_", " ");
  if (value === null || typeof value !== "object") return factRow(title, value);
  if (isEstimate(value)) return factRow(title, value.low === null ? value.value.toFixed(3) : `${value.value.toFixed(3)} [${value.low.toFixed(3)}, ${value.high.toFixed(3)}]`);
  if (Array.isArray(value) && value.every((item) => item === null || typeof item !== "object")) return factRow(title, value.map((item) => (typeof item === "number" ? short(item) : String(item))).join(", "));
  const entries = Array.isArray(value) ? value.slice(0, 40).map((item, i) => [String(i), item]) : Object.entries(value);
  return h("details", { class: "facts", open: depth === 0 && entries.length <= 12 }, h("summary", {}, title), entries.map(([key, item]) => anything(key, item, depth + 1)));
}

function isEstimate(value) {
  return typeof value.value === "number" && ["low", "high"].every((key) => value[key] === null || typeof value[key] === "number");
}

function factRow(title, value) {
  const text = typeof value === "number" ? short(value) : value === null ? "–" : typeof value === "boolean" ? (value ? "yes" : "no") : String(value);
  return h("div", { class: "fact" }, h("span", {}, title), h("span", { class: "number" }, text));
}

function provenance(view, app) {
  const { provenance: from } = view;
  const facts = [["model", from.model_hash], ["task", `${view.task.name}, seed ${view.task.seed}`], ["task hash", from.task_hash],
    ...Object.entries(from.versions), ["readings of test", String(from.test_readings.length)]];
  return h("div", {}, facts.map(([name, value]) => h("div", { class: "fact" }, h("span", {}, name), h("code", { class: "wrap" }, value))),
    h("p", { class: "quiet" }, view.task.origin ? `Imported from ${view.task.origin}, not pruned here; imported again by` : "Made again by"), h("pre", { class: "code" }, from.command),
    h("button", { onclick: () => copy(from.command, app.tell) }, "Copy command"),
    h("details", { class: "facts" }, h("summary", {}, "settings"), Object.entries(view.settings).map(([name, value]) => anything(name, value, 1))));
}

function comparison(view, other, app) {
  const shared = view.nodes.filter((node) => other.byName.has(node.name));
  const own = view.nodes.length - shared.length, others = other.nodes.length - shared.length;
  const isSameModel = view.model.hash === other.model.hash;
  const union = view.nodes.length + others;
  const sharedEdges = view.edges.filter((edge) => other.edgePlace.has(`${edge.source} → ${edge.target}`)).length;
  return h("div", {},
    isSameModel ? null : h("p", { class: "warning" }, "These circuits are of different models, so equal names don't mean equal nodes."),
    h("p", {}, `${plural(shared.length, "node")} and ${plural(sharedEdges, "edge")} in both; ${plural(own, "node")} only in ${view.title}, ${plural(others, "node")} only in ${other.title}.`),
    h("p", { class: "quiet" }, `Jaccard ${union ? (shared.length / union).toFixed(2) : "–"} of nodes. Nodes in both have a ring.`),
    h("details", { class: "facts" }, h("summary", {}, "nodes in both"), h("ul", { class: "names" }, shared.map((node) => h("li", {}, nodeLink(node.name, app))))));
}
