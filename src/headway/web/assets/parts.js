/** Common parts of figures: a title, the drawing, the values as a table and as a file. */

import { csvText } from "./data.js";
import { download, html } from "./dom.js";

/** @typedef {Record<string, string>} Said a text in every language */
/** @typedef {{ kind: string, title: Said, [key: string]: any }} Plain a figure as figures/values.py makes it */
/**
 * @typedef {object} Drawn
 * @property {HTMLElement} element
 * @property {() => void} draw again: after it has a place, and when width or theme change
 * @property {(figure: any) => void} set the numbers of another figure of the same kind
 * @property {(whole: boolean) => void} [rescale] colours for all values, or for most of them
 * @property {(row: number | null, column: number | null) => void} [point] show a cell, a row or a column, as if pointed at; -1 nothing
 */
/**
 * @typedef {object} Setting where a figure stands
 * @property {import("./words.js").Words} words
 * @property {number} level of its heading
 * @property {string} file a name for what is saved
 * @property {"tile" | "part"} [form] a tile is only its drawing; a part has a title, but neither table nor file
 * @property {boolean} [quiet] without a hint how to read values
 */
/** @typedef {{ head: unknown[], rows: unknown[][], note?: string }} Sheet */

/**
 * A text in the reader's language.
 * @param {import("./words.js").Words} words
 * @param {Said} said
 * @returns {string}
 */
export function told(words, said) {
  return said[words.language] ?? said.en ?? "";
}

/**
 * What the reader has chosen in a figure: the open stage, a frame, the table. It goes with the figure into another
 * language and into a saved page.
 * @param {any} figure
 * @param {any} [before] the figure whose place it takes
 * @returns {Record<string, any>}
 */
export function keptOf(figure, before) {
  figure.kept = before?.kept ?? figure.kept ?? {};
  return figure.kept;
}

/**
 * A figure with its title above, and below it "view as table" and "save CSV".
 * @param {Setting} setting
 * @param {() => Plain} figure
 * @param {import("./dom.js").Child[]} body
 * @param {{ table?: () => Sheet, csv?: () => unknown[][] }} sheets the table is made when it is opened
 * @returns {{ element: HTMLElement, refresh: () => void }} refresh after another figure was set
 */
export function frameOf({ words, level, file, form }, figure, body, sheets) {
  const kind = figure().kind;
  const attributes = { class: `shown shown-${kind}`, "data-kind": kind };
  if (form === "tile") return { element: html("div", attributes, body), refresh: () => {} };
  const heading = html(`h${Math.min(6, level)}`, { class: "shown-title" });
  const scroll = html("div", { class: "scroll", tabindex: "0", role: "region" });
  const details = html("details", { open: Boolean(keptOf(figure()).table), ontoggle: () => fill() }, html("summary", {}, words.say("view.table")), scroll);
  const save = html("button", { type: "button", class: "save", "data-csv": kind, onclick: () => download(`${file}.csv`, csvText(/** @type {any} */ (sheets).csv())) }, words.say("csv"));

  function fill() {
    scroll.replaceChildren();
    keptOf(figure()).table = /** @type {HTMLDetailsElement} */ (details).open;
    if (!sheets.table || !(/** @type {HTMLDetailsElement} */ (details).open)) return;
    const { head, rows, note } = sheets.table();
    const cell = (/** @type {string} */ tag, /** @type {unknown} */ text, /** @type {Record<string, string>} */ more = {}) => html(tag, more, String(text ?? ""));
    if (note) scroll.append(html("p", { class: "quiet" }, note));
    scroll.append(html("table", {},
      html("thead", {}, html("tr", {}, head.map((text) => cell("th", text, { scope: "col" })))),
      html("tbody", {}, rows.map(([name, ...cells]) => html("tr", {}, cell("th", name, { scope: "row" }), cells.map((one) => cell("td", one)))))));
  }

  function name() {
    const title = told(words, figure().title);
    heading.textContent = title;
    heading.hidden = !title;
    scroll.setAttribute("aria-label", `${title} · ${words.say("view.table")}`);
  }

  function refresh() {
    name();
    fill();
  }

  name(); // a table that is open already is filled when the figure is there
  const actions = form !== "part" && sheets.csv && html("div", { class: "actions" }, save, sheets.table && details);
  const element = html("figure", attributes, heading, body, actions);
  return { element, refresh };
}

/**
 * Tell the page around a figure that something was chosen in it.
 * @param {Element} element
 * @param {string} name
 * @param {object} detail
 */
export function announce(element, name, detail) {
  element.dispatchEvent(new CustomEvent(name, { bubbles: true, detail }));
}
