// Small charts as SVG: lines, bars, a histogram. Colours come from the style sheet.

import { h, s, short } from "./text.js";

const WIDTH = 348, HEIGHT = 132, LEFT = 40, BOTTOM = 22, TOP = 14, RIGHT = 8;

/** A line through points [x, y]; `log` spaces x by its logarithm, `rule` is a dashed line at a value. */
export function lineChart(points, { title, xLabel, log = false, rule = null, ruleLabel = "", highest = null, mark = null }) {
  const fx = log ? Math.log : (x) => x;
  const xs = points.map(([x]) => fx(x));
  const [low, high] = [Math.min(...xs), Math.max(...xs)];
  const most = highest ?? (Math.max(...points.map(([, y]) => y), rule ?? 0) || 1);
  const top = highest ?? 1.06 * most;
  const x = (value) => LEFT + (WIDTH - LEFT - RIGHT) * (high > low ? (fx(value) - low) / (high - low) : 0.5);
  const y = (value) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - Math.min(1, value / top));
  const parts = [s("line", { class: "axis", x1: LEFT, x2: WIDTH - RIGHT, y1: y(0), y2: y(0) })];
  ticks(points, log).forEach((value, i, all) => {
    const anchor = i === 0 ? "start" : i === all.length - 1 ? "end" : "middle";
    parts.push(s("text", { x: x(value), y: HEIGHT - 6, "text-anchor": anchor }, short(value)));
  });
  parts.push(s("text", { x: LEFT - 6, y: y(0) + 4, "text-anchor": "end" }, "0"), s("text", { x: LEFT - 6, y: y(most) + 4, "text-anchor": "end" }, short(most)));
  if (rule !== null) {
    parts.push(s("line", { class: "rule", x1: LEFT, x2: WIDTH - RIGHT, y1: y(rule), y2: y(rule) }),
      s("text", { x: WIDTH - RIGHT, y: y(rule) - 4, "text-anchor": "end" }, ruleLabel));
  }
  const sorted = [...points].sort((a, b) => a[0] - b[0]);
  parts.push(s("polyline", { class: "curve", points: sorted.map(([a, b]) => `${x(a).toFixed(1)},${y(b).toFixed(1)}`).join(" ") }));
  if (sorted.length <= 40) parts.push(...sorted.map(([a, b]) => s("circle", { class: "dot", cx: x(a), cy: y(b), r: 2.2 }, s("title", {}, `${short(a)}: ${short(b)}`))));
  if (mark) parts.push(s("circle", { class: "mark", cx: x(mark[0]), cy: y(mark[1]), r: 4.5 }, s("title", {}, `${short(mark[0])}: ${short(mark[1])}`)));
  return h("figure", { class: "chart" }, h("figcaption", {}, title, xLabel ? h("span", {}, ` by ${xLabel}`) : null),
    s("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": title }, parts));
}

function ticks(points, log) {
  const xs = points.map(([x]) => x);
  const [low, high] = [Math.min(...xs), Math.max(...xs)];
  if (!log) return low === high ? [low] : [low, Math.round((low + high) / 2), high];
  const powers = [];
  for (let power = 10 ** Math.ceil(Math.log10(Math.max(1, low))); power <= high; power *= 10) powers.push(power);
  return [low, ...powers.filter((power) => power > low * 2.2 && power < high / 2.2), high];
}

/** How often values occur; bars left of zero and right of it have the two accents. Counts are drawn by their logarithm. */
export function histogram({ low, high, counts }, { nZero, nToken }) {
  if (!counts.length) return h("p", { class: "quiet" }, "never active in the text that was read");
  const most = Math.log1p(Math.max(...counts));
  const step = (WIDTH - LEFT - RIGHT) / counts.length;
  const value = (i) => low + ((high - low) * (i + 0.5)) / counts.length;
  const bars = counts.map((n, i) => {
    const height = (HEIGHT - TOP - BOTTOM) * (Math.log1p(n) / most);
    return s("rect", { class: value(i) < 0 ? "minus" : "plus", x: LEFT + i * step + 0.5, y: HEIGHT - BOTTOM - height, width: Math.max(1, step - 1), height },
      s("title", {}, `about ${short(value(i))}: ${n}`));
  });
  return h("figure", { class: "chart" },
    h("figcaption", {}, "activation in the corpus", h("span", {}, `, ${short((100 * (nToken - nZero)) / nToken)} % of tokens not zero; counts in log`)),
    s("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `Histogram of activations from ${short(low)} to ${short(high)}` },
      s("line", { class: "axis", x1: LEFT, x2: WIDTH - RIGHT, y1: HEIGHT - BOTTOM, y2: HEIGHT - BOTTOM }), bars,
      s("text", { x: LEFT, y: HEIGHT - 6 }, short(low)), s("text", { x: WIDTH - RIGHT, y: HEIGHT - 6, "text-anchor": "end" }, short(high)),
      s("text", { x: LEFT - 6, y: TOP + 8, "text-anchor": "end" }, short(Math.max(...counts)))));
}

/** Horizontal bars with optional intervals: rows of {label, value, low, high, kind}. */
export function bars(rows, { most, unit = "" }) {
  return h("div", { class: "bars" }, rows.map((row) => {
    const at = (value) => `${Math.max(0, Math.min(100, (100 * value) / most)).toFixed(1)}%`;
    return h("div", { class: "bar-row" }, h("span", { class: "bar-label" }, row.label),
      h("span", { class: "bar-track" }, h("span", { class: `bar ${row.kind ?? ""}`, style: `width:${at(row.value)}` }),
        row.low === undefined ? null : h("span", { class: "whisker", style: `left:${at(row.low)};width:calc(${at(row.high)} - ${at(row.low)})` })),
      h("span", { class: "bar-value", title: row.low === undefined ? null : `${short(row.low)} to ${short(row.high)}` }, row.value.toFixed(3), unit));
  }));
}

/** A bar from a middle line to the left (negative) or right. */
export function balance(value, most) {
  const width = `${Math.min(50, (50 * Math.abs(value)) / most).toFixed(1)}%`;
  return h("span", { class: "balance", "aria-hidden": "true" }, h("span", { class: value < 0 ? "minus" : "plus", style: value < 0 ? `right:50%;width:${width}` : `left:50%;width:${width}` }));
}
