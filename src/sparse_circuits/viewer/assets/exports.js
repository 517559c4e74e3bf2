// The circuit as files: SVG, PNG, JSON, CSV, GraphML.

import { s } from "./text.js";
import { effectOf } from "./view.js";

/** Hand a file to the reader. */
export function download(name, content, type) {
  const url = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type }));
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/** Ask for a file and return its text, null if none was chosen. */
export function pickFile(accept) {
  return new Promise((resolve) => {
    const input = document.createElement("input");
    input.type = "file";
    input.accept = accept;
    input.addEventListener("change", () => resolve(input.files[0] ? input.files[0].text() : null));
    input.addEventListener("cancel", () => resolve(null));
    input.click();
  });
}

const DRAWN = ["fill", "fill-opacity", "stroke", "stroke-width", "stroke-opacity", "stroke-dasharray", "stroke-linecap", "stroke-linejoin",
  "font-family", "font-size", "font-weight", "paint-order", "visibility", "display", "opacity"];

/** The picture as an SVG file that looks the same without this page's styles. */
export function toSVG(graph) {
  const { picture, layout } = graph;
  const copy = picture.cloneNode(true);
  const isFar = picture.classList.contains("far");
  picture.classList.remove("far"); // names are left out of the page's small picture, not of the file
  const pairs = [[picture, copy]];
  while (pairs.length) {
    const [from, to] = pairs.pop();
    if (from.nodeType !== Node.ELEMENT_NODE) continue;
    const look = getComputedStyle(from);
    to.setAttribute("style", DRAWN.map((name) => `${name}:${look.getPropertyValue(name)}`).join(";"));
    for (const name of ["class", "tabindex", "role", "aria-pressed", "data-name"]) to.removeAttribute(name);
    [...from.childNodes].forEach((child, i) => pairs.push([child, to.childNodes[i]]));
  }
  picture.classList.toggle("far", isFar);
  const paper = getComputedStyle(graph.element).getPropertyValue("--paper");
  copy.prepend(s("rect", { width: layout.width, height: layout.height, style: `fill:${paper}` }));
  copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
  copy.setAttribute("width", layout.width);
  copy.setAttribute("height", layout.height);
  return new XMLSerializer().serializeToString(copy);
}

/** The picture as PNG, two pixels a point; at most 8,000 pixels a side. */
export async function toPNG(graph) {
  const { width, height } = graph.layout;
  const scale = Math.min(2, 8000 / Math.max(width, height));
  const image = new Image();
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(toSVG(graph))}`;
  await image.decode();
  const canvas = document.createElement("canvas");
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  const context = canvas.getContext("2d");
  context.scale(scale, scale);
  context.drawImage(image, 0, 0, width, height);
  return new Promise((resolve, reject) => {
    canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("this browser can't make a picture of that size"))), "image/png");
  });
}

function cell(value) {
  if (value === undefined || value === null) return "";
  const text = String(value);
  // A spreadsheet runs a cell that begins like a formula.
  const safe = typeof value === "string" && /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
  return /[",\n\r]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

function table(head, rows) {
  return [head, ...rows].map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
}

/** Nodes as CSV. */
export function nodesCSV(view, notes) {
  return table(["name", "layer", "site", "channel", "head", "channel_in_head", "effect", "effect_low", "effect_high", "own_name", "note", "groups"],
    view.nodes.map((node) => [node.name, node.layer, node.site, node.channel, node.head, node.channel_in_head, effectOf(node), node.effect_estimate?.low, node.effect_estimate?.high,
      notes.names[node.name], notes.notes[node.name], notes.groups.filter((group) => group.nodes.includes(node.name)).map((group) => group.name).join("; ")]));
}

/** Weights, and what the stream carries, as CSV. */
export function edgesCSV(view) {
  const end = (name) => (name.includes(":") && /^(token|logit):/.test(name) ? `${name.split(":")[0]} ${view.token(Number(name.split(":")[1]))}` : name);
  return table(["source", "target", "kind", "weight", "effect"], view.links.map((link) => [end(link.source), end(link.target), link.kind, link.weight, link.effect]));
}

/** The graph as GraphML, for Gephi, yEd, networkx. */
export function graphML(view, notes) {
  const escape = (text) => String(text).replace(/[\u0000-\u0008\u000b\u000c\u000e-\u001f\ufffe\uffff]/g, "\ufffd").replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;").replaceAll('"', "&quot;");
  const keys = [["node", "layer", "int"], ["node", "site", "string"], ["node", "channel", "int"], ["node", "head", "int"], ["node", "effect", "double"], ["node", "own_name", "string"], ["edge", "weight", "double"], ["edge", "kind", "string"]];
  const data = (entries) => entries.filter(([, value]) => value !== undefined).map(([key, value]) => `<data key="${key}">${escape(value)}</data>`).join("");
  const nodes = view.nodes.map((node) => `<node id="${escape(node.name)}">${data([["layer", node.layer], ["site", node.site], ["channel", node.channel], ["head", node.head], ["effect", effectOf(node)], ["own_name", notes.names[node.name]]])}</node>`);
  const inside = view.links.filter((link) => view.byName.has(link.source) && view.byName.has(link.target));
  const edges = inside.map((link) => `<edge source="${escape(link.source)}" target="${escape(link.target)}">${data([["weight", link.weight], ["kind", link.kind]])}</edge>`);
  return `<?xml version="1.0" encoding="UTF-8"?>\n<graphml xmlns="http://graphml.graphdrawing.org/xmlns">\n${keys.map(([of, name, type]) => `<key id="${name}" for="${of}" attr.name="${name}" attr.type="${type}"/>`).join("\n")}\n<graph id="circuit" edgedefault="directed">\n${[...nodes, ...edges].join("\n")}\n</graph>\n</graphml>\n`;
}

/** The view-model with the reader's notes, as it can be opened beside another circuit. */
export function toJSON(raw, notes) {
  return JSON.stringify({ ...raw, notes });
}
