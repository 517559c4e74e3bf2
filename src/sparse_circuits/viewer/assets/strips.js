// Text as rows of tokens, each shaded by a number.

import { h, heat, inlineText, signed, tokenText, visible } from "./text.js";

/** A strip of tokens: `values` shade them, `most` is full shade, `focus` is the token that it is about, `label` what is told before them. */
export function strip(texts, values, most, { focus = -1, label = "", changed = null, onhover = null } = {}) {
  return h("div", { class: "strip", role: "img", "aria-label": `${label} ${visible(texts.join(""))}`.trim() },
    texts.map((text, i) => (text === null ? null : h("bdi", {
      class: ["tok", i === focus ? "focus" : "", changed?.has(i) ? "changed" : "", text.includes("\n") ? "ends" : ""].filter(Boolean).join(" "),
      style: `background:${heat(values[i] / most)}`,
      title: `${tokenText(text)}  ${signed(values[i])}`,
      onpointerenter: onhover && (() => onhover(i)),
    }, inlineText(text)))));
}

/** Places at which the two sides of a pair have different tokens. */
export function differing(pair) {
  return new Set(pair.tokens[0].flatMap((token, i) => (token === pair.tokens[1][i] ? [] : [i])));
}
