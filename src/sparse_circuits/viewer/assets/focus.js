// A part of the page is drawn anew, and the reader's place in it is kept: the focus, the caret, what is being typed.

/**
 * Fill a part of the page. What had the focus in it has it again, or what stands in its place now, or `instead`. If the
 * part is not about the same thing as before (`isSame`), the focus goes to `instead` at once.
 */
export function refill(part, content, { isSame = true, instead = part } = {}) {
  const { activeElement: active } = part.getRootNode();
  const had = active && active !== part && part.contains(active) ? remembered(part, active) : null;
  part.replaceChildren(content);
  if (!had) return;
  const again = isSame ? standingFor(part, had) : null;
  again?.focus({ preventScroll: true });
  if (!again || part.getRootNode().activeElement !== again) instead.focus({ preventScroll: true }); // gone, or disabled
  else if (had.typed) retype(again, had.typed);
}

/** What tells an element from its neighbours when they are drawn anew; those whose words change have a key. */
function keyOf(element) {
  return element.dataset.keep ?? `${element.tagName} ${element.getAttribute("aria-label") ?? element.textContent}`;
}

function alike(part, key) {
  return [...part.querySelectorAll("button, input, select, textarea, summary, [tabindex]")].filter((element) => keyOf(element) === key);
}

function remembered(part, element) {
  const key = keyOf(element);
  const { value, selectionStart: start, selectionEnd: end } = element;
  return { key, nth: alike(part, key).indexOf(element), typed: element.dataset.keep && element.tagName !== "BUTTON" ? { value, start, end } : null };
}

function standingFor(part, { key, nth }) {
  const found = alike(part, key);
  return found[Math.min(nth, found.length - 1)];
}

function retype(field, { value, start, end }) {
  if (field.value !== value) {
    field.value = value;
    // To a browser this is no change by the reader, so on leaving the field it would not tell of one.
    field.addEventListener("blur", () => field.dispatchEvent(new Event("change")), { once: true });
  }
  if (Number.isInteger(start)) field.setSelectionRange(start, end);
}
