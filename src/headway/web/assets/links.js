/** A map of weights in another form: two columns of tokens, and between them lines as opaque as their weights. */

import { numbersOf, onAxis, spoken } from "./blocks.js";
import { html, svg } from "./dom.js";
import { heatmap } from "./heatmap.js";
import { keptOf, told } from "./parts.js";

/** @typedef {import("./heatmap.js").Heatmap} Heatmap */

const MOST = 100; // tokens; the lines of more are a blur
const WIDEST = 640; // pixels
const [LOWEST, HIGHEST, TALLEST] = [15, 26, 480]; // pixels of a row, at least and at most, and of all
const TOP = 26;
const NAMED = 5; // weights that the readout lists

/**
 * A heatmap with the choice to see it as lines.
 * @param {Heatmap} given
 * @param {import("./parts.js").Setting} setting
 * @returns {import("./parts.js").Drawn}
 */
export function links(given, setting) {
  const map = heatmap(given, setting);
  if (setting.form) return map;
  const { words } = setting;
  let figure = given;
  let each = HIGHEST;
  /** @type {{ side: "rows" | "columns", at: number } | null} */
  let focus = null;
  const canvas = /** @type {HTMLCanvasElement} */ (html("canvas", { class: "threads hue-0", "aria-hidden": "true" }));
  const names = svg("svg", { class: "thread-names", "aria-hidden": "true" });
  const plot = html("div", { class: "plot links", tabindex: "0", role: "application" }, canvas, names);
  const line = html("p", { class: "readout idle", "aria-live": "polite" });
  const scale = html("p", { class: "quiet" });
  const forms = ["map", "lines"].map((form) => html("button", { type: "button", "data-form": form, onclick: () => choose(form === "lines") }, words.say(`links.${form}`)));
  const choice = html("div", { class: "choice forms", role: "group", "aria-label": words.say("links.form") }, forms);
  const area = html("div", { class: "as-lines" }, plot, scale, line);
  const ownPlot = /** @type {Element} */ (map.element.querySelector(".plot"));
  ownPlot.before(choice);
  ownPlot.after(area);

  /** @param {boolean} yes */
  function choose(yes) {
    keptOf(figure).lines = yes;
    draw();
  }

  function draw() {
    const many = Math.max(figure.rows.length, figure.columns.length) > MOST;
    const lines = Boolean(keptOf(figure).lines) && !many;
    choice.hidden = many;
    forms.forEach((button, i) => button.setAttribute("aria-pressed", String(lines === (i === 1))));
    map.element.classList.toggle("lines", lines);
    if (!lines) return map.draw();
    plot.setAttribute("aria-label", `${told(words, figure.title)}. ${words.say("links.hint")}`);
    paint();
    show();
  }

  const width = () => Math.min(plot.clientWidth, WIDEST);
  /** The ends of lines. */
  const ends = () => [width() * 0.32, width() * 0.68];
  const y = (/** @type {number} */ i) => TOP + (i + 0.5) * each;

  function paint() {
    const count = Math.max(figure.rows.length, figure.columns.length);
    each = Math.max(LOWEST, Math.min(HIGHEST, TALLEST / count));
    const tall = TOP + count * each + 4;
    const dense = window.devicePixelRatio || 1;
    plot.style.height = `${tall}px`;
    Object.assign(canvas, { width: Math.round(width() * dense), height: Math.round(tall * dense) });
    Object.assign(canvas.style, { width: `${width()}px`, height: `${tall}px` });
    names.setAttribute("viewBox", `0 0 ${width()} ${tall}`);
    names.setAttribute("width", String(width()));
    names.setAttribute("height", String(tall));
    const values = numbersOf(figure.values);
    const hidden = figure.hidden && numbersOf(figure.hidden);
    let most = 0;
    for (let i = 0; i < values.length; i += 1) if (!hidden?.[i] && values[i] > most) most = values[i];
    scale.textContent = words.say("links.scale", { most: onAxis(most) });
    const context = canvas.getContext("2d");
    if (!context) return;
    context.setTransform(dense, 0, 0, dense, 0, 0);
    context.strokeStyle = getComputedStyle(canvas).color;
    context.lineWidth = 2;
    const [left, right] = ends();
    for (let row = 0; row < figure.rows.length; row += 1)
      for (let column = 0; column < figure.columns.length; column += 1) {
        const at = row * figure.columns.length + column;
        if (hidden?.[at] || !(values[at] > 0) || (focus && focus.at !== (focus.side === "rows" ? row : column))) continue;
        context.globalAlpha = values[at] / most;
        context.beginPath();
        context.moveTo(left, y(row));
        context.lineTo(right, y(column));
        context.stroke();
      }
  }

  /** The weights of the token in focus: for each token of the other side its weight, or null where it is masked. */
  function weights() {
    if (!focus) return [];
    const { side, at } = focus;
    const wide = figure.columns.length;
    const values = numbersOf(figure.values);
    const hidden = figure.hidden && numbersOf(figure.hidden);
    return (side === "rows" ? figure.columns : figure.rows).map((_, i) => {
      const cell = side === "rows" ? at * wide + i : i * wide + at;
      return hidden?.[cell] ? null : values[cell];
    });
  }

  function show() {
    const [left, right] = ends();
    const found = weights();
    const [rows, columns] = figure.axes.map((one) => told(words, one));
    const column = (/** @type {"rows" | "columns"} */ side, /** @type {number} */ x, /** @type {string} */ anchor) => figure[side].map((text, i) => {
      const own = focus?.side === side;
      const weight = focus && !own ? found[i] : null;
      const letters = [...text];
      const short = letters.length > 14 ? `${letters.slice(0, 13).join("")}…` : text;
      const written = weight === null || weight === undefined ? short : anchor === "end" ? `${spoken(weight)}  ${short}` : `${short}  ${spoken(weight)}`;
      return svg("text", { class: own && focus?.at === i ? "rail chosen" : "rail", x, y: y(i) + 4, "text-anchor": anchor }, written);
    });
    names.replaceChildren(
      svg("text", { class: "axis-title", x: left - 8, y: 13, "text-anchor": "end" }, rows), svg("text", { class: "axis-title", x: right + 8, y: 13 }, columns),
      ...column("rows", left - 8, "end"), ...column("columns", right + 8, "start"));
    line.classList.toggle("idle", !focus);
    if (!focus) return void (line.textContent = words.say("links.hint"));
    const { side, at } = focus;
    const other = side === "rows" ? figure.columns : figure.rows;
    const best = found.map((value, i) => ({ value: value ?? -1, i })).filter(({ value }) => value > 0).sort((a, b) => b.value - a.value).slice(0, NAMED);
    const named = words.say("map.named", { axis: side === "rows" ? rows : columns, i: at, label: figure[side][at] });
    line.textContent = `${named}${words.say("join.colon")}${best.map(({ value, i }) => `${i} '${other[i]}' ${spoken(value)}`).join(words.say("join.strong"))}`;
  }

  /** @param {"rows" | "columns"} side @param {number} at */
  function look(side, at) {
    const next = { side, at: Math.max(0, Math.min(figure[side].length - 1, at)) };
    if (focus?.side === next.side && focus.at === next.at) return;
    focus = next;
    paint();
    show();
  }

  function rest() {
    if (!focus) return;
    focus = null;
    paint();
    show();
  }

  plot.addEventListener("pointermove", (event) => {
    const box = canvas.getBoundingClientRect();
    const at = Math.floor((event.clientY - box.top - TOP) / each);
    const side = event.clientX - box.left < width() / 2 ? "rows" : "columns";
    if (at >= 0 && at < figure[side].length && event.clientX < box.right) look(side, at);
    else rest();
  });
  plot.addEventListener("pointerleave", rest);
  plot.addEventListener("blur", rest);
  plot.addEventListener("keydown", (event) => {
    const { side = "rows", at = -1 } = focus ?? {};
    /** @type {Record<string, () => void>} */
    const acts = { Escape: rest, ArrowDown: () => look(side, at + 1), ArrowUp: () => look(side, at - 1), ArrowLeft: () => look("rows", at), ArrowRight: () => look("columns", at), Home: () => look(side, 0), End: () => look(side, Infinity) };
    if (!acts[event.key] || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    acts[event.key]();
  });

  /** @param {Heatmap} next */
  function set(next) {
    keptOf(next, figure);
    figure = next;
    focus = null;
    map.set(next);
    draw();
  }

  return { ...map, draw, set };
}
