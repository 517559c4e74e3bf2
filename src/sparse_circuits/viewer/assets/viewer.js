// The viewer: one picture or two, the panel beside them, and what changes them.

import { readAddress, startState, writeAddress } from "./address.js";
import { circuitPanel } from "./circuit_panel.js";
import { pickFile } from "./exports.js";
import { refill } from "./focus.js";
import { Graph, legend } from "./graph.js";
import { Live, askServer } from "./live.js";
import { livePanel } from "./live_panel.js";
import { compareMenu, exportMenu, filters } from "./menus.js";
import { BrowserNotes, ServedNotes, WidgetNotes, emptyNotes, merged, sameNotes } from "./notes.js";
import { nodePanel } from "./node_panel.js";
import { notesPanel } from "./notes_panel.js";
import { promptPanel } from "./prompt_panel.js";
import { count, h, plural, short, tokenText } from "./text.js";
import { openView } from "./view.js";

const TABS = { circuit: "Circuit", node: "Node", prompt: "Prompts", notes: "Notes", live: "Live" };
const KEYS = [["/", "search"], ["arrows", "go from node to node"], ["Enter", "choose a node"], ["Escape", "close, or let go"], ["f", "fit the picture"], ["+ −", "zoom"], ["p", "pin the chosen node"],
  ["1 – 5", "panels"], ["[ ]", "previous and next pair"], ["t", "dark, light"], ["?", "this list"]];

/** Draw what a page holds: the start as JSON, gzipped, in base64. */
export async function mountPacked(root, text) {
  root.classList.add("sparse-circuits");
  if (typeof DecompressionStream === "undefined") return fail(root, "This browser is from before 2023 and can't unpack the page; a newer one opens it.");
  return mount(root, await unzipped(text));
}

async function unzipped(text) {
  const letters = atob(text), bytes = new Uint8Array(letters.length);
  for (let i = 0; i < bytes.length; i += 1) bytes[i] = letters.charCodeAt(i);
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).json();
}

function fail(root, message) {
  root.replaceChildren(h("p", { class: "failure", role: "alert" }, message));
  return null;
}

/** Draw into `root`. `start` has `views` (one or two view-models) and says whether a server or a widget is behind. */
export function mount(root, start) {
  root.classList.add("sparse-circuits");
  let views;
  try {
    views = start.views.map(openView);
  } catch (error) {
    return fail(root, error.message);
  }
  const app = new Viewer(root, start, views);
  app.begin();
  return app;
}

class Viewer {
  constructor(root, start, views) {
    Object.assign(this, { root, start, views, notes: emptyNotes(), conflict: null, state: startState() });
    this.state.theme = start.theme ?? this.state.theme;
    this.keepsURL = !start.widget;
    this.store = start.widget ? new WidgetNotes(start.widget, (found) => this.hear(found)) : start.is_live ? new ServedNotes((...request) => askServer(start.token, ...request)) : new BrowserNotes(views[0]);
    this.live = new Live(this);
    this.readURL();
    for (const name of ["change", "choose", "tell", "pin", "write"]) this[name] = this[name].bind(this);
  }

  begin() {
    this.build();
    this.showViews();
    this.render();
    this.loadNotes();
    if (this.state.node) this.tellChosen();
    this.root.dataset.ready = "true";
  }

  readURL() {
    if (this.keepsURL) Object.assign(this.state, readAddress({ tabs: this.tabNames, views: this.views }));
  }

  followURL() {
    this.readURL();
    this.search.value = this.state.query;
    this.render();
  }

  get tabNames() {
    return Object.keys(TABS).filter((tab) => tab !== "live" || this.start.is_live);
  }

  get view() {
    return this.views[0];
  }

  // ---- the frame

  build() {
    const { view } = this;
    this.search = h("input", { type: "search", placeholder: "Search  /", "aria-label": "search nodes", value: this.state.query, oninput: () => this.change({ query: this.search.value }) });
    this.search.addEventListener("keydown", (event) => event.key === "Enter" && this.nextFound());
    this.said = h("div", { class: "said", role: "status", "aria-live": "polite" });
    this.found = h("span", { class: "found-count quiet", "aria-live": "polite" });
    this.subtitle = h("p", {});
    this.stage = h("div", { class: "stage" });
    this.legendPlace = h("div", {});
    this.tabs = h("div", { class: "tabs", role: "tablist" });
    this.panel = h("div", { class: "panel", role: "tabpanel", tabindex: "0", "aria-label": "details" });
    const tool = (text, label, onclick) => h("button", { class: "tool", "aria-label": label, title: label, onclick }, text);
    this.root.replaceChildren(
      h("header", { class: "top" },
        h("div", { class: "name" }, h("h1", {}, h("bdi", {}, tokenText(view.title))), this.subtitle),
        h("div", { class: "search" }, this.search, this.found),
        h("div", { class: "tools" }, this.menu("Filter", () => filters(this)), this.menu("Compare", () => compareMenu(this)), this.menu("Export", () => exportMenu(this)),
          tool("◐", "dark or light", () => this.turnTheme()), tool("?", "keys", () => this.help()))),
      h("div", { class: "middle" },
        h("section", { class: "pictures", "aria-label": "graph" }, this.stage, h("div", { class: "under" }, this.legendPlace,
          h("div", { class: "zoom" }, tool("−", "zoom out", () => this.eachGraph((g) => g.camera.zoomBy(1 / 1.3))), tool("+", "zoom in", () => this.eachGraph((g) => g.camera.zoomBy(1.3))), tool("Fit", "fit the picture", () => this.eachGraph((g) => g.fit()))))),
        h("aside", { class: "side", "aria-label": "panels" }, this.tabs, this.panel)),
      this.said);
    this.root.addEventListener("keydown", (event) => this.key(event));
    if (this.keepsURL) {
      document.addEventListener("keydown", (event) => event.target === document.body && this.key(event));
      window.addEventListener("hashchange", () => this.followURL());
    }
    new ResizeObserver(() => this.graphs?.forEach((graph) => graph.fit())).observe(this.stage);
  }

  menu(title, content) {
    const body = h("div", { class: "menu-body" }), summary = h("summary", { role: "button" }, title);
    const box = h("details", { class: "menu" }, summary, body);
    box.refill = () => refill(body, content(), { instead: summary });
    box.addEventListener("toggle", () => {
      if (!box.open) return;
      this.root.querySelectorAll("details.menu[open]").forEach((other) => other !== box && (other.open = false));
      box.refill();
    });
    return box;
  }

  showViews() {
    const shared = this.views.length > 1 ? new Set(this.views[0].nodes.map((n) => n.name).filter((name) => this.views[1].byName.has(name))) : null;
    this.graphs = this.views.map((view) => {
      const graph = new Graph({ view, title: view.title, choose: this.choose });
      graph.shared = shared;
      return graph;
    });
    this.stage.replaceChildren(...this.graphs.map((graph, i) => (this.views.length === 1 ? graph.element
      : h("div", { class: "half" }, h("h2", { class: "half-name" }, h("bdi", {}, tokenText(this.views[i].title)), h("span", { class: "quiet" }, ` ${plural(this.views[i].summary.n_node, "node")}`)), graph.element))));
    this.stage.classList.toggle("two", this.views.length > 1);
    const { summary } = this.view;
    const test = this.view.report?.sufficiency?.test;
    const loss = test ? `loss ${test.circuit.loss.value.toFixed(3)} on test (model ${test.model.loss.value.toFixed(3)}, chance ${summary.chance.toFixed(3)})`
      : summary.losses.circuit === undefined ? "" : `loss ${short(summary.losses.circuit)} (model ${short(summary.losses.model)}, chance ${summary.chance.toFixed(3)})`;
    this.subtitle.textContent = [`${count(summary.n_node)} nodes of ${count(summary.n_node_total)}`, plural(summary.n_edge, "edge"), loss].filter(Boolean).join(" · ");
  }

  /** What has the focus; a notebook may keep the viewer in a shadow tree, whose outside sees only the host. */
  get active() {
    return this.root.getRootNode().activeElement;
  }

  eachGraph(act) { this.graphs.forEach(act); }

  // ---- state

  /** Change the state and draw what depends on it. */
  change(patch) {
    Object.assign(this.state, patch);
    const names = Object.keys(patch);
    const onlyFinds = names.every((name) => name === "query");
    if (onlyFinds) this.findNodes();
    else if (names.every((name) => ["tab", "end"].includes(name))) this.renderPanel();
    else this.render();
    if (this.keepsURL) writeAddress(this.state);
  }

  choose(name, isAdding = false) {
    if (isAdding && name) return void this.pin(name);
    const tab = name ? (["notes", "live"].includes(this.state.tab) ? this.state.tab : "node") : this.state.tab === "node" ? "circuit" : this.state.tab;
    const focused = this.graphs.find((graph) => graph.element.contains(this.active));
    this.change({ node: name, tab });
    focused?.elements.get(name)?.focus();
    if (name) this.tellChosen();
  }

  tellChosen() {
    this.eachGraph((graph) => {
      const place = graph.layout.at.get(this.state.node);
      if (place && graph.camera.zoom > 0.5) requestAnimationFrame(() => graph.camera.reveal(place.x, place.y));
    });
  }

  render() {
    const isDark = this.state.theme === "system" ? null : this.state.theme;
    if (isDark) this.root.dataset.theme = isDark;
    else delete this.root.dataset.theme;
    this.drawGraphs();
    this.renderPanel();
  }

  drawGraphs() {
    this.state.edited = new Set(this.live.edits.map((edit) => edit.node));
    this.legendPlace.replaceChildren(legend(this.state));
    this.graphs.forEach((graph) => graph.draw(this.state, this.notes));
    this.findNodes();
  }

  renderPanel() {
    const { state } = this;
    const hadFocus = this.tabs.contains(this.active);
    this.tabs.replaceChildren(...this.tabNames.map((tab) => h("button", { role: "tab", "aria-selected": String(state.tab === tab), tabindex: state.tab === tab ? "0" : "-1", onclick: () => this.change({ tab }),
      onkeydown: (event) => this.tabKey(event) }, TABS[tab])));
    if (hadFocus) this.tabs.querySelector('[aria-selected="true"]').focus();
    // Folded sections outlive a redraw too.
    const folded = new Set([...this.panel.querySelectorAll("details.section:not([open]) > summary")].map((summary) => summary.textContent));
    const isSame = this.drawnTab === state.tab && (state.tab !== "node" || this.drawnNode === state.node);
    const { scrollTop } = this.panel;
    const content = { circuit: () => circuitPanel(this.view, this, this.views[1]), node: () => nodePanel(this.viewOf(state.node), this), prompt: () => promptPanel(this.view, this),
      notes: () => notesPanel(this), live: () => livePanel(this.view, this) }[state.tab]();
    content.querySelectorAll("details.section > summary").forEach((summary) => folded.has(summary.textContent) && (summary.parentElement.open = false));
    refill(this.panel, content, { isSame });
    this.panel.scrollTop = isSame ? scrollTop : 0;
    Object.assign(this, { drawnTab: state.tab, drawnNode: state.node });
  }

  viewOf(node) {
    return this.views.find((view) => view.byName.has(node)) ?? this.view;
  }

  findNodes() {
    const n = this.graphs.reduce((sum, graph) => sum + graph.find(this.state.query), 0);
    this.found.textContent = this.state.query ? `${n} found` : "";
  }

  nextFound() {
    const found = this.graphs.flatMap((graph) => [...graph.elements].filter(([, element]) => element.classList.contains("found")));
    const names = [...new Set(found.map(([name]) => name))];
    if (names.length) this.choose(names[(names.indexOf(this.state.node) + 1) % names.length]);
  }

  tabKey(event) {
    const names = this.tabNames;
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!by) return;
    event.preventDefault();
    event.stopPropagation();
    this.change({ tab: names[(names.indexOf(this.state.tab) + by + names.length) % names.length] });
    this.tabs.querySelector('[aria-selected="true"]').focus();
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented || this.root.querySelector("dialog[open]")) return;
    const isTyping = /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName);
    if (event.key === "Escape") {
      if (this.closeMenus(event.target)) return;
      if (isTyping) event.target.blur();
      else this.choose(null);
      return;
    }
    if (isTyping) return;
    const tabs = this.tabNames;
    const n = this.view.prompts?.pairs.length;
    const acts = { "/": () => this.search.focus(), f: () => this.eachGraph((g) => g.fit()), "+": () => this.eachGraph((g) => g.camera.zoomBy(1.3)), "=": () => this.eachGraph((g) => g.camera.zoomBy(1.3)), "-": () => this.eachGraph((g) => g.camera.zoomBy(1 / 1.3)),
      p: () => this.state.node && this.pin(this.state.node), t: () => this.turnTheme(), "?": () => this.help(),
      "[": () => n && this.change({ pair: (this.state.pair - 1 + n) % n }), "]": () => n && this.change({ pair: (this.state.pair + 1) % n }) };
    const act = acts[event.key] ?? (tabs[Number(event.key) - 1] && (() => this.change({ tab: tabs[Number(event.key) - 1] })));
    if (act) {
      event.preventDefault();
      act();
    }
  }

  // ---- menus

  /** Close what is open, and say whether anything was; whoever was inside is at the menu's name again. */
  closeMenus(from) {
    const open = this.root.querySelectorAll("details.menu[open]");
    for (const menu of open) {
      menu.open = false;
      if (menu.contains(from)) menu.querySelector("summary").focus();
    }
    return open.length > 0;
  }

  async openBeside() {
    const text = await pickFile(".json");
    if (text === null) return;
    try {
      this.besides(openView(JSON.parse(text)));
    } catch (error) {
      this.tell(error instanceof SyntaxError ? "That file is not JSON." : error.message);
    }
  }

  besides(view) {
    this.views = view ? [this.views[0], view] : [this.views[0]];
    this.showViews();
    this.render();
  }

  turnTheme() {
    const isDark = this.state.theme === "system" ? matchMedia("(prefers-color-scheme: dark)").matches : this.state.theme === "dark";
    this.change({ theme: isDark ? "light" : "dark" });
  }

  help() {
    const box = h("dialog", { class: "help", "aria-label": "keys" }, h("h2", {}, "Keys"), h("dl", {}, KEYS.map(([key, what]) => [h("dt", {}, h("kbd", {}, key)), h("dd", {}, what)])),
      h("form", { method: "dialog" }, h("button", {}, "Close")));
    box.addEventListener("close", () => box.remove());
    this.root.append(box);
    box.showModal();
  }

  tell(text) {
    this.said.textContent = text;
    this.said.classList.add("shown");
    clearTimeout(this.fades);
    this.fades = setTimeout(() => this.said.classList.remove("shown"), 3500);
  }

  // ---- notes

  async loadNotes() {
    try {
      this.take((await this.store.read()) ?? this.view.notes);
      if (this.store.conflict) this.meet(this.store.conflict, "the page came with other notes than this browser has");
    } catch (error) {
      this.tell(`the notes could not be read: ${error.message}`);
    }
  }

  take(found) {
    if (!found || sameNotes(found, this.notes)) return;
    this.notes = { ...emptyNotes(), ...found };
    this.render();
  }

  /** Show what somebody else changed; not over a choice or an unsaved text, whose save will tell of it. */
  hear(found) {
    const part = { "own-name": "names", "own-note": "notes" }[this.active?.dataset?.keep];
    const isWriting = part && this.active.value !== (this.notes[part][this.state.node] ?? "");
    if (this.conflict || isWriting) return false;
    this.take(found);
    return true;
  }

  async keep(notes, { redrawsPanel = true } = {}) {
    const { where } = this.store;
    this.notes = notes;
    if (redrawsPanel) this.render();
    else this.drawGraphs();
    try {
      const { conflict, how = "saved in another tab meanwhile" } = await this.store.save(notes);
      if (conflict) this.meet(conflict, how);
    } catch (error) {
      this.tell(`the notes are not saved: ${error.message}`);
    }
    if (this.store.where !== where && this.state.tab === "notes") this.renderPanel();
  }

  /** Ask which of two readers' notes to keep. */
  meet(theirs, how) {
    Object.assign(this, { conflict: theirs, conflictIs: how });
    this.change({ tab: "notes" });
    this.tell(`${how}: choose what to keep`);
  }

  async settle(how) {
    const theirs = { ...emptyNotes(), ...this.conflict };
    let notes;
    try {
      notes = how === "merge" ? merged(this.notes, theirs) : how === "mine" ? this.notes : theirs;
    } catch (error) {
      return void this.tell(error.message);
    }
    this.conflict = null;
    await this.store.adopt();
    await this.keep(notes);
  }

  replaceNotes(notes) { this.keep(notes); }

  /** Pin a node, or a group's nodes; unpin them if they are all pinned. */
  pin(name) {
    const { pinned } = this.notes;
    const { names, unknown } = this.nodesOf(name);
    if (unknown.length) this.tell(`${unknown.join(", ")}: not in the picture, so it can't be pinned`);
    if (!names.length) return;
    const arePinned = names.every((one) => pinned.includes(one));
    this.keep({ ...this.notes, pinned: arePinned ? pinned.filter((other) => !names.includes(other)) : [...new Set([...pinned, ...names])] });
  }

  /** The nodes that a name stands for, one or those of a group: `names` in either circuit, and `unknown` ones. */
  nodesOf(name) {
    const group = this.notes.groups.find((one) => `group:${one.name}` === name);
    const all = group ? group.nodes : [name];
    return { names: all.filter((one) => this.knows(one)), unknown: all.filter((one) => !this.knows(one)) };
  }

  /** Whether a circuit that is shown has a node. */
  knows(name) {
    return this.views.some((view) => view.byName.has(name));
  }

  write(part, name, text) {
    const entries = { ...this.notes[part] };
    if (text.trim()) entries[name] = text;
    else delete entries[name];
    // The panel stays: the reader may be on the way to its next field.
    this.keep({ ...this.notes, [part]: entries }, { redrawsPanel: false });
  }

  groupWith(name) {
    if (!this.notes.pinned.includes(name)) this.pin(name);
    this.change({ tab: "notes" });
    this.panel.querySelector("#group-name")?.focus();
  }

  addGroup(name) {
    const pinned = this.notes.pinned.filter((other) => this.knows(other));
    const nodes = pinned.length ? pinned : this.nodesOf(this.state.node).names;
    if (this.notes.groups.some((group) => group.name === name)) this.tell(`there is a group ${name} already`);
    else this.keep({ ...this.notes, groups: [...this.notes.groups, { name, nodes, is_folded: false }], pinned: this.notes.pinned.filter((other) => !this.knows(other)) });
  }

  changeGroup(name, patch) {
    const groups = this.notes.groups.flatMap((group) => (group.name !== name ? [group] : patch === null ? [] : [{ ...group, ...patch }]));
    this.keep({ ...this.notes, groups });
  }
}
