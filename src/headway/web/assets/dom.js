/** Create elements. Text is only inserted as text nodes, so that nothing in a file name or message can become markup. */

/** @typedef {Node | string | number | null | undefined | false} Child */

/**
 * @param {Element} node
 * @param {Record<string, unknown>} attributes `onclick` and the like take functions; null and false leave one out
 * @param {(Child | Child[])[]} children
 */
function furnish(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") node.addEventListener(name.slice(2), /** @type {EventListener} */ (value));
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children.flat()) {
    if (child === null || child === undefined || child === false) continue;
    node.append(child instanceof Node ? child : String(child));
  }
}

/**
 * @param {string} tag
 * @param {Record<string, unknown>} [attributes]
 * @param {...(Child | Child[])} children
 * @returns {HTMLElement}
 */
export function html(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  furnish(node, attributes, children);
  return node;
}

/**
 * @param {string} tag
 * @param {Record<string, unknown>} [attributes]
 * @param {...(Child | Child[])} children
 * @returns {SVGElement}
 */
export function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  furnish(node, attributes, children);
  return node;
}

/**
 * A sentence with method specs in backticks, as nodes.
 * @param {string} sentence
 * @returns {Child[]}
 */
export function prose(sentence) {
  // Keep "2.31 → 2.28" and "87 %" together at the end of a line.
  const bound = sentence.replace(/ (?=→|%)/g, "\u00a0").replace(/→ /g, "→\u00a0");
  return bound.split("`").map((part, index) => (index % 2 ? html("code", { class: "name" }, part) : part));
}

/**
 * Offer a table as a file to save.
 * @param {string} name
 * @param {string} text
 */
export function download(name, text) {
  offer(name, new Blob(["\ufeff", text], { type: "text/csv;charset=utf-8" }));
}

/**
 * Offer anything as a file to save.
 * @param {string} name
 * @param {Blob} blob
 */
export function offer(name, blob) {
  const url = URL.createObjectURL(blob);
  const link = html("a", { href: url, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}
