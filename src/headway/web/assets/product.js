/** A product of matrices, and how one of its entries is computed. */

import { exact, numbersOf, onAxis, spoken } from "./blocks.js";
import { html, svg } from "./dom.js";
import { heatmap } from "./heatmap.js";
import { frameOf, keptOf, told } from "./parts.js";

/** @typedef {import("./parts.js").Said} Said */
/** @typedef {import("./parts.js").Setting} Setting */
/** @typedef {import("./parts.js").Drawn} Drawn */
/** @typedef {import("./heatmap.js").Heatmap} Heatmap */
/** @typedef {{ kind: "product", title: Said, left: any, right: any, bias: any, out: any, rows: string[], names: [string, string, string], cell: [number, number] }} Product */

/**
 * out = left · right + bias, and how one entry of out is computed.
 * @param {Product} given
 * @param {Setting} setting
 * @returns {Drawn}
 */
export function product(given, setting) {
  const { words } = setting;
  let figure = given;
  let cell = [...(keptOf(given).cell ?? figure.cell)];
  const part = (/** @type {"left" | "right" | "out"} */ which) => heatmap(mapOf(which), { ...setting, level: setting.level + 1, form: "part" });
  const maps = { left: part("left"), right: part("right"), out: part("out") };
  const sign = (/** @type {string} */ text) => html("span", { class: "sign", "aria-hidden": "true" }, text);
  const matrices = html("div", { class: "matrices" }, maps.left.element, sign("·"), maps.right.element, sign(given.bias ? "+ b =" : "="), maps.out.element);
  const equation = html("p", { class: "equation", "aria-live": "polite" });
  const picture = svg("svg", { class: "running", "aria-hidden": "true" });
  const keys = html("div", { class: "keys", "aria-hidden": "true" });
  const body = html("tbody");
  const foot = html("tfoot");
  const head = html("tr");
  const scroll = html("div", { class: "scroll products", tabindex: "0", role: "region" }, html("table", {}, html("thead", {}, head), body, foot));
  const { element, refresh } = frameOf(setting, () => figure, [html("p", { class: "quiet" }, words.say("product.hint")), matrices, equation, html("div", { class: "worked" }, html("div", {}, keys, picture), scroll)], { csv: () => csv() });

  maps.out.element.addEventListener("headway:point", (event) => {
    const { row, column } = /** @type {CustomEvent} */ (event).detail;
    if (row >= 0) work(row, column);
    else point(); // the entry computed below stays marked
  });

  /** @param {"left" | "right" | "out"} which */
  function mapOf(which) {
    const { left, right, out, rows, names } = figure;
    const count = (/** @type {number} */ n) => Array.from({ length: n }, (_, i) => String(i));
    const said = (/** @type {string} */ key) => ({ [words.language]: words.say(key) });
    const [inner, columns, row] = ["product.inner", "product.column", "product.row"].map(said);
    const shape = {
      left: { values: left, rows, columns: count(left.shape[1]), axes: [row, inner] },
      right: { values: right, rows: count(right.shape[0]), columns: count(right.shape[1]), axes: [inner, columns] },
      out: { values: out, rows, columns: count(out.shape[1]), axes: [row, columns] },
    }[which];
    const name = names[["left", "right", "out"].indexOf(which)];
    const title = { [words.language]: `${name} (${shape.values.shape.join(" × ")})` };
    return /** @type {any} */ ({ kind: "heatmap", title, scale: "diverging", limits: null, hidden: null, unit: "", ...shape });
  }

  /** Every product of the chosen cell, and their running sum. */
  function worked() {
    const [row, column] = cell;
    const [left, right] = [numbersOf(figure.left), numbersOf(figure.right)];
    const [inner, columns] = figure.right.shape;
    let sum = 0;
    const steps = Array.from({ length: inner }, (_, k) => {
      const [x, w] = [left[row * inner + k], right[k * columns + column]];
      sum += x * w;
      return { x, w, product: x * w, sum };
    });
    const bias = figure.bias ? numbersOf(figure.bias)[column] : 0;
    return { steps, bias, total: sum + bias, model: numbersOf(figure.out)[row * columns + column] };
  }

  /** @param {number} row @param {number} column */
  function work(row, column) {
    cell = keptOf(figure).cell = [row, column];
    const { steps, bias, total, model } = worked();
    const [left, right, out] = figure.names;
    point();
    const values = { out: `${out}[${row}, ${column}]`, left: `${left}[${row}, k]`, right: `${right}[k, ${column}]`, bias: figure.bias ? ` ${bias < 0 ? "−" : "+"} ${spoken(Math.abs(bias))}` : "", total: spoken(total), model: spoken(model) };
    equation.textContent = words.say("product.equation", values);
    head.replaceChildren(...["k", `${left}[${row}, k]`, `${right}[k, ${column}]`, words.say("product.product"), words.say("product.sum")].map((text) => html("th", { scope: "col" }, text)));
    while (body.children.length > steps.length) body.lastElementChild?.remove();
    while (body.children.length < steps.length) body.append(html("tr", {}, html("th", { scope: "row" }, String(body.children.length)), html("td"), html("td"), html("td"), html("td")));
    steps.forEach(({ x, w, product: made, sum }, k) => {
      const cells = body.children[k].children;
      [x, w, made, sum].forEach((value, i) => (cells[i + 1].textContent = spoken(value)));
    });
    const last = (/** @type {string} */ text, /** @type {number} */ value) => html("tr", {}, html("th", { scope: "row", colspan: "4" }, text), html("td", {}, spoken(value)));
    foot.replaceChildren(...(figure.bias ? [last(words.say("product.bias"), bias)] : []), last(words.say("product.total"), total), last(words.say("product.model"), model), last(words.say("product.difference"), total - model));
    keys.replaceChildren(...[["product", 3], ["sum", 0]].map(([key, hue]) => html("span", { class: `key hue-${hue}` }, html("i"), words.say(`product.${key}`))));
    trace(steps, bias, model);
  }

  function point() {
    const [row, column] = cell;
    maps.left.point?.(row, null);
    maps.right.point?.(null, column);
    maps.out.point?.(row, column);
  }

  /** Products as bars, their running sum as a line that ends at the model's value. */
  function trace(steps, bias, model) {
    const width = picture.clientWidth || 320;
    const tall = 170;
    const sums = [...steps.map(({ sum }) => sum), steps[steps.length - 1].sum + bias];
    const all = [0, model, ...sums, ...steps.map(({ product: made }) => made)];
    const [low, high] = [Math.min(...all), Math.max(...all)];
    const left = 44;
    const x = (/** @type {number} */ k) => left + ((width - left - 8) * k) / (sums.length - 1 || 1);
    const y = (/** @type {number} */ value) => 12 + ((high - value) / (high - low || 1)) * (tall - 24);
    picture.setAttribute("viewBox", `0 0 ${width} ${tall}`);
    picture.setAttribute("height", String(tall));
    const thick = Math.max(1, x(1) - x(0) - 1);
    const marks = [high, low].filter((value) => Math.abs(y(value) - y(0)) > 12).concat(0);
    picture.replaceChildren(
      svg("g", { class: "grid" }, marks.map((value) => svg("text", { class: "tick", x: left - 7, y: y(value) + 4, "text-anchor": "end" }, onAxis(value))), svg("line", { class: "base", x1: left, x2: width, y1: y(0), y2: y(0) })),
      svg("path", { class: "column hue-3", d: steps.map(({ product: made }, k) => `M${x(k).toFixed(1)} ${y(0).toFixed(1)}V${y(made).toFixed(1)}h${thick.toFixed(1)}V${y(0).toFixed(1)}Z`).join("") }),
      svg("g", { class: "hue-0" }, svg("path", { class: "line", d: `M${sums.map((sum, k) => `${x(k).toFixed(1)} ${y(sum).toFixed(1)}`).join("L")}` }), svg("circle", { class: "marker", cx: x(sums.length - 1), cy: y(model), r: 4 })),
    );
  }

  function csv() {
    const { steps, bias, total, model } = worked();
    const [left, right] = figure.names;
    return [["k", left, right, "product", "sum"], ...steps.map(({ x, w, product: made, sum }, k) => [k, exact(x), exact(w), made, sum]), ...(figure.bias ? [["bias", null, null, null, exact(bias)]] : []), ["total", null, null, null, total], ["model", null, null, null, exact(model)]];
  }

  function draw() {
    for (const map of Object.values(maps)) map.draw();
    scroll.setAttribute("aria-label", told(words, figure.title));
    work(cell[0], cell[1]);
  }

  /** @param {Product} next */
  function set(next) {
    const moved = next.cell.join() !== figure.cell.join();
    keptOf(next, figure);
    figure = next;
    const [rows, columns] = figure.out.shape;
    if (moved || cell[0] >= rows || cell[1] >= columns) cell = [...figure.cell];
    for (const which of /** @type {const} */ (["left", "right", "out"])) maps[which].set(mapOf(which));
    refresh();
    draw();
  }

  return { element, draw, set };
}
