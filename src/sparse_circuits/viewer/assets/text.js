// Elements and numbers as text. Nothing here or elsewhere parses HTML: whatever comes from a model is a text node.

const SVG = "http://www.w3.org/2000/svg";

/** Make an HTML element; attributes that begin with "on" are listeners, null and false are left out. */
export function h(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** Make an SVG element. */
export function s(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "value") element.value = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat(Infinity)) {
    if (child !== null && child !== undefined && child !== false) element.append(child);
  }
  return element;
}

/** Write out what can't be seen or would turn text around: control characters, line ends, marks of direction. */
export function visible(text) {
  let shown = "";
  for (const character of text) {
    const code = character.codePointAt(0);
    if (character === "\n") shown += "↵";
    else if (character === "\t") shown += "⇥";
    else if (code < 32) shown += String.fromCodePoint(0x2400 + code);
    else if (code === 127) shown += "␡";
    else if ((code > 127 && code < 160) || (code >= 0x200b && code <= 0x200f) || (code >= 0x2028 && code <= 0x202e)
      || (code >= 0x2066 && code <= 0x2069) || code === 0xfeff) shown += `⟨${code.toString(16)}⟩`;
    else if (code >= 0xd800 && code <= 0xdfff) shown += "\ufffd";
    else shown += character;
  }
  return shown;
}

/** The first characters of a text; a pair of surrogates is one character, and stays whole. */
export function cut(text, n) {
  return [...text].slice(0, n).join("");
}

/** A token as an isolated piece of text, spaces at its ends made visible. */
export function tokenText(text) {
  return visible(text).replace(/^ +| +$/g, (spaces) => "␣".repeat(spaces.length)) || "∅";
}

/** A token inside a run of text: spaces stay spaces, unless there is nothing else. */
export function inlineText(text) {
  return /^ +$/.test(text) ? "␣".repeat(text.length) : visible(text) || "∅";
}

/** Source code as it is read: line ends stay, other invisible characters are written out. */
export function codeText(text) {
  return text.split("\n").map((line) => visible(line)).join("\n");
}

/** A number with its sign: +0.43, −1.2. */
export function signed(value, digits = 3) {
  const text = Math.abs(value).toFixed(digits);
  return (value < 0 && Number(text) !== 0 ? "−" : "+") + text;
}

/** A number in three digits or so. */
export function short(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (Number.isInteger(value)) return count(value);
  const magnitude = Math.abs(value);
  const text = magnitude >= 100 ? count(Math.round(magnitude)) : magnitude >= 0.001 || magnitude === 0
    ? String(Number(magnitude.toPrecision(3))) : magnitude.toExponential(1).replace("-", "−");
  return value < 0 ? `−${text}` : text;
}

/** A whole number with its thousands apart. */
export function count(value) {
  return String(Math.abs(value)).replace(/\B(?=(\d{3})+$)/g, ",").replace(/^/, value < 0 ? "−" : "");
}

/** "1 node", "2 nodes". */
export function plural(number, word) {
  return `${count(number)} ${word}${number === 1 ? "" : "s"}`;
}

/** The kind of a location in words. */
export const SITE_NAMES = {
  "attn.act_in": "attention read",
  "attn.q": "query",
  "attn.k": "key",
  "attn.v": "value",
  "attn.resid_delta": "attention write",
  "mlp.act_in": "MLP read",
  "mlp.post_act": "neuron",
  "mlp.resid_delta": "MLP write",
};

/** What a node is, in words. */
export function describe(node) {
  const where = `layer ${node.layer}`;
  if (node.head !== undefined) return `${SITE_NAMES[node.site]} · head ${node.head}, channel ${node.channel_in_head} · ${where}`;
  if (node.position_channel !== undefined) return `${SITE_NAMES[node.site]} · position channel ${node.position_channel} · ${where}`;
  return `${SITE_NAMES[node.site] ?? node.site} · channel ${node.channel} · ${where}`;
}

/** A background for a number in [−1, 1]: one accent for each sign, nothing at 0. */
export function heat(share) {
  const strength = Math.min(1, Math.abs(share));
  if (strength < 0.004) return "transparent";
  return `color-mix(in oklab, var(--${share > 0 ? "plus" : "minus"}) ${(8 + 72 * strength ** 0.8).toFixed(0)}%, transparent)`;
}

/** Put text on the clipboard; where the page may not, offer it in a prompt. */
export async function copy(text, told) {
  try {
    await navigator.clipboard.writeText(text);
    told(`copied ${text.length > 60 ? `${cut(text, 60)}…` : text}`);
  } catch {
    const area = h("textarea", { value: text, "aria-label": "text to copy", class: "offscreen" });
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    told(done ? "copied" : `could not copy; it is: ${text}`);
  }
}
