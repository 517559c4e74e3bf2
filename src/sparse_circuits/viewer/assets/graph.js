// The drawing of one circuit: rows, heads, links, nodes; hovering, choosing, and moving by keyboard.

import { Camera } from "./camera.js";
import { layOut } from "./layout.js";
import { cut, describe, h, plural, s, signed, tokenText } from "./text.js";
import { edgeContributions, effectOf, largest, matches, shownGraph } from "./view.js";

const GUTTER = 116;
const LABELS_FROM = 0.42;
const MANY_LINKS = 300;

/** One circuit's picture. `choose(name)` is called when a node is chosen, null when it is let go. */
export class Graph {
  constructor({ view, title, choose }) {
    Object.assign(this, { view, choose, shared: null });
    this.picture = s("svg", { class: "picture", role: "group", "aria-label": `Graph of ${tokenText(title)}` });
    this.board = h("div", { class: "board" }, this.picture);
    this.rowLabels = h("div", { class: "row-labels" });
    this.gutter = h("div", { class: "gutter", "aria-hidden": "true" }, this.rowLabels);
    this.tip = h("div", { class: "tip", role: "status", hidden: true });
    this.element = h("div", { class: "frame" }, this.board, this.gutter, this.tip);
    this.camera = new Camera(this.element, this.board, {
      size: () => this.layout,
      resize: (zoom) => this.resize(zoom),
      moved: () => this.moveGutter(),
    });
    this.picture.addEventListener("click", (event) => this.clicked(event));
    this.element.addEventListener("click", (event) => event.target === this.element && !this.camera.hasDragged && this.choose(null));
    this.picture.addEventListener("pointerover", (event) => this.hovered(event));
    this.picture.addEventListener("pointerleave", () => this.unhovered());
    this.picture.addEventListener("focusin", (event) => this.focused(event));
    this.picture.addEventListener("keydown", (event) => this.key(event));
  }

  /** Draw anew. `state` says what is shown, `notes` has names, pins and groups. */
  draw(state, notes) {
    this.state = state;
    this.notes = notes;
    this.shown = shownGraph(this.view, state, notes);
    this.layout = layOut(this.shown);
    const { width, height } = this.layout;
    this.picture.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const focused = this.picture.contains(this.active) ? this.active.dataset.name : null;
    this.elements = new Map();
    this.drawLinks(state);
    this.drawGutter();
    this.resize(this.camera.painted);
    // The size comes first: text that is laid out before it would be laid out twice.
    if (this.isPlaced) this.camera.apply();
    else this.fit();
    this.picture.replaceChildren(this.drawBands(), this.drawHeads(), this.linkLayer, this.drawNodes(state));
    this.elements.get(focused)?.focus({ preventScroll: true });
    this.highlight(state.node);
    this.find(state.query);
  }

  get active() {
    return this.picture.getRootNode().activeElement ?? null;
  }

  fit() {
    if (!this.element.clientWidth) return;
    this.camera.fit(GUTTER - 24);
    this.isPlaced = true;
  }

  resize(zoom) {
    this.picture.setAttribute("width", this.layout.width * zoom);
    this.picture.setAttribute("height", this.layout.height * zoom);
    this.picture.classList.toggle("far", zoom < LABELS_FROM);
  }

  drawBands() {
    const { bands, width } = this.layout;
    return s("g", { class: "bands" }, bands.filter((band) => band.layer >= 0 && band.layer < Infinity && band.layer % 2 === 0)
      .map((band) => s("rect", { x: -4000, width: width + 8000, y: band.top, height: band.bottom - band.top })));
  }

  drawHeads() {
    return s("g", { class: "heads" }, this.layout.heads.map((head) => s("g", {},
      s("rect", { x: head.x, y: head.y, width: head.width, height: head.height, rx: 12 }),
      s("text", { x: head.x + head.width / 2, y: head.y - 5, "text-anchor": "middle" }, `head ${head.head}`))));
  }

  drawGutter() {
    const name = (layer) => (layer < 0 ? "" : layer === Infinity ? "" : `layer ${layer}`);
    this.labelledAt = null;
    this.rowLabels.replaceChildren(...this.layout.rows.map((row, i) => {
      const isFirst = row.layer !== this.layout.rows[i + 1]?.layer;
      const kind = row.site.startsWith("attn") ? "attention" : row.site.startsWith("mlp") ? "MLP" : "";
      row.label = h("div", { class: "row-label" }, h("b", {}, isFirst ? name(row.layer) : ""), `${kind} ${row.title}`.trim());
      return row.label;
    }));
  }

  moveGutter() {
    const { y, zoom } = this.camera;
    this.rowLabels.style.transform = `translate3d(0, ${Math.round(y)}px, 0)`;
    if (!this.tip.hidden) this.tip.hidden = true;
    if (this.labelledAt === zoom) return;
    this.labelledAt = zoom;
    for (const row of this.layout.rows) row.label.style.top = `${Math.round(row.y * zoom)}px`;
    this.gutter.classList.toggle("dense", zoom * 96 < 30);
  }

  drawLinks(state) {
    const { at } = this.layout;
    const by = this.contributions(state);
    const most = by ? largest(by.map(Math.abs), 1e-9) : this.view.largestWeight;
    this.linkElements = [];
    // Among many links a faint one fades, or the strong ones can't be told.
    const faint = Math.min(1, Math.sqrt(MANY_LINKS / Math.max(1, this.shown.links.length)));
    const layers = { carry: [], embedding: [], edge: [], score: [] };
    for (const link of this.shown.links) {
      const isWeight = link.weight !== undefined;
      const { weight: value, magnitude } = by && isWeight ? contributionOf(link, by) : link;
      const share = isWeight ? Math.min(1, magnitude / most) : 0;
      const sign = !isWeight || value === 0 ? "" : value > 0 ? " plus" : " minus";
      const isToken = link.kind === "embedding" || link.kind === "unembedding";
      const path = s("path", {
        class: `link ${link.kind}${sign}`,
        d: pathOf(at.get(link.source), at.get(link.target), link.kind),
        "stroke-width": isWeight ? ((isToken ? 0.5 : 0.9) + (isToken ? 1.6 : 4.6) * share).toFixed(2) : null,
        "stroke-opacity": isWeight ? ((isToken ? 0.28 : 0.42) * faint + 0.5 * share).toFixed(2) : null,
      });
      path.link = link;
      layers[isToken ? "embedding" : link.kind].push(path);
      this.linkElements.push(path);
    }
    this.linkLayer = s("g", { class: "links", "aria-hidden": "true" }, Object.values(layers));
  }

  contributions(state) {
    const pair = state.colours === "contribution" ? this.view.prompts?.pairs[state.pair] : null;
    return pair ? edgeContributions(pair, state.run, state.side) : null;
  }

  drawNodes(state) {
    const layer = s("g", { class: "nodes" });
    const members = new Map(this.notes.groups.flatMap((group) => group.nodes.map((name) => [name, group.name])));
    for (const row of this.layout.rows) {
      for (const node of row.nodes) {
        const place = this.layout.at.get(node.name);
        const isEnd = node.site === "token" || node.site === "logit";
        const classes = ["node", isEnd ? "end" : "", node.isGroup ? "group" : "", this.notes.pinned.includes(node.name) ? "pinned" : "",
          members.has(node.name) ? "grouped" : "", this.shared?.has(node.name) ? "shared" : "", this.state.edited?.has(node.name) ? "edited" : ""];
        const element = s("g", {
          class: classes.filter(Boolean).join(" "),
          role: "button", tabindex: "-1", "aria-label": this.toldOf(node), "data-name": node.name,
          "aria-pressed": isEnd ? null : String(state.node === node.name),
        }, isEnd || node.isGroup ? chip(node, place) : this.disc(node, place));
        element.node = node;
        this.elements.set(node.name, element);
        layer.append(element);
      }
    }
    const first = this.elements.get(state.node) ?? layer.querySelector(".node:not(.end)") ?? layer.firstChild;
    first?.setAttribute("tabindex", "0");
    return layer;
  }

  // Places stand in every shape: a browser keeps books of each transformed group whenever the picture moves.
  disc(node, { x, y }) {
    const effect = effectOf(node);
    const share = Math.sqrt(Math.max(0, effect ?? 0) / this.view.largestEffect);
    const radius = effect === undefined ? 7 : 5 + 8 * share;
    const own = this.notes.names[node.name];
    const plain = node.head === undefined ? String(node.channel) : `${node.site.at(-1)} ${node.channel_in_head}`;
    return [
      s("circle", { class: "halo", cx: x.toFixed(1), cy: y.toFixed(1), r: (radius + 5).toFixed(1) }),
      s("circle", { class: "disc", cx: x.toFixed(1), cy: y.toFixed(1), r: radius.toFixed(1), style: `--share:${(8 + 84 * share).toFixed(0)}%` }),
      s("text", { x: x.toFixed(1), y: (y + radius + 14).toFixed(1), "text-anchor": "middle" }, own ? cut(tokenText(own), 16) : plain),
    ];
  }

  toldOf(node) {
    if (node.site === "token") return `token ${tokenText(node.label)}, embedding`;
    if (node.site === "logit") return `answer ${tokenText(node.label)}, logit`;
    if (node.isGroup) return `group ${tokenText(node.label)}, ${plural(node.members.length, "node")}`;
    const effect = effectOf(node);
    const own = this.notes.names[node.name];
    return [own ? tokenText(own) : null, node.name, describe(node), effect === undefined ? null : `effect ${signed(effect)} nats`,
      this.notes.pinned.includes(node.name) ? "pinned" : null].filter(Boolean).join(", ");
  }

  /** Show a node with what it is joined to, and everything else faintly; null shows all alike. */
  highlight(name) {
    const isOn = name !== null && this.elements.has(name);
    this.picture.classList.toggle("dim", isOn);
    const near = new Set([name]);
    for (const path of this.linkElements) {
      const touches = isOn && (path.link.source === name || path.link.target === name);
      path.classList.toggle("on", touches);
      if (touches) near.add(path.link.source).add(path.link.target);
    }
    for (const [other, element] of this.elements) {
      element.classList.toggle("on", isOn && near.has(other));
      element.classList.toggle("chosen", other === this.state.node);
    }
    if (!isOn) this.tip.hidden = true;
  }

  find(query) {
    this.picture.classList.toggle("searching", Boolean(query));
    let n = 0;
    for (const element of this.elements.values()) {
      const isFound = Boolean(query) && (element.node.members ?? [element.node.name]).some((name) => {
        const node = this.view.byName.get(name);
        return node && matches(node, query, this.notes);
      });
      element.classList.toggle("found", isFound);
      n += isFound;
    }
    return n;
  }

  hovered(event) {
    if (this.camera.fingers.size) return;
    const target = event.target.closest(".node, .link");
    if (!target) return void this.unhovered();
    if (target.node) {
      this.highlight(target.node.name);
      this.showTip(this.toldOf(target.node), event);
    } else {
      const { source, target: end, weight, kind, n } = target.link;
      const what = kind === "carry" ? "carried by the residual stream" : kind === "score" ? "multiplied in the head's score" : n > 1 ? `${n} weights, ${signed(weight)} in sum` : `weight ${signed(weight)}`;
      this.showTip(`${this.nameOf(source)} → ${this.nameOf(end)}: ${what}`, event);
    }
  }

  /** The pointer is on nothing: what is chosen shows alone, without words at a place that the pointer has left. */
  unhovered() {
    this.highlight(this.state.node);
    this.tip.hidden = true;
  }

  nameOf(name) {
    const node = this.elements.get(name)?.node;
    return node?.label === undefined ? name : tokenText(node.label);
  }

  showTip(text, event) {
    const box = this.element.getBoundingClientRect();
    this.tip.textContent = text;
    this.tip.hidden = false;
    const x = Math.min(event.clientX - box.left + 14, box.width - this.tip.offsetWidth - 8);
    this.tip.style.transform = `translate(${Math.max(4, x)}px, ${event.clientY - box.top + 16}px)`;
  }

  clicked(event) {
    if (this.camera.hasDragged) return;
    const element = event.target.closest(".node");
    if (!element) return void this.choose(null);
    if (!element.classList.contains("end")) this.choose(element.node.name, event.shiftKey);
  }

  focused(event) {
    const element = event.target.closest(".node");
    if (!element) return;
    this.picture.querySelector('.node[tabindex="0"]')?.setAttribute("tabindex", "-1");
    element.setAttribute("tabindex", "0");
    this.highlight(element.node.name);
    if (element.matches(":focus-visible")) {
      const { x, y } = this.layout.at.get(element.node.name);
      this.camera.reveal(x, y);
    }
  }

  key(event) {
    const element = event.target.closest(".node");
    if (!element || event.altKey || event.ctrlKey || event.metaKey) return;
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      if (!element.classList.contains("end")) this.choose(element.node.name, event.shiftKey);
      return;
    }
    const next = this.neighbourTowards(element.node.name, event.key);
    if (next) {
      event.preventDefault();
      this.elements.get(next).focus();
    }
  }

  /** Left and right go along the row, up and down to the nearest node of the next row, by links if there are any. */
  neighbourTowards(name, key) {
    const { rows, at } = this.layout;
    const r = rows.findIndex((row) => row.nodes.some((node) => node.name === name));
    const row = rows[r].nodes;
    if (key === "ArrowLeft" || key === "ArrowRight") {
      const i = row.findIndex((node) => node.name === name) + (key === "ArrowRight" ? 1 : -1);
      return row[i]?.name;
    }
    if (key === "Home" || key === "End") return row.at(key === "Home" ? 0 : -1).name;
    if (key !== "ArrowUp" && key !== "ArrowDown") return undefined;
    const isUp = key === "ArrowUp";
    const joined = this.shown.links.filter((link) => (isUp ? link.source : link.target) === name && link.kind !== "score")
      .sort((a, b) => isOutside(a) - isOutside(b) || (b.magnitude ?? 0) - (a.magnitude ?? 0)).map((link) => (isUp ? link.target : link.source));
    if (joined.length) return joined[0];
    const other = rows[r + (isUp ? 1 : -1)]?.nodes ?? [];
    return [...other].sort((a, b) => Math.abs(at.get(a.name).x - at.get(name).x) - Math.abs(at.get(b.name).x - at.get(name).x))[0]?.name;
  }
}

/** What the edges of a line contribute together, in the place of its weight; links that are no edges, nothing. */
function contributionOf({ indices }, by) {
  const values = indices.map((i) => by[i]);
  return { weight: values.reduce((a, b) => a + b, 0), magnitude: values.reduce((a, b) => a + Math.abs(b), 0) };
}

/** Links with tokens and logits are walked last. */
function isOutside(link) {
  return Number(link.kind === "embedding" || link.kind === "unembedding");
}

function chip(node, { x, y }) {
  const text = node.isGroup ? `${tokenText(node.label)} · ${node.members.length}` : cut(tokenText(node.label), 18);
  const width = Math.max(26, 7.4 * [...text].length + 14);
  return [s("rect", { class: "chip", x: (x - width / 2).toFixed(1), y: (y - 12).toFixed(1), width: width.toFixed(1), height: 24, rx: node.isGroup ? 12 : 5 }),
    s("text", { x: x.toFixed(1), y: (y + 4).toFixed(1), "text-anchor": "middle" }, text)];
}

function pathOf(from, to, kind) {
  const [x1, y1, x2, y2] = [from.x, from.y, to.x, to.y].map((value) => Number(value.toFixed(1)));
  if (kind === "score") return `M${x1} ${y1}Q${(x1 + x2) / 2} ${y1 - 22} ${x2} ${y2}`;
  const bend = Math.max(28, Math.abs(y1 - y2) * 0.48);
  return `M${x1} ${y1}C${x1} ${y1 - bend} ${x2} ${y2 + bend} ${x2} ${y2}`;
}

/** What a picture's colours and lines mean. */
export function legend(state) {
  const line = (kind) => s("svg", { width: 30, height: 10, "aria-hidden": "true" }, s("path", { class: `link ${kind}`, d: "M2 5H28", "stroke-width": kind === "carry" || kind === "score" ? null : 3 }));
  const what = state.colours === "contribution" ? "contribution" : "weight";
  return h("div", { class: "legend" },
    h("span", {}, line("edge plus"), `positive ${what}`), h("span", {}, line("edge minus"), `negative ${what}`),
    h("span", {}, line("carry"), "carried by the stream"),
    h("span", {}, s("svg", { width: 34, height: 18, "aria-hidden": "true", class: "sizes" },
      s("circle", { class: "disc", cx: 6, cy: 9, r: 4, style: "--share:10%" }), s("circle", { class: "disc", cx: 24, cy: 9, r: 8, style: "--share:90%" })),
    "effect when ablated"));
}

