// The state in the page's address, so that what one sees can be sent.

const TEXTS = ["tab", "node", "query", "minWeight", "minEffect", "colours", "pair", "side", "run", "end", "theme"];
const FLAGS = ["showsTokens", "showsCarries"];

/** What a page starts with. */
export function startState() {
  return { tab: "circuit", node: null, query: "", minWeight: 0, minEffect: -Infinity, hiddenLayers: new Set(), showsTokens: true, showsCarries: true,
    colours: "weight", pair: 0, side: 0, run: "circuit", end: "top", theme: "system" };
}

/** Write what differs from the start behind the address's #. */
export function writeAddress(state) {
  const parts = new URLSearchParams(), start = startState();
  for (const name of TEXTS) if (state[name] !== start[name] || (name === "tab" && state.node)) parts.set(name, state[name]);
  for (const name of FLAGS) if (!state[name]) parts.set(name, "0");
  if (state.hiddenLayers.size) parts.set("hiddenLayers", [...state.hiddenLayers].join("."));
  const text = parts.toString();
  history.replaceState(null, "", text ? `#${text}` : location.pathname + location.search);
}

/** Read the state that an address asks for; whatever is not there or has no meaning is as at the start. */
export function readAddress({ tabs, views }) {
  const parts = new URLSearchParams(location.hash.slice(1)), start = startState();
  const number = (name) => { const value = Number(parts.get(name)); return parts.has(name) && Number.isFinite(value) ? value : start[name]; };
  const oneOf = (name, known) => (known.includes(parts.get(name)) ? parts.get(name) : start[name]);
  const n = views[0].prompts?.pairs.length ?? 1;
  const node = views.some((view) => view.byName.has(parts.get("node"))) ? parts.get("node") : null;
  return {
    tab: node && !parts.has("tab") ? "node" : oneOf("tab", tabs), node, query: parts.get("query") ?? "",
    minWeight: number("minWeight"), minEffect: number("minEffect"), pair: Math.min(n - 1, Math.max(0, Math.round(number("pair")))), side: number("side") === 1 ? 1 : 0,
    colours: oneOf("colours", ["weight", "contribution"]), run: oneOf("run", ["model", "circuit"]), end: oneOf("end", ["top", "bottom", "random"]), theme: oneOf("theme", ["system", "light", "dark"]),
    showsTokens: parts.get("showsTokens") !== "0", showsCarries: parts.get("showsCarries") !== "0",
    hiddenLayers: new Set((parts.get("hiddenLayers") ?? "").split(".").filter(Boolean).map(Number)),
  };
}
