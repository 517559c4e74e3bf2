// The menus: what is shown, a second circuit, files.

import { download, edgesCSV, graphML, nodesCSV, toJSON, toPNG, toSVG } from "./exports.js";
import { h, short } from "./text.js";
import { effectOf } from "./view.js";

/** What is hidden, by weight, effect, layer and kind. */
export function filters(app) {
  const { state, view } = app;
  const slider = (label, name, most, format) => {
    const least = name === "minEffect" ? Math.min(0, ...view.nodes.map((node) => effectOf(node) ?? 0)) : 0;
    const told = h("output", {}, format(Math.max(least, state[name])));
    return h("label", { class: "slider" }, h("span", {}, label, told), h("input", { type: "range", min: "0", max: "100", step: "1", value: String(state[name] === -Infinity ? 0 : Math.round(100 * Math.sqrt((state[name] - least) / (most - least)))),
      oninput: (event) => {
        const share = Number(event.target.value) / 100;
        const value = share === 0 && name === "minEffect" ? -Infinity : least + (most - least) * share * share;
        told.textContent = format(Math.max(least, value));
        app.change({ [name]: value });
      } }));
  };
  const check = (label, isOn, set) => h("label", { class: "check" }, h("input", { type: "checkbox", checked: isOn, onchange: (event) => set(event.target.checked) }), label);
  const layers = [...new Set(view.nodes.map((node) => node.layer))].sort((a, b) => a - b);
  return h("div", {},
    slider("weights of at least ", "minWeight", view.largestWeight, short), slider("effects of at least ", "minEffect", view.largestEffect, short),
    h("fieldset", {}, h("legend", {}, "layers"), layers.map((layer) => check(String(layer), !state.hiddenLayers.has(layer), (isOn) => {
      const hidden = new Set(state.hiddenLayers);
      if (isOn) hidden.delete(layer);
      else hidden.add(layer);
      app.change({ hiddenLayers: hidden });
    }))),
    check("tokens and logits", state.showsTokens, (isOn) => app.change({ showsTokens: isOn })), check("what the stream carries", state.showsCarries, (isOn) => app.change({ showsCarries: isOn })),
    check("colour edges by contribution on the chosen prompt", state.colours === "contribution", (isOn) => app.change({ colours: isOn ? "contribution" : "weight" })),
    h("button", { onclick: () => { app.change({ minWeight: 0, minEffect: -Infinity, hiddenLayers: new Set(), showsTokens: true, showsCarries: true, colours: "weight" }); app.root.querySelectorAll("details.menu[open]").forEach((menu) => menu.refill()); } }, "Show everything"));
}

/** A second circuit beside the first. */
export function compareMenu(app) {
  return h("div", {}, h("p", { class: "quiet" }, "A second circuit beside this one: a view-model that was exported as JSON."),
    h("button", { onclick: () => app.openBeside() }, "Open a circuit…"), app.views.length > 1 ? h("button", { onclick: () => app.besides(null) }, "Show one circuit") : null);
}

/** The circuit as a file. */
export function exportMenu(app) {
  const name = app.view.title.replace(/[^\w.-]+/g, "_");
  const write = async (text, act) => {
    try {
      await act();
      app.tell(`wrote ${text}`);
    } catch (error) {
      app.tell(`${text} is not written: ${error.message}`);
    }
  };
  const item = (text, act) => h("button", { onclick: () => write(text, act) }, text);
  return h("div", { class: "list" },
    item("SVG", () => download(`${name}.svg`, toSVG(app.graphs[0]), "image/svg+xml")),
    item("PNG", async () => download(`${name}.png`, await toPNG(app.graphs[0]), "image/png")),
    item("JSON", () => download(`${name}.json`, toJSON(app.start.views[0], app.notes), "application/json")),
    item("CSV, nodes", () => download(`${name}.nodes.csv`, nodesCSV(app.view, app.notes), "text/csv")),
    item("CSV, edges", () => download(`${name}.edges.csv`, edgesCSV(app.view), "text/csv")),
    item("GraphML", () => download(`${name}.graphml`, graphML(app.view, app.notes), "application/xml")));
}
