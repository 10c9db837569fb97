/** How one number is worked out: the formula, the formula with its numbers, and the value, line by line. */

import { exact, numbersOf, spoken } from "./blocks.js";
import { html } from "./dom.js";
import { frameOf, keptOf, told } from "./parts.js";

/** @typedef {import("./parts.js").Said} Said */
/** @typedef {{ name: string, formulas: string[], values: import("./blocks.js").Block, said: Said | null }} Working */
/** @typedef {{ kind: "worked", title: Said, symbol: string, rows: number[], columns: Working[][], axis: Said, cell: [number, number], follows: boolean }} Worked */

/**
 * @param {Worked} given
 * @param {import("./parts.js").Setting} setting
 * @returns {import("./parts.js").Drawn}
 */
export function worked(given, setting) {
  const { words } = setting;
  let figure = given;
  let [row, column] = keptOf(given).cell ?? figure.cell;
  /** @type {Element | null} */
  let map = null;
  const range = /** @type {HTMLInputElement} */ (html("input", { type: "range", min: "0", step: "1", oninput: () => work(Number(range.value), column) }));
  const output = html("output", { class: "film-label" });
  const slider = html("div", { class: "film" }, range, output);
  const hint = html("p", { class: "quiet" }, words.say("worked.hint"));
  const lines = html("div", { class: "worked-lines", "aria-live": "polite" });
  const { element, refresh } = frameOf(setting, () => figure, [slider, hint, lines], { csv: () => csv() });

  const at = (/** @type {Working} */ line) => {
    const values = numbersOf(line.values);
    return values[values.length > 1 ? row : 0];
  };

  /** Five digits; whole numbers as they are. @param {number} value */
  const written = (value) => (Number.isInteger(value) && Math.abs(value) < 1e6 ? String(value) : Math.abs(value) < 1e-3 || Math.abs(value) >= 1e6 ? spoken(value) : String(Number(value.toPrecision(5)))).replace("-", "−");

  /** A formula with numbers in the place of names. @param {string} formula @param {Map<string, number>} values */
  function put(formula, values) {
    return formula.replace(/[\p{L}_][\p{L}\p{N}_]*(?![\p{L}\p{N}_(])/gu, (name) => {
      const value = values.get(name);
      return value === undefined ? name : value < 0 ? `(${written(value)})` : written(value);
    });
  }

  /** @param {number} i @param {number} k */
  function work(i, k) {
    [row, column] = [Math.max(0, Math.min(figure.rows.length - 1, i)), Math.max(0, Math.min(figure.columns.length - 1, k))];
    keptOf(figure).cell = [row, column];
    const values = new Map([[figure.symbol, figure.rows[row]]]);
    const shown = figure.columns[column].filter(({ formulas }) => formulas[formulas.length > 1 ? row : 0]);
    lines.replaceChildren(...shown.map((line, i) => {
      const formula = line.formulas[line.formulas.length > 1 ? row : 0];
      const value = at(line);
      const name = put(line.name, new Map([[figure.symbol, figure.rows[row]]]));
      const numbers = put(formula, values);
      values.set(line.name, value);
      const middle = line.said ? [name === numbers ? "" : ` = ${formula}`, html("span", { class: "quiet" }, ` (${told(words, line.said)})`)] : [numbers === formula || i === 0 ? "" : ` = ${formula}`, ` = ${numbers}`];
      return html("p", { class: i === shown.length - 1 ? "worked-result" : "" }, html("span", { class: "worked-name" }, name), middle.filter(Boolean), " = ", html("strong", {}, written(value)));
    }));
    range.max = String(figure.rows.length - 1);
    range.value = String(row);
    const place = `${told(words, figure.axis)} ${figure.rows[row]}`;
    range.setAttribute("aria-label", told(words, figure.axis));
    range.setAttribute("aria-valuetext", place);
    output.textContent = place;
  }

  const csv = () => [[figure.symbol, ...figure.columns[column].map(({ name }) => name)], ...figure.rows.map((n, i) => [n, ...figure.columns[column].map(({ values }) => exact(numbersOf(values)[values.shape[0] > 1 ? i : 0]))])];

  /** @param {Event} event */
  function pointed(event) {
    const { row: i, column: k } = /** @type {CustomEvent} */ (event).detail;
    if (i >= 0) work(i, k);
  }

  function draw() {
    slider.hidden = figure.follows;
    hint.hidden = !figure.follows;
    const before = figure.follows ? element.previousElementSibling : null;
    if (before !== map) {
      map?.removeEventListener("headway:point", pointed);
      before?.addEventListener("headway:point", pointed);
      map = before;
    }
    work(row, column);
  }

  /** @param {Worked} next */
  function set(next) {
    keptOf(next, figure);
    const moved = next.cell.join() !== figure.cell.join();
    figure = next;
    if (moved) [row, column] = figure.cell;
    refresh();
    draw();
  }

  return { element, draw, set };
}
