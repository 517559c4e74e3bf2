// Where nodes stand: locations are rows, the forward pass goes up; within a row, near what they are joined to. Parts of the
// graph without a link between them are laid out by themselves: one above the other where they share no row, else side
// by side, the largest in the middle.

const SITES = ["attn.act_in", "attn.qkv", "attn.resid_delta", "mlp.act_in", "mlp.post_act", "mlp.resid_delta"];
const TITLES = { "attn.act_in": "reads", "attn.qkv": "q, k, v", "attn.resid_delta": "writes", "mlp.act_in": "reads",
  "mlp.post_act": "neurons", "mlp.resid_delta": "writes", token: "embedding", logit: "logits" };
const GAP = 58, HEAD_GAP = 14, ROW = 96, LINE = 46, PER_LINE = 24, MARGIN = 60, N_SWEEP = 12, TO_MIDDLE = 0.12;

/** Lay out a shown graph: `{rows, at, heads, bands, width, height}` in pixels. */
export function layOut({ nodes, links }) {
  const rows = rowsOf(nodes);
  const nLine = new Map(rows.map((row) => [row.rank, Math.ceil(row.nodes.length / PER_LINE)]));
  const near = neighbours(nodes, links);
  const x = new Map();
  const parts = partsOf(nodes, near).map((members) => layOutPart(members, near, nLine, x));
  pack(parts, x);
  for (const row of rows) {
    row.nLine = nLine.get(row.rank);
    row.nodes.sort((a, b) => x.get(a.name) - x.get(b.name));
    row.groups = headsOf(row.nodes);
  }
  const left = Math.min(...x.values()), right = Math.max(...x.values());
  return finish(rows, x, left, Math.max(right - left, 1));
}

/** Give the nodes of one part their places relative to each other; returns its rows. */
function layOutPart(members, near, nLine, x) {
  const rows = rowsOf(members);
  for (const row of rows) {
    row.nLine = nLine.get(row.rank);
    row.nodes.forEach((node, i) => x.set(node.name, i * GAP));
  }
  for (let sweep = 0; sweep < N_SWEEP; sweep += 1) {
    near.middle = members.reduce((sum, node) => sum + x.get(node.name), 0) / members.length;
    for (const row of sweep % 2 ? [...rows].reverse() : rows) {
      order(row, near, x);
      place(row, near, x);
    }
  }
  return rows;
}

/** Put parts where no row of theirs is taken, as near to the middle as that goes; the largest first. */
function pack(parts, x) {
  const taken = new Map();
  const size = (rows) => rows.reduce((sum, row) => sum + row.nodes.length, 0);
  for (const rows of [...parts].sort((a, b) => size(b) - size(a))) {
    const spans = rows.map((row) => spanOf(row, x));
    const middle = (Math.min(...spans.map((span) => span.left)) + Math.max(...spans.map((span) => span.right))) / 2;
    let toRight = -Infinity, toLeft = Infinity;
    for (const { rank, left, right } of spans) {
      if (!taken.has(rank)) continue;
      toRight = Math.max(toRight, taken.get(rank).right - left + middle);
      toLeft = Math.min(toLeft, taken.get(rank).left - right + middle);
    }
    const isFree = toRight === -Infinity;
    const shift = (isFree ? 0 : toRight <= -toLeft ? toRight : toLeft) - middle;
    for (const row of rows) for (const node of row.nodes) x.set(node.name, x.get(node.name) + shift);
    for (const { rank, left, right } of spans) {
      const before = taken.get(rank) ?? { left: Infinity, right: -Infinity };
      taken.set(rank, { left: Math.min(before.left, left + shift), right: Math.max(before.right, right + shift) });
    }
  }
}

/** The room that a part takes in one row. */
function spanOf(row, x) {
  const half = (node) => (node.head === undefined ? widthOf(node) / row.nLine : GAP + HEAD_GAP) / 2;
  return { rank: row.rank, left: Math.min(...row.nodes.map((node) => x.get(node.name) - half(node))),
    right: Math.max(...row.nodes.map((node) => x.get(node.name) + half(node))) };
}

function rowsOf(nodes) {
  const found = new Map();
  for (const node of nodes) {
    const site = /^attn\.[qkv]$/.test(node.site) ? "attn.qkv" : node.site;
    const rank = site === "token" ? -1 : site === "logit" ? Infinity : node.layer * SITES.length + SITES.indexOf(site);
    if (!found.has(rank)) found.set(rank, { rank, site, layer: node.layer, title: TITLES[site], nodes: [] });
    found.get(rank).nodes.push(node);
  }
  return [...found.values()].sort((a, b) => a.rank - b.rank);
}

function neighbours(nodes, links) {
  const near = new Map(nodes.map((node) => [node.name, []]));
  const join = (a, b, pull) => {
    if (!near.has(a) || !near.has(b)) return;
    near.get(a).push([b, pull]);
    near.get(b).push([a, pull]);
  };
  for (const { source, target, kind, magnitude } of links) {
    if (kind !== "score") join(source, target, kind === "carry" ? 2 : kind === "edge" ? 1 + Math.min(2, magnitude ?? 0) : 0.35);
  }
  // A head is drawn as one box, so its nodes are of one part.
  const last = new Map();
  for (const node of nodes.filter((other) => other.head !== undefined)) {
    const head = `${node.layer} ${node.head}`;
    if (last.has(head)) join(last.get(head), node.name, 0.1);
    last.set(head, node.name);
  }
  return near;
}

/** The parts of the graph that hang together, as lists of nodes. */
function partsOf(nodes, near) {
  const byName = new Map(nodes.map((node) => [node.name, node]));
  const parts = [];
  for (const first of byName.keys()) {
    const part = [byName.get(first)];
    byName.delete(first);
    for (const node of part) {
      for (const [other] of near.get(node.name)) {
        if (!byName.has(other)) continue;
        part.push(byName.get(other));
        byName.delete(other);
      }
    }
    parts.push(part);
  }
  return parts;
}

/** Where a node's neighbours are, and a little to the middle of its part, so that rows with few links don't drift apart. */
function wanted(name, near, x) {
  let sum = 0, total = 0;
  for (const [other, pull] of near.get(name)) {
    sum += pull * x.get(other);
    total += pull;
  }
  return total ? ((1 - TO_MIDDLE) * sum) / total + TO_MIDDLE * near.middle : near.middle;
}

/** A row's nodes by head, each node without one by itself. */
function headsOf(nodes) {
  const heads = new Map();
  for (const node of nodes) {
    const head = node.head ?? node.name;
    heads.set(head, [...(heads.get(head) ?? []), node]);
  }
  return [...heads.values()];
}

/** Sort a row by where its neighbours are; heads stay together, q before k before v. */
function order(row, near, x) {
  const want = new Map(row.nodes.map((node) => [node.name, wanted(node.name, near, x)]));
  const mean = (members) => members.reduce((sum, node) => sum + want.get(node.name), 0) / members.length;
  row.groups = headsOf(row.nodes).sort((a, b) => mean(a) - mean(b));
  for (const group of row.groups) {
    group.sort((a, b) => "qkv".indexOf(a.site.at(-1)) - "qkv".indexOf(b.site.at(-1)) || want.get(a.name) - want.get(b.name));
  }
  row.nodes = row.groups.flat();
}

/** Give a row's nodes the places nearest to where they want to be that keep their order and their distance. */
function place(row, near, x) {
  let offset = 0;
  const offsets = row.nodes.map((node, i) => (offset += i ? distance(row.nodes[i - 1], node, row.nLine) : 0));
  // Blocks of nodes that touch move as one to the mean of what they want.
  const blocks = [];
  row.nodes.forEach((node, i) => {
    blocks.push({ sum: wanted(node.name, near, x) - offsets[i], n: 1 });
    while (blocks.length > 1) {
      const [a, b] = blocks.slice(-2);
      if (a.sum / a.n <= b.sum / b.n) break;
      blocks.splice(-2, 2, { sum: a.sum + b.sum, n: a.n + b.n });
    }
  });
  let i = 0;
  for (const block of blocks) {
    for (let k = 0; k < block.n; k += 1, i += 1) x.set(row.nodes[i].name, block.sum / block.n + offsets[i]);
  }
}

/** How far apart two neighbours of a row stand: in a row of several lines, the next stands on another line. */
function distance(a, b, nLine) {
  const room = (widthOf(a) + widthOf(b)) / 2;
  return a.head === b.head ? room / nLine : room + HEAD_GAP;
}

function widthOf(node) {
  return node.label === undefined ? GAP : Math.max(GAP, 7.4 * Math.min(18, node.label.length) + 26);
}

function finish(rows, x, left, span) {
  const width = span + 2 * MARGIN;
  // Wide pictures get higher rows, so that their lines don't lie flat.
  const rowHeight = Math.max(ROW, Math.min(2.2 * ROW, (0.66 * width) / rows.length));
  const height = rows.reduce((sum, row) => sum + rowHeight + LINE * (row.nLine - 1), 0) + 24;
  const at = new Map(), heads = [], bands = [];
  let bottom = height - 12;
  for (const row of rows) {
    const tall = rowHeight + LINE * (row.nLine - 1);
    row.top = bottom - tall;
    row.bottom = bottom;
    row.y = bottom - tall / 2;
    row.nodes.forEach((node, i) => {
      at.set(node.name, { x: x.get(node.name) - left + MARGIN, y: bottom - rowHeight / 2 - LINE * (i % row.nLine) });
    });
    for (const group of row.groups.filter((members) => members[0].head !== undefined)) {
      const places = group.map((node) => at.get(node.name).x);
      heads.push({ head: group[0].head, layer: row.layer, x: Math.min(...places) - 27, y: bottom - rowHeight / 2 - LINE * (row.nLine - 1) - 30,
        width: Math.max(...places) - Math.min(...places) + 54, height: 66 + LINE * (row.nLine - 1) });
    }
    const band = bands.at(-1);
    if (band && band.layer === row.layer) band.top = row.top;
    else bands.push({ layer: row.layer, top: row.top, bottom: row.bottom });
    bottom = row.top;
  }
  return { rows, at, heads, bands, width, height };
}
