// Where nodes stand: locations are rows, the forward pass goes up; within a row, near what they are joined to.

const SITES = ["attn.act_in", "attn.qkv", "attn.resid_delta", "mlp.act_in", "mlp.post_act", "mlp.resid_delta"];
const TITLES = { "attn.act_in": "reads", "attn.qkv": "q, k, v", "attn.resid_delta": "writes", "mlp.act_in": "reads",
  "mlp.post_act": "neurons", "mlp.resid_delta": "writes", token: "embedding", logit: "logits" };
const GAP = 58, HEAD_GAP = 26, ROW = 96, LINE = 46, PER_LINE = 30, MARGIN = 60;

/** Lay out a shown graph: `{rows, at, heads, bands, width, height}` in pixels. */
export function layOut({ nodes, links }) {
  const rows = rowsOf(nodes);
  const near = neighbours(nodes, links);
  const x = new Map();
  for (const row of rows) row.nodes.forEach((node, i) => x.set(node.name, i * GAP));
  for (let sweep = 0; sweep < 8; sweep += 1) {
    // A weak pull to the middle, so that parts without a link between them stand above each other.
    near.middle = [...x.values()].reduce((sum, value) => sum + value, 0) / Math.max(1, x.size);
    for (const row of sweep % 2 ? [...rows].reverse() : rows) {
      order(row, near, x);
      place(row, near, x);
    }
  }
  const left = Math.min(...x.values()), right = Math.max(...x.values());
  return finish(rows, x, left, Math.max(right - left, 1));
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
  for (const { source, target, kind, weight } of links) {
    if (kind === "score") continue;
    const pull = kind === "carry" ? 2 : kind === "edge" ? 1 + Math.min(2, Math.abs(weight ?? 0)) : 0.35;
    near.get(source)?.push([target, pull]);
    near.get(target)?.push([source, pull]);
  }
  return near;
}

function wanted(name, near, x) {
  let sum = 0.12 * near.middle, total = 0.12;
  for (const [other, pull] of near.get(name)) {
    sum += pull * x.get(other);
    total += pull;
  }
  return sum / total;
}

/** Sort a row by where its neighbours are; heads stay together, q before k before v. */
function order(row, near, x) {
  const want = new Map(row.nodes.map((node) => [node.name, wanted(node.name, near, x)]));
  const heads = new Map();
  for (const node of row.nodes) {
    const head = node.head ?? node.name;
    heads.set(head, [...(heads.get(head) ?? []), node]);
  }
  const mean = (members) => members.reduce((sum, node) => sum + want.get(node.name), 0) / members.length;
  row.groups = [...heads.values()].sort((a, b) => mean(a) - mean(b));
  for (const group of row.groups) {
    group.sort((a, b) => "qkv".indexOf(a.site.at(-1)) - "qkv".indexOf(b.site.at(-1)) || want.get(a.name) - want.get(b.name));
  }
  row.nodes = row.groups.flat();
  row.nLine = row.groups.some((group) => group[0].head !== undefined) ? 1 : Math.ceil(row.nodes.length / PER_LINE);
}

/** Give a row's nodes the places nearest to where they want to be that keep their order and their distance. */
function place(row, near, x) {
  const gaps = [];
  row.groups.forEach((group, g) => group.forEach((node, i) => {
    const isNewHead = i === 0 && g > 0 && (group[0].head !== undefined || row.groups[g - 1][0].head !== undefined);
    gaps.push((widthOf(node) + (isNewHead ? HEAD_GAP : 0)) / row.nLine);
  }));
  let offset = 0;
  const offsets = row.nodes.map((_, i) => (offset += i ? (gaps[i] + gaps[i - 1]) / 2 : 0));
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
      heads.push({ head: group[0].head, layer: row.layer, x: Math.min(...places) - 27, y: row.y - 30,
        width: Math.max(...places) - Math.min(...places) + 54, height: 66 });
    }
    const band = bands.at(-1);
    if (band && band.layer === row.layer) band.top = row.top;
    else bands.push({ layer: row.layer, top: row.top, bottom: row.bottom });
    bottom = row.top;
  }
  return { rows, at, heads, bands, width, height };
}
