/** Any view as elements: its question and finding, then each figure by its kind. */

import { html, prose } from "./dom.js";
import { heatmap } from "./heatmap.js";
import { told } from "./parts.js";
import { bars, dials, grid, lines } from "./plots.js";

/** @typedef {import("./parts.js").Said} Said */
/** @typedef {import("./parts.js").Plain} Plain */
/** @typedef {import("./parts.js").Drawn} Drawn */
/** @typedef {{ key: string, title: Said, question: Said, finding: Said, formula: string, notes: Said[], figures: Plain[] }} View */

/** @type {Record<string, (figure: any, setting: import("./parts.js").Setting, make: typeof drawFigure) => Drawn>} */
const KINDS = { heatmap, lines, bars, dials, grid };

/**
 * Any figure by its kind.
 * @param {Plain} figure
 * @param {import("./parts.js").Setting} setting
 * @returns {Drawn}
 */
export function drawFigure(figure, setting) {
  const kind = KINDS[figure.kind];
  if (!kind) return { element: html("p", { class: "quiet" }, figure.kind), draw: () => {}, set: () => {} };
  return kind(figure, setting, drawFigure);
}

/**
 * A whole view. Give `element` a place, then call `draw`, and again when width or theme change.
 * @param {View} view
 * @param {import("./words.js").Words} words
 * @returns {{ element: HTMLElement, draw: () => void }}
 */
export function drawView(view, words) {
  const drawn = view.figures.map((figure, i) => drawFigure(figure, { words, level: 3, file: `headway-${view.key}-${i + 1}` }));
  const element = html("section", { class: "view", id: `view-${view.key}`, "data-view": view.key },
    html("h2", {}, told(words, view.title)),
    html("p", { class: "question" }, told(words, view.question)),
    html("p", { class: "finding" }, prose(told(words, view.finding))),
    view.formula && html("pre", { class: "formula", tabindex: "0" }, html("code", {}, view.formula)),
    drawn.map(({ element: one }) => one),
    view.notes.length > 0 && html("ul", { class: "notes" }, view.notes.map((note) => html("li", {}, prose(told(words, note))))));
  return { element, draw: () => drawn.forEach((one) => one.draw()) };
}
