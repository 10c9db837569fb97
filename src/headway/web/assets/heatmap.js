/** A matrix as colours: canvas at the matrix's own resolution, labels around it, a readout for pointer and keyboard. */

import { exact, numbersOf, onAxis, spoken } from "./blocks.js";
import { scaleChoice } from "./choices.js";
import { colourIndex, colourTable, groundOf, isDark } from "./colours.js";
import { html, svg } from "./dom.js";
import { announce, frameOf, told } from "./parts.js";
import { valueTip } from "./tip.js";

/** @typedef {import("./parts.js").Said} Said */
/** @typedef {import("./parts.js").Setting} Setting */
/**
 * @typedef {object} Heatmap
 * @property {"heatmap"} kind
 * @property {Said} title
 * @property {import("./blocks.js").Block} values
 * @property {string[]} rows
 * @property {string[]} columns
 * @property {[Said, Said]} axes
 * @property {import("./colours.js").Scale} scale
 * @property {[number, number] | null} limits
 * @property {import("./blocks.js").Block | null} hidden
 * @property {string} unit
 * @property {boolean} [links] whether it can also be seen as lines between tokens
 * @property {[number, number] | null} [fit] narrower limits, unless the reader wants all
 * @property {number[] | null} [tokens] the first token of each row and column, if not its index
 */

const LARGEST = 36; // pixels of a cell
const COMFORTABLE = 560; // pixels of a map, if that is enough
const TALLEST = 900;
const TEXT = 12; // pixels of a label
const LINE = 15; // from one label to the next
const FEW = 16; // rows
const SHOWN = 64; // rows and columns of a table
const TILTED = 88; // most pixels of a tilted label

/**
 * @param {Heatmap} given
 * @param {Setting} setting
 * @returns {import("./parts.js").Drawn}
 */
export function heatmap(given, setting) {
  const { words, form, quiet } = setting;
  const tile = form === "tile";
  let figure = given;
  let whole = false;
  let data = read(figure, whole);
  /** @type {ReturnType<typeof place> | null} */
  let now = null;
  /** @type {[number | null, number | null] | null} a cell, a whole row or a whole column */
  let focus = null;
  let owned = false; // pointed at here, not in a figure beside

  const canvas = /** @type {HTMLCanvasElement} */ (html("canvas", { class: "cells", "aria-hidden": "true" }));
  const rails = svg("svg", { class: "rails", "aria-hidden": "true" });
  const mark = html("div", { class: "cell-mark", hidden: true });
  const plot = html("div", tile ? { class: "map" } : { class: "plot map", tabindex: "0", role: "application" }, canvas, rails, mark);
  const tip = valueTip(plot);
  const line = html("p", { class: "readout idle", "aria-live": "polite" });
  const legend = colourBar(words);
  const choice = scaleChoice(words, (all) => (rescale(all), announce(plot, "headway:scale", { whole: all })));
  const { element, refresh } = frameOf(setting, () => figure, tile ? [plot] : [plot, legend.element, choice.element, line], { table, csv: () => csv() });

  function draw() {
    const width = plot.clientWidth;
    if (!width) return;
    now = place(figure, data, width, plot, tile, words);
    paint();
    if (!tile) {
      label(rails, figure, now, words);
      describe();
    }
    show();
  }

  /** Only the colours: what changes from frame to frame. */
  function paint() {
    if (!now) return;
    const { left, top, wide, tall } = now;
    plot.style.height = `${now.height}px`;
    Object.assign(canvas.style, { left: `${left}px`, top: `${top}px`, width: `${wide}px`, height: `${tall}px` });
    const dark = isDark(plot);
    colour(canvas, data, now.pixels, colourTable(figure.scale, dark), groundOf(dark));
  }

  function describe() {
    const [rows, columns] = figure.axes.map((one) => told(words, one));
    plot.setAttribute("aria-label", `${told(words, figure.title)}. ${words.say("map.label", { rows, columns, m: words.count(data.height), n: words.count(data.width) })} ${words.say("hint")}`);
    legend.draw(figure, data.limits, data, Boolean(now?.pooled));
    choice.update(Boolean(figure.fit), whole);
  }

  /** Colours for all values, or for most of them. @param {boolean} all */
  function rescale(all) {
    whole = all;
    set(figure);
  }

  /** "column 3", or "query 3 '…'" where labels are words: a token that happens to be a number is one, too. */
  const named = (/** @type {string} */ axis, /** @type {number} */ i, /** @type {string[]} */ labels, /** @type {boolean} */ numbered) =>
    numbered ? `${axis} ${labels[i]}` : words.say("map.named", { axis, i, label: labels[i] });

  /** @param {number} at */
  const valueAt = (at) => (data.hidden?.[at] ? words.say("map.hidden") : Number.isNaN(data.values[at]) ? words.say("map.missing") : spoken(data.values[at]) + unitOf(figure));

  /** @param {number} row @param {number} column */
  function reading(row, column) {
    const [rows, columns] = figure.axes.map((one) => told(words, one));
    const value = valueAt(row * data.width + column);
    return words.say("map.reading", { row: named(rows, row, figure.rows, data.numbered[0]), column: named(columns, column, figure.columns, data.numbered[1]), value });
  }

  function show() {
    mark.hidden = !focus || !now;
    if (!focus || !now) return;
    const [row, column] = focus;
    const { left, top, wide, tall } = now;
    const [w, h] = [column === null ? wide : wide / data.width, row === null ? tall : tall / data.height];
    const [mw, mh] = [Math.max(w, 5), Math.max(h, 5)]; // a cell of one pixel must be visible too
    Object.assign(mark.style, {
      transform: `translate(${left + (column ?? 0) * w + (w - mw) / 2}px, ${top + (row ?? 0) * h + (h - mh) / 2}px)`,
      width: `${mw}px`,
      height: `${mh}px`,
    });
    if (row === null || column === null) return tip.hide();
    line.textContent = reading(row, column);
    line.classList.remove("idle");
    // of figures side by side only one says where, the others say how much
    tip.show({ x: left + column * w, y: top + row * h, width: w, height: h }, owned ? line.textContent : valueAt(row * data.width + column));
  }

  function rest() {
    focus = null;
    mark.hidden = true;
    tip.hide();
    line.textContent = quiet || form ? "" : words.say("hint");
    line.classList.add("idle");
  }

  /** @param {number | null} row @param {number | null} column @param {boolean} [own] pointed at here, not in a figure beside */
  function point(row, column, own = false) {
    if ((row ?? 0) < 0 || (column ?? 0) < 0 || (row ?? 0) >= data.height || (column ?? 0) >= data.width) return rest();
    if (focus && focus[0] === row && focus[1] === column) return;
    focus = [row, column];
    owned = own;
    line.setAttribute("aria-live", own ? "polite" : "off"); // of figures side by side only one is announced
    show();
  }

  /** @param {number} row @param {number} column */
  function look(row, column) {
    point(row, column, true);
    announce(plot, "headway:point", { row, column });
  }

  /** The tokens of a cell, of which a row may be several. @param {number} row @param {number} column */
  function choose(row, column) {
    const [first, second] = [row, column].map((i) => figure.tokens?.[i] ?? i);
    announce(plot, "headway:cell", { row: first, column: second });
  }

  const leave = () => {
    rest();
    announce(plot, "headway:point", { row: -1, column: -1 });
  };

  /** @param {PointerEvent | MouseEvent} event @returns {[number, number] | null} */
  function cellAt(event) {
    if (!now) return null;
    const box = canvas.getBoundingClientRect();
    const column = Math.floor(((event.clientX - box.left) / box.width) * data.width);
    const row = Math.floor(((event.clientY - box.top) / box.height) * data.height);
    return row >= 0 && column >= 0 && row < data.height && column < data.width ? [row, column] : null;
  }

  if (!tile) {
    rest();
    for (const kind of ["pointermove", "pointerdown"])
      plot.addEventListener(kind, (event) => {
        const cell = cellAt(/** @type {PointerEvent} */ (event));
        if (cell) look(...cell);
      });
    plot.addEventListener("pointerleave", leave);
    plot.addEventListener("blur", leave);
    plot.addEventListener("click", (event) => {
      const cell = cellAt(event);
      if (cell) choose(...cell);
    });
    plot.addEventListener("keydown", (event) => {
      if (event.key === "Escape") return leave();
      if (event.key === "Enter" || event.key === " ") {
        if (focus && focus[0] !== null && focus[1] !== null) choose(focus[0], focus[1]);
        return event.preventDefault();
      }
      const page = Math.max(2, Math.round(data.height / 10));
      /** @type {Record<string, [number, number]>} */
      const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0], Home: [0, -Infinity], End: [0, Infinity], PageUp: [-page, 0], PageDown: [page, 0] };
      const move = moves[event.key];
      if (!move || event.altKey || event.metaKey) return;
      event.preventDefault();
      const far = event.ctrlKey && (event.key === "Home" || event.key === "End") ? move[1] : move[0];
      const [row, column] = focus ?? [];
      const clamp = (/** @type {number} */ value, /** @type {number} */ count) => Math.max(0, Math.min(count - 1, value));
      if (typeof row !== "number" || typeof column !== "number") look(0, 0);
      else look(clamp(row + far, data.height), clamp(column + move[1], data.width));
    });
  }

  function table() {
    const [m, n] = [Math.min(SHOWN, data.height), Math.min(SHOWN, data.width)];
    const cell = (/** @type {number} */ at) => (data.hidden?.[at] ? words.say("map.hidden.short") : spoken(data.values[at]));
    return {
      head: [corner(), ...figure.columns.slice(0, n)],
      rows: figure.rows.slice(0, m).map((name, row) => [name, ...Array.from({ length: n }, (_, column) => cell(row * data.width + column))]),
      note: m < data.height || n < data.width ? words.say("view.table.part", { m: words.count(m), n: words.count(n), rows: words.count(data.height), columns: words.count(data.width) }) : "",
    };
  }

  const corner = () => figure.axes.map((one) => told(words, one)).join(" \\ ");

  const csv = () => [
    [corner(), ...figure.columns],
    ...figure.rows.map((name, row) => [name, ...Array.from({ length: data.width }, (_, column) => (data.hidden?.[row * data.width + column] ? null : exact(data.values[row * data.width + column])))]),
  ];

  /** @param {Heatmap} next */
  function set(next) {
    const same = next.values.shape.join() === figure.values.shape.join() && next.rows.join("\n") === figure.rows.join("\n") && next.columns.join("\n") === figure.columns.join("\n");
    figure = next;
    data = read(figure, whole);
    refresh();
    if (!same || !now) {
      rest();
      return draw();
    }
    paint();
    if (!tile) describe();
    show();
  }

  return { element, draw, set, point, rescale };
}

/**
 * The legend: the colour bar with its limits, and the meaning of cells without colour.
 * @param {import("./words.js").Words} words
 */
export function colourBar(words) {
  const bar = /** @type {HTMLCanvasElement} */ (html("canvas", { class: "bar-colours", width: "256", height: "1", "aria-hidden": "true" }));
  const [low, high] = [html("span"), html("span")];
  const middle = html("span", { class: "quiet" }, words.say("map.middle"));
  const more = html("span", { class: "map-more" });
  const element = html("div", { class: "map-legend" }, html("span", { class: "map-bar" }, low, bar, high, middle), more);

  /**
   * @param {Heatmap} figure
   * @param {number[]} limits
   * @param {{ masked: number | boolean, missing?: number, beyond?: number, lowest?: number, highest?: number }} data
   * @param {boolean} [pooled]
   */
  function draw(figure, limits, data, pooled) {
    const strip = new ImageData(256, 1);
    const table = colourTable(figure.scale, isDark(element));
    for (let i = 0; i < 256; i += 1) strip.data.set([table[3 * i], table[3 * i + 1], table[3 * i + 2], 255], 4 * i);
    bar.getContext("2d")?.putImageData(strip, 0, 0);
    const written = (/** @type {number} */ value) => onAxis(value) + unitOf(figure);
    low.textContent = written(limits[0]);
    high.textContent = written(limits[1]);
    middle.hidden = figure.scale !== "diverging";
    const key = (/** @type {string} */ name) => html("span", { class: "map-key" }, html("i", { class: `key-${name}`, "aria-hidden": "true" }), words.say(`map.${name}`));
    const note = (/** @type {string} */ text) => html("span", { class: "quiet" }, text);
    const { masked, missing = 0, beyond = 0, lowest = 0, highest = 0 } = data;
    more.replaceChildren(
      ...(masked ? [key("hidden")] : []),
      ...(missing ? [key("missing")] : []),
      ...(beyond ? [note(words.say("map.clipped", { n: words.count(beyond), low: written(lowest), high: written(highest) }))] : []),
      ...(pooled ? [note(words.say("map.pooled"))] : []),
    );
  }

  return { element, draw };
}

/** @param {Heatmap} figure */
const unitOf = ({ unit }) => (unit ? `\u00a0${unit}` : "");

/** The numbers at the ends of a map's colours. @param {Heatmap} figure @returns {[number, number]} */
export function limitsOf(figure) {
  const [low, high] = read(figure).limits;
  return [low, high];
}

/** What is drawn: numbers, what hides them, and how far they reach. @param {Heatmap} figure @param {boolean} [whole] */
function read(figure, whole = false) {
  const [height, width] = figure.values.shape;
  const values = numbersOf(figure.values);
  const hidden = figure.hidden && numbersOf(figure.hidden);
  let [lowest, highest, masked, missing] = [Infinity, -Infinity, 0, 0];
  for (let i = 0; i < values.length; i += 1) {
    if (hidden?.[i]) masked += 1;
    else if (Number.isNaN(values[i])) missing += 1;
    else {
      if (values[i] < lowest) lowest = values[i];
      if (values[i] > highest) highest = values[i];
    }
  }
  if (lowest > highest) [lowest, highest] = [0, 0];
  const most = Math.max(Math.abs(lowest), Math.abs(highest));
  const limits = (!whole && figure.fit) || figure.limits || (figure.scale === "diverging" ? [-most, most] : [lowest, highest]);
  let beyond = 0;
  const slack = 1e-6 * (limits[1] - limits[0]); // float32 rounds limits too
  if (lowest < limits[0] - slack || highest > limits[1] + slack)
    for (let i = 0; i < values.length; i += 1) if (!hidden?.[i] && (values[i] < limits[0] - slack || values[i] > limits[1] + slack)) beyond += 1;
  const numbered = [figure.rows, figure.columns].map((labels) => labels.every(isNumber));
  return { height, width, values, hidden, limits: /** @type {[number, number]} */ (limits), lowest, highest, masked, missing, beyond, numbered };
}

/** Where everything goes, in pixels; cells are whole pixels of the device where they are larger than one. */
function place(figure, data, width, host, tile, words) {
  const scale = window.devicePixelRatio || 1;
  const measure = tile ? () => 0 : measurer(host);
  const floor = (/** @type {number} */ size) => (size * scale >= 1 ? Math.floor(size * scale) / scale : size);
  const widest = (/** @type {string[]} */ labels, /** @type {number} */ room) =>
    Math.min(room, labels.reduce((most, one) => (one.length * TEXT <= most ? most : Math.max(most, measure(one))), 0));
  // The rail holds the axis's name too, as long as that is short.
  const heading = tile ? 0 : measure(`${told(words, figure.axes[0])} ↓`);
  const rail = tile ? 0 : Math.ceil(Math.max(widest(figure.rows, Math.min(150, width * 0.3)), heading > 90 ? TEXT : heading)) + 8;
  const roomy = width - rail - (tile ? 0 : 4);
  const legible = data.numbered[0] ? 0 : LINE; // each word must be legible, numbers can be counted
  const most = Math.max(Math.min(roomy, Math.max(COMFORTABLE, Math.min(TALLEST, data.height))), Math.min(TALLEST, data.height * legible));
  const square = data.width <= 2 * data.height && data.height <= 2 * data.width;
  const fitting = (/** @type {number} */ room) => floor(tile ? room / data.width : Math.min(LARGEST, room / data.width, square ? most / data.height : Infinity));
  // Column labels are horizontal if they fit their cells, otherwise tilted; the last ones then extend to the right.
  const flat = tile ? 0 : widest(figure.columns, Infinity) + 6;
  const first = fitting(roomy);
  const tilted = !tile && flat > Math.max(first, 2 * TEXT) && !data.numbered[1];
  const longest = Math.min(TILTED, width * 0.2);
  const out = (/** @type {number} */ size) => Math.max(0, ...figure.columns.slice(-8).map((text, i, { length }) => Math.min(longest, measure(text)) * Math.SQRT1_2 + 10 - (length - i - 0.5) * size));
  const cell = tilted && first * data.width + out(first) > roomy ? fitting(roomy - out(first)) : first;
  // A map of pairs of tokens is square; others are neither very flat nor very tall.
  const high = figure.rows.join("\n") === figure.columns.join("\n") ? cell : tile ? floor((cell * data.width) / data.height) : floor(Math.min(most / data.height, Math.max(cell, legible, Math.min(18, 240 / data.height))));
  const wide = cell * data.width;
  const tall = high * data.height;
  const few = data.height <= FEW; // each of which is numbered
  const everyRow = strideFor((data.numbered[0] && !few ? 1.6 * LINE : LINE) / high, data.numbered[0]);
  const everyColumn = strideFor((tilted ? TEXT * Math.SQRT2 : flat) / cell, data.numbered[1]);
  const head = tile ? 0 : (tilted ? Math.min(longest, flat) * Math.SQRT1_2 + 12 : LINE) + LINE + 6;
  const pixels = { width: Math.min(data.width, Math.max(1, Math.round(wide * scale))), height: Math.min(data.height, Math.max(1, Math.round(tall * scale))) };
  return { left: rail, top: head, wide, tall, cell, high, everyRow, everyColumn, tilted, measure, heading, longest, height: head + tall + (tile ? 0 : 2), pixels, pooled: pixels.width < data.width || pixels.height < data.height, width };
}

/** The labels around the cells. */
function label(rails, figure, now, words) {
  const { left, top, cell, high, everyRow, everyColumn, tilted, measure, heading, longest, width, height } = now;
  rails.setAttribute("viewBox", `0 0 ${width} ${height}`);
  rails.setAttribute("width", width);
  rails.setAttribute("height", height);
  const [rows, columns] = figure.axes.map((one) => told(words, one));
  const beside = heading <= left - 6;
  const parts = [
    svg("text", { class: "axis-title", x: left, y: 11 }, beside ? `${columns} →` : `${columns} →   ${rows} ↓`),
    ...(beside ? [svg("text", { class: "axis-title", x: left - 6, y: Math.min(top - 5, top + high / 2 + 4 - LINE), "text-anchor": "end" }, `${rows} ↓`)] : []),
  ];
  for (let row = 0; row < figure.rows.length; row += everyRow)
    parts.push(svg("text", { class: "rail", x: left - 6, y: top + (row + 0.5) * high + 4, "text-anchor": "end" }, cut(figure.rows[row], left - 8, measure)));
  for (let column = 0; column < figure.columns.length; column += everyColumn) {
    const [x, y] = [left + (column + 0.5) * cell, top - 5];
    parts.push(
      tilted
        ? svg("text", { class: "rail", transform: `translate(${x + 3} ${y}) rotate(-45)` }, cut(figure.columns[column], longest, measure))
        : svg("text", { class: "rail", x: Math.max(x, left + measure(figure.columns[column]) / 2), y, "text-anchor": "middle" }, figure.columns[column]),
    );
  }
  rails.replaceChildren(...parts);
}

/** Give each pixel the colour of its cell; of several cells the most extreme one counts. */
function colour(canvas, { values, hidden, limits, width, height }, pixels, table, ground) {
  const [low, high] = limits;
  if (canvas.width !== pixels.width) canvas.width = pixels.width;
  if (canvas.height !== pixels.height) canvas.height = pixels.height;
  const context = canvas.getContext("2d");
  if (!context) return;
  const image = context.createImageData(pixels.width, pixels.height);
  const words = new Uint32Array(image.data.buffer);
  const pack = (/** @type {number} */ r, /** @type {number} */ g, /** @type {number} */ b) => (255 << 24) | (b << 16) | (g << 8) | r;
  const packed = Uint32Array.from({ length: 256 }, (_, i) => pack(table[3 * i], table[3 * i + 1], table[3 * i + 2]));
  const none = pack(ground[0], ground[1], ground[2]);
  const colourOf = (/** @type {number} */ value) => (Number.isNaN(value) ? none : packed[colourIndex(value, low, high)]);
  const pooled = pixels.width < width || pixels.height < height;
  if (!pooled) {
    for (let i = 0; i < values.length; i += 1) if (!hidden?.[i]) words[i] = colourOf(values[i]);
  } else {
    const middle = low < 0 && high > 0 ? 0 : low;
    const furthest = new Float32Array(words.length).fill(-1);
    for (let row = 0, i = 0; row < height; row += 1) {
      const start = Math.floor((row * pixels.height) / height) * pixels.width;
      for (let column = 0; column < width; column += 1, i += 1) {
        const value = values[i];
        if (hidden?.[i]) continue;
        const at = start + Math.floor((column * pixels.width) / width);
        const far = Number.isNaN(value) ? 0 : Math.abs(value - middle);
        if (far <= furthest[at]) continue;
        furthest[at] = far;
        words[at] = colourOf(value);
      }
    }
  }
  context.putImageData(image, 0, 0);
}

/** The interval between shown labels; of numbers 1, 2, 5, 10, 20, 50 … @param {number} least @param {boolean} numbered */
function strideFor(least, numbered) {
  if (!numbered) return Math.ceil(least - 1e-9);
  for (let power = 1; ; power *= 10) for (const step of [1, 2, 5]) if (step * power >= least - 1e-9) return step * power;
}

const isNumber = (/** @type {string} */ text) => /^[+\-−]?\d[\d.,]*$/.test(text);

/** @param {Element} host */
function measurer(host) {
  const context = document.createElement("canvas").getContext("2d");
  if (!context) return (/** @type {string} */ text) => text.length * 7;
  context.font = `${TEXT}px ${getComputedStyle(host).fontFamily}`;
  return (/** @type {string} */ text) => context.measureText(text).width;
}

/** @param {string} text @param {number} room @param {(text: string) => number} measure */
function cut(text, room, measure) {
  if (measure(text) <= room) return text;
  const letters = [...text];
  while (letters.length > 1 && measure(`${letters.join("")}…`) > room) letters.pop();
  return `${letters.join("")}…`;
}
