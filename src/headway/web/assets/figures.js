/** Any view as elements: its question and finding, then each figure by its kind. */

import { html, prose } from "./dom.js";
import { flow } from "./flow.js";
import { heatmap } from "./heatmap.js";
import { links } from "./links.js";
import { told } from "./parts.js";
import { bars, dials, grid, lines } from "./plots.js";
import { columns, film, group, steps, wall } from "./many.js";
import { product } from "./product.js";
import { tiles } from "./tiles.js";
import { turns } from "./turns.js";
import { worked } from "./worked.js";

/** @typedef {import("./parts.js").Said} Said */
/** @typedef {import("./parts.js").Plain} Plain */
/** @typedef {import("./parts.js").Drawn} Drawn */
/** @typedef {{ key: string, title: Said, question: Said, finding: Said, formula: string, notes: Said[], mark: Said | null, figures: Plain[] }} View */

/** @type {Record<string, (figure: any, setting: import("./parts.js").Setting, make: typeof drawFigure) => Drawn>} */
const KINDS = { heatmap: (figure, setting) => (figure.links ? links : heatmap)(figure, setting), lines, bars, dials, grid, wall, product, steps, flow, film, columns, tiles, worked, turns };

/**
 * Any figure by its kind.
 * @param {Plain} figure
 * @param {import("./parts.js").Setting} setting
 * @returns {Drawn}
 */
export function drawFigure(figure, setting) {
  return KINDS[figure.kind](figure, setting, drawFigure);
}

/**
 * A whole view. Insert `element` into the page, then call `draw`, and again when width or theme change. `set` shows
 * another view of the same key in its place and keeps what the reader has opened and chosen.
 * @param {View} view
 * @param {import("./words.js").Words} words
 * @returns {{ element: HTMLElement, draw: () => void, set: (view: View) => void }}
 */
export function drawView(view, words) {
  const inside = group(view.figures, { words, level: 3, file: `headway-${view.key}` }, drawFigure);
  const [title, question, finding, formula] = [html("h2"), html("p", { class: "question" }), html("p", { class: "finding" }), html("code")];
  const block = html("pre", { class: "formula", tabindex: "0" }, formula);
  const notes = html("ul", { class: "notes" });
  const element = html("section", { class: "view", id: `view-${view.key}`, "data-view": view.key }, title, question, finding, block, inside.element, notes);

  /** @param {View} next */
  function write(next) {
    title.replaceChildren(told(words, next.title), ...(next.mark ? [" ", html("span", { class: "mark" }, told(words, next.mark))] : []));
    question.textContent = told(words, next.question);
    finding.replaceChildren(.../** @type {(Node | string)[]} */ (prose(told(words, next.finding))));
    formula.textContent = next.formula;
    block.hidden = !next.formula;
    notes.replaceChildren(...next.notes.map((note) => html("li", {}, prose(told(words, note)))));
    notes.hidden = !next.notes.length;
  }

  write(view);
  return { element, draw: inside.draw, set: (next) => { write(next); inside.set(next.figures); } };
}
