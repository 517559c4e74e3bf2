// The view-model as the front end uses it: checked, unpacked, indexed; and the part of it that is shown.

const FORMAT = "sparse-circuits view";
const VERSION = 2;

/** Check a view-model and index it. Throws an Error with one clear sentence if it can't be shown. */
export function openView(raw) {
  if (raw === null || typeof raw !== "object" || raw.format !== FORMAT) {
    throw new Error(`This is not a view-model: its format is ${JSON.stringify(raw?.format ?? null)}, expected "${FORMAT}".`);
  }
  if (!Number.isInteger(raw.version) || raw.version > VERSION) {
    throw new Error(`This view-model is of version ${raw.version}; this page reads up to version ${VERSION}. `
      + "Update sparse-circuits and make the page again.");
  }
  if (raw.version < VERSION) {
    throw new Error(`This view-model is of version ${raw.version}, from before this page. Make it again with \`sparse-circuits view\`.`);
  }
  const view = { ...raw, byName: new Map(), place: new Map(), edgePlace: new Map() };
  raw.nodes.forEach((node, i) => { view.byName.set(node.name, node); view.place.set(node.name, i); });
  raw.edges.forEach((edge, i) => view.edgePlace.set(`${edge.source} → ${edge.target}`, i));
  view.links = linksOf(view);
  view.largestWeight = largest(raw.edges.map((edge) => Math.abs(edge.weight)), 1e-9);
  view.largestEffect = largest(raw.nodes.map((node) => effectOf(node) ?? 0), 1e-9);
  view.token = (id) => raw.vocabulary[id] ?? `#${id}`;
  return view;
}

function linksOf(view) {
  return [
    view.edges.map((edge, i) => ({ ...edge, kind: "edge", index: i })),
    view.carries.map((carry) => ({ ...carry, kind: "carry" })),
    view.scores.map((score) => ({ source: score.query, target: score.key, kind: "score" })),
    view.embedding.map((edge) => ({ source: `token:${edge.token}`, target: edge.target, weight: edge.weight, kind: "embedding" })),
    view.unembedding.map((edge) => ({ source: edge.source, target: `logit:${edge.token}`, weight: edge.weight, kind: "unembedding" })),
  ].flat();
}

/** The largest of many numbers, `least` at least: a function can't be handed some 100,000 as arguments. */
export function largest(values, least) {
  let most = least;
  for (const value of values) if (value > most) most = value;
  return most;
}

/** How much higher the loss is without a node, in nats; undefined where it was not measured. */
export function effectOf(node) {
  return node.effect_estimate?.value ?? node.effect;
}

/** Unpack an array: `{shape, data, rows(i)}`, each row its own scale. */
export function unpack(packed) {
  if (packed.unpacked) return packed.unpacked;
  const bytes = Uint8Array.from(atob(packed.data), (character) => character.charCodeAt(0));
  const numbers = packed.scales ? new Int16Array(bytes.buffer) : new Uint16Array(bytes.buffer);
  const width = packed.shape.slice(1).reduce((a, b) => a * b, 1);
  const row = (i) => {
    const part = numbers.subarray(i * width, (i + 1) * width);
    return packed.scales ? Float64Array.from(part, (value) => value * packed.scales[i]) : part;
  };
  Object.defineProperty(packed, "unpacked", { value: { shape: packed.shape, width, row, numbers } });
  return packed.unpacked;
}

/** The node's activations, or contributions, on one side of a pair: one number a token. */
export function onPrompt(view, pair, run, name, side, what = "activations") {
  const packed = unpack(pair[run][what]);
  const row = packed.row(view.place.get(name));
  const length = packed.shape[2];
  return row.subarray(side * length, (side + 1) * length);
}

/** The contribution of each edge to the logit difference on one side of a pair. */
export function edgeContributions(pair, run, side) {
  return unpack(pair[run].edge_contributions).row(side);
}

/** The largest magnitude of a node on all prompts, in both runs: what its colours are scaled by. */
export function promptScale(view, name) {
  const i = view.place.get(name);
  let most = 0;
  for (const pair of view.prompts.pairs) {
    for (const run of ["model", "circuit"]) most = Math.max(most, pair[run].activations.scales[i] * 32767);
  }
  return most || 1;
}

/** Whether a node is meant by what is typed: parts of its name, of the reader's own name or of a note. */
export function matches(node, query, notes) {
  const text = [node.name, notes.names[node.name] ?? "", notes.notes[node.name] ?? "",
    node.head === undefined ? "" : `head ${node.head} h${node.head}`, `layer ${node.layer}`, node.site].join(" ").toLowerCase();
  return query.toLowerCase().split(/\s+/).every((word) => text.includes(word));
}

/** What filters leave of the graph: nodes to draw, folded groups in the place of theirs, and links between them. */
export function shownGraph(view, state, notes) {
  const isHidden = (node) => state.hiddenLayers.has(node.layer) || (effectOf(node) ?? Infinity) < state.minEffect;
  const left = new Map(view.nodes.filter((node) => !isHidden(node)).map((node) => [node.name, node]));
  const nodes = new Map(), stands = new Map();
  for (const group of notes.groups) {
    const members = group.nodes.filter((name) => left.has(name));
    if (!group.is_folded || !members.length || group.nodes.filter((name) => view.byName.has(name)).length < 2) continue;
    const name = `group:${group.name}`;
    nodes.set(name, { ...left.get(members[0]), name, label: group.name, members, isGroup: true, head: undefined,
      effect: largest(members.map((member) => effectOf(left.get(member)) ?? 0), -Infinity), effect_estimate: undefined });
    members.forEach((member) => stands.set(member, name));
  }
  for (const [name, node] of left) if (!stands.has(name)) nodes.set(name, node);
  const links = shownLinks(view, state, nodes, stands);
  for (const link of links) {
    for (const name of [link.source, link.target]) {
      if (nodes.has(name)) continue;
      const id = Number(name.split(":")[1]);
      const isToken = name.startsWith("token:");
      nodes.set(name, { name, token: id, label: view.token(id), site: isToken ? "token" : "logit", layer: isToken ? -1 : Infinity });
    }
  }
  return { nodes: [...nodes.values()], links };
}

/**
 * Links between what is drawn. Those that join the same two become one: `weight` is their sum, `magnitude` that of their
 * magnitudes, `n` how many they are, `indices` which edges.
 */
function shownLinks(view, state, nodes, stands) {
  const links = new Map();
  const isThere = (name) => nodes.has(name) || name.startsWith("token:") || name.startsWith("logit:");
  for (const { kind, weight, index, ...link } of view.links) {
    if (weight !== undefined && Math.abs(weight) < state.minWeight) continue;
    if (kind === "carry" && !state.showsCarries) continue;
    if ((kind === "embedding" || kind === "unembedding") && !state.showsTokens) continue;
    const source = stands.get(link.source) ?? link.source;
    const target = stands.get(link.target) ?? link.target;
    if (source === target || !isThere(source) || !isThere(target)) continue;
    const key = `${kind}|${source}|${target}`;
    const one = links.get(key) ?? { kind, source, target, n: 0, indices: [], ...(weight === undefined ? {} : { weight: 0, magnitude: 0 }) };
    links.set(key, one);
    one.n += 1;
    if (index !== undefined) one.indices.push(index);
    if (weight === undefined) continue;
    one.weight += weight;
    one.magnitude += Math.abs(weight);
  }
  return [...links.values()];
}
