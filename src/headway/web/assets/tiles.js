/** A map too large to send: drawn from tiles of the level that the zoom needs, fetched on demand. */

import { exact, spoken } from "./blocks.js";
import { niceTicks } from "./scales.js";
import { colourIndex, colourTable, groundOf, isDark } from "./colours.js";
import { html, svg } from "./dom.js";
import { colourBar, heatmap } from "./heatmap.js";
import { frameOf, told } from "./parts.js";
import { valueTip } from "./tip.js";

/**
 * @typedef {object} Tiles
 * @property {"tiles"} kind
 * @property {import("./parts.js").Said} title
 * @property {import("./heatmap.js").Heatmap} overview
 * @property {[number, number]} size of level 0
 * @property {number} levels
 * @property {number} side
 * @property {string} how
 * @property {string} source
 */
/** @typedef {{ rows: number, columns: number, values: Float32Array }} Tile */
/** @typedef {(source: string, level: number, row: number, column: number, how: string) => Promise<Tile>} Fetch */
/** @typedef {Tile & { canvas: HTMLCanvasElement, dark: boolean | null }} Held */

const TALLEST = 480; // pixels of the map
const LARGEST = 28; // pixels of a pair of tokens
const CELL = 2; // pixels of a cell, at least
const HELD = 96; // tiles
const AT_ONCE = 4; // requests
const STEP = 1.6; // factor of one zoom step
const SHOWN = 64; // rows and columns of a table

/**
 * @param {Tiles} given
 * @param {import("./parts.js").Setting} setting
 * @returns {import("./parts.js").Drawn}
 */
export function tiles(given, setting) {
  return given.source ? zoomed(given, setting, fromServer) : flat(given, setting);
}

/** Only the overview, where no server stands behind the page. @param {Tiles} given @param {import("./parts.js").Setting} setting */
function flat(given, setting) {
  const mapOf = (/** @type {Tiles} */ { overview, title }) => ({ ...overview, title });
  const drawn = heatmap(mapOf(given), setting);
  if (given.levels > 1) drawn.element.append(html("p", { class: "quiet" }, setting.words.say("long.static")));
  return { ...drawn, set: (/** @type {Tiles} */ next) => drawn.set(mapOf(next)) };
}

/** @type {Fetch} */
async function fromServer(source, level, row, column, how) {
  const query = new URLSearchParams({ source, level: String(level), row: String(row), column: String(column), how });
  const response = await fetch(`/api/tiles?${query}`, { credentials: "same-origin", redirect: "error" });
  if (!response.ok) throw new Error((await response.json()).error);
  return tileOf(await response.arrayBuffer());
}

/**
 * Decode a tile from `TileSource.body` of inspect/tiles.py: rows, columns, then float32.
 * @param {ArrayBuffer} body
 * @returns {Tile}
 */
export function tileOf(body) {
  const [rows, columns] = new Uint32Array(body, 0, 2);
  return { rows, columns, values: new Float32Array(body, 8, rows * columns) };
}

/**
 * The map of a source of tiles, with zoom and pan by pointer, wheel, buttons and keyboard.
 * @param {Tiles} given
 * @param {import("./parts.js").Setting} setting
 * @param {Fetch} fetchTile
 * @returns {import("./parts.js").Drawn}
 */
export function zoomed(given, setting, fetchTile) {
  const { words } = setting;
  let figure = given;
  /** @type {Map<string, Held>} the ones looked at last stand last */
  const held = new Map();
  /** @type {Set<string>} */
  const coming = new Set();
  /** @type {[number, number, number][]} tiles to ask for, the newest wish first */
  let wishes = [];
  let failure = "";
  // the visible part: pixels per pair of tokens, and the token at the upper left
  let [scale, top, left] = [0, 0, 0];
  /** @type {[number, number] | null} a pair of tokens */
  let focus = null;
  /** @type {{ x: number, y: number, top: number, left: number, moved: boolean } | null} */
  let drag = null;
  let [wide, tall, rail, head] = [0, 0, 0, 34];

  const canvas = /** @type {HTMLCanvasElement} */ (html("canvas", { class: "cells", "aria-hidden": "true" }));
  const rails = svg("svg", { class: "rails", "aria-hidden": "true" });
  const mark = html("div", { class: "cell-mark", hidden: true });
  const plot = html("div", { class: "plot map tiles", tabindex: "0", role: "application" }, canvas, rails, mark);
  const tip = valueTip(plot);
  const line = html("p", { class: "readout idle", "aria-live": "polite" });
  const state = html("span", { class: "quiet" });
  const button = (/** @type {string} */ key, /** @type {string} */ text, /** @type {() => void} */ act) =>
    html("button", { type: "button", class: "save", "data-zoom": key, onclick: act }, text);
  const tools = html("div", { class: "zooming" },
    button("closer", words.say("long.closer"), () => zoom(STEP)),
    button("farther", words.say("long.farther"), () => zoom(1 / STEP)),
    button("whole", words.say("long.whole"), whole),
    state);
  const legend = colourBar(words);
  const { element, refresh } = frameOf(setting, () => figure, [plot, tools, legend.element, line], { table: () => sheet(spoken, SHOWN), csv: () => { const { head: names, rows } = sheet(exact, Infinity); return [names, ...rows]; } });

  const least = () => Math.min(wide / figure.size[1], tall / figure.size[0]);
  /** The finest level whose cells are large enough to be visible. */
  const levelNow = () => Math.max(0, Math.min(figure.levels - 1, Math.ceil(Math.log2(CELL / scale) - 1e-9)));
  const limits = () => figure.overview.limits ?? [0, 1];

  function draw() {
    const width = plot.clientWidth;
    if (!width) return;
    const whole_ = scale <= least() * 1.001;
    rail = 9 * String(figure.size[0]).length + 14;
    wide = Math.min(width - rail - 4, (TALLEST * figure.size[1]) / figure.size[0]);
    tall = Math.min(TALLEST, (wide * figure.size[0]) / figure.size[1]);
    plot.style.height = `${head + tall + 2}px`;
    const dense = window.devicePixelRatio || 1;
    canvas.width = Math.round(wide * dense);
    canvas.height = Math.round(tall * dense);
    Object.assign(canvas.style, { left: `${rail}px`, top: `${head}px`, width: `${wide}px`, height: `${tall}px` });
    const [rows, columns] = figure.overview.axes.map((one) => told(words, one));
    plot.setAttribute("aria-label", `${told(words, figure.title)}. ${words.say("map.label", { rows, columns, m: words.count(figure.size[0]), n: words.count(figure.size[1]) })} ${words.say("long.zoom")}`);
    if (whole_) scale = least();
    if (!line.textContent) rest();
    paint();
  }

  function whole() {
    scale = least();
    top = left = 0;
    paint();
  }

  /** @param {number} factor @param {[number, number]} [about] a place in the map, in pixels */
  function zoom(factor, about = focus ? [(focus[1] - left + 0.5) * scale, (focus[0] - top + 0.5) * scale] : [wide / 2, tall / 2]) {
    const next = Math.max(least(), Math.min(LARGEST, scale * factor));
    left += about[0] / scale - about[0] / next;
    top += about[1] / scale - about[1] / next;
    scale = next;
    paint();
  }

  function paint() {
    if (!wide) return;
    left = Math.max(0, Math.min(figure.size[1] - wide / scale, left));
    top = Math.max(0, Math.min(figure.size[0] - tall / scale, top));
    const level = levelNow();
    const dark = isDark(plot);
    const context = canvas.getContext("2d");
    if (!context) return;
    const dense = canvas.width / wide;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, canvas.width, canvas.height);
    context.imageSmoothingEnabled = false;
    context.setTransform(dense * scale, 0, 0, dense * scale, -left * scale * dense, -top * scale * dense);
    wishes = [];
    // the overview first, finer tiles over it when they arrive
    for (const one of new Set([figure.levels - 1, Math.min(figure.levels - 1, level + 2), level])) lay(context, one, dark, one === level || one === figure.levels - 1);
    const side = 2 ** level;
    state.textContent = failure || (coming.size || wishes.length ? words.say("long.loading") : words.say(side > 1 ? "long.each" : "long.each.one", { side: words.count(side) }));
    legend.draw(figure.overview, limits(), { masked: Boolean(figure.overview.hidden) });
    label();
    show();
    ask();
  }

  /** @param {CanvasRenderingContext2D} context @param {number} level @param {boolean} dark @param {boolean} wanted whether what is missing is asked for */
  function lay(context, level, dark, wanted) {
    const span = figure.side * 2 ** level;
    for (let row = Math.floor(top / span); row * span < Math.min(figure.size[0], top + tall / scale); row += 1)
      for (let column = Math.floor(left / span); column * span < Math.min(figure.size[1], left + wide / scale); column += 1) {
        const tile = find(level, row, column);
        if (!tile) {
          if (wanted) wishes.push([level, row, column]);
          continue;
        }
        if (tile.dark !== dark) colour(tile, dark);
        const cell = 2 ** level;
        context.clearRect(column * span, row * span, tile.columns * cell, tile.rows * cell);
        context.drawImage(tile.canvas, column * span, row * span, tile.columns * cell, tile.rows * cell);
      }
  }

  /** @param {number} level @param {number} row @param {number} column */
  function find(level, row, column) {
    const key = `${level}/${row}/${column}`;
    const tile = held.get(key);
    if (!tile) return undefined;
    held.delete(key);
    held.set(key, tile);
    return tile;
  }

  /** @param {Held} tile @param {boolean} dark */
  function colour(tile, dark) {
    const [low, high] = limits();
    const table = colourTable(figure.overview.scale, dark);
    const ground = groundOf(dark);
    tile.canvas.width = tile.columns;
    tile.canvas.height = tile.rows;
    const context = tile.canvas.getContext("2d");
    const image = new ImageData(tile.columns, tile.rows);
    for (let i = 0; i < tile.values.length; i += 1) {
      if (Number.isNaN(tile.values[i])) continue; // stays transparent, and the hatching shows
      const at = 3 * colourIndex(tile.values[i], low, high);
      image.data.set([table[at] ?? ground[0], table[at + 1], table[at + 2], 255], 4 * i);
    }
    context?.putImageData(image, 0, 0);
    tile.dark = dark;
  }

  function ask() {
    const asked = figure;
    for (const [level, row, column] of wishes) {
      const key = `${level}/${row}/${column}`;
      if (coming.size >= AT_ONCE) return;
      if (coming.has(key) || failure) continue;
      coming.add(key);
      fetchTile(asked.source, level, row, column, asked.how).then((tile) => {
        if (asked !== figure) return;
        held.set(key, { ...tile, canvas: document.createElement("canvas"), dark: null });
        for (const old of held.keys()) if (held.size > HELD) held.delete(old);
      }, (error) => {
        if (asked === figure) failure = words.say("long.failed", { reason: error.message });
      }).finally(() => {
        coming.delete(key);
        if (asked === figure) paint();
      });
    }
  }

  /** Numbers of tokens along both sides. */
  function label() {
    rails.setAttribute("viewBox", `0 0 ${plot.clientWidth} ${head + tall}`);
    rails.setAttribute("width", String(plot.clientWidth));
    rails.setAttribute("height", String(head + tall));
    const [rows, columns] = figure.overview.axes.map((one) => told(words, one));
    const whole_ = (/** @type {number} */ tick) => Number.isInteger(tick);
    rails.replaceChildren(
      svg("text", { class: "axis-title", x: rail, y: 11 }, `${columns} →   ${rows} ↓`),
      ...niceTicks(left, Math.min(figure.size[1], left + wide / scale) - 1, Math.max(2, wide / 90)).filter(whole_).map((tick) =>
        svg("text", { class: "rail", x: rail + (tick - left + 0.5) * scale, y: head - 5, "text-anchor": "middle" }, words.count(tick))),
      ...niceTicks(top, Math.min(figure.size[0], top + tall / scale) - 1, Math.max(2, tall / 50)).filter(whole_).map((tick) =>
        svg("text", { class: "rail", x: rail - 6, y: Math.max(head + 9, head + (tick - top + 0.5) * scale + 4), "text-anchor": "end" }, words.count(tick))),
    );
  }

  /** The cell of a level that holds a pair of tokens. @param {number} level @param {number} row @param {number} column */
  function valueAt(level, row, column) {
    const [i, j] = [Math.floor(row / 2 ** level), Math.floor(column / 2 ** level)];
    const tile = held.get(`${level}/${Math.floor(i / figure.side)}/${Math.floor(j / figure.side)}`);
    return tile?.values[(i % figure.side) * tile.columns + (j % figure.side)];
  }

  function show() {
    mark.hidden = !focus;
    if (!focus) return;
    const level = levelNow();
    const side = 2 ** level;
    const [row, column] = focus.map((one) => Math.floor(one / side) * side);
    const size = Math.max(5, side * scale);
    const [x, y] = [(column - left) * scale, (row - top) * scale];
    mark.hidden = x < -size || y < -size || x > wide || y > tall;
    Object.assign(mark.style, { transform: `translate(${rail + x}px, ${head + y}px)`, width: `${size}px`, height: `${size}px` });
    const value = valueAt(level, row, column);
    const span = (/** @type {number} */ start, /** @type {number} */ count) => (side === 1 ? words.count(start) : `${words.count(start)}–${words.count(Math.min(start + side, count) - 1)}`);
    const said = value === undefined ? words.say("long.loading") : Number.isNaN(value) ? words.say("map.hidden") : spoken(value);
    line.textContent = words.say(side === 1 ? "long.one" : "long.reading", { rows: span(row, figure.size[0]), columns: span(column, figure.size[1]), value: said });
    line.classList.remove("idle");
    if (mark.hidden) tip.hide();
    else tip.show({ x: rail + x, y: head + y, width: size, height: size }, line.textContent);
  }

  function rest() {
    focus = null;
    mark.hidden = true;
    tip.hide();
    line.textContent = words.say("long.zoom");
    line.classList.add("idle");
  }

  /** @param {number} row @param {number} column */
  function look(row, column) {
    focus = [Math.max(0, Math.min(figure.size[0] - 1, row)), Math.max(0, Math.min(figure.size[1] - 1, column))];
    const side = 2 ** levelNow();
    const [y, x] = focus;
    const before = `${top} ${left}`;
    if (y < top) top = y - (y % side);
    if (x < left) left = x - (x % side);
    if (y + side > top + tall / scale) top = y + side - tall / scale;
    if (x + side > left + wide / scale) left = x + side - wide / scale;
    if (before === `${top} ${left}`) show();
    else paint();
  }

  /** @param {MouseEvent} event @returns {[number, number]} pixels in the map */
  const within = (event) => {
    const box = canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };

  plot.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    drag = { x: event.clientX, y: event.clientY, top, left, moved: false };
    plot.setPointerCapture(event.pointerId);
  });
  plot.addEventListener("pointermove", (event) => {
    if (drag) {
      drag.moved ||= Math.hypot(event.clientX - drag.x, event.clientY - drag.y) > 3;
      if (!drag.moved) return;
      top = drag.top - (event.clientY - drag.y) / scale;
      left = drag.left - (event.clientX - drag.x) / scale;
      return paint();
    }
    const [x, y] = within(event);
    if (x < 0 || y < 0 || x >= wide || y >= tall) return rest();
    focus = [Math.floor(top + y / scale), Math.floor(left + x / scale)];
    show();
  });
  for (const kind of ["pointerup", "pointercancel"]) plot.addEventListener(kind, () => (drag = null));
  plot.addEventListener("pointerleave", () => drag || rest());
  plot.addEventListener("blur", rest);
  // the wheel scrolls the page until the map has the focus
  plot.addEventListener("wheel", (event) => {
    if (document.activeElement !== plot && !event.ctrlKey) return;
    event.preventDefault();
    zoom(STEP ** (-event.deltaY / 120), within(event));
  }, { passive: false });
  plot.addEventListener("keydown", (event) => {
    if (event.altKey || event.metaKey || event.ctrlKey) return;
    const side = 2 ** levelNow();
    const page = Math.max(side, Math.round(tall / scale / 2));
    /** @type {Record<string, () => void>} */
    const acts = { Escape: rest, "+": () => zoom(STEP), "=": () => zoom(STEP), "-": () => zoom(1 / STEP), 0: whole };
    /** @type {Record<string, [number, number]>} */
    const moves = { ArrowLeft: [0, -side], ArrowRight: [0, side], ArrowUp: [-side, 0], ArrowDown: [side, 0], PageUp: [-page, 0], PageDown: [page, 0] };
    const move = moves[event.key];
    if (!move && !acts[event.key]) return;
    event.preventDefault();
    if (!move) return acts[event.key]();
    if (focus) look(focus[0] + move[0], focus[1] + move[1]);
    else look(Math.ceil(top), Math.ceil(left));
  });

  /** What is looked at, as a table. @param {(value: any) => unknown} write @param {number} most */
  function sheet(write, most) {
    const side = 2 ** levelNow();
    const along = (/** @type {number} */ start, /** @type {number} */ room, /** @type {number} */ count) => {
      const first = Math.floor(start / side) * side;
      const found = [];
      for (let at = first; at < Math.min(count, start + room) && found.length < most; at += side) found.push(at);
      return found;
    };
    const rows = along(top, tall / scale, figure.size[0]);
    const columns = along(left, wide / scale, figure.size[1]);
    const cell = (/** @type {number | undefined} */ value) => (value === undefined || Number.isNaN(value) ? (write === spoken ? words.say("map.hidden.short") : null) : write(value));
    return {
      head: [figure.overview.axes.map((one) => told(words, one)).join(" \\ "), ...columns.map(String)],
      rows: rows.map((row) => [String(row), ...columns.map((column) => cell(valueAt(levelNow(), row, column)))]),
      note: words.say(side > 1 ? "long.each" : "long.each.one", { side: words.count(side) }),
    };
  }

  /** @param {Tiles} next */
  function set(next) {
    if (next.source !== figure.source || next.how !== figure.how) {
      held.clear();
      failure = "";
    } else for (const tile of held.values()) tile.dark = null;
    const fresh = next.size.join() !== figure.size.join();
    figure = next;
    refresh();
    if (fresh) scale = 0;
    draw();
  }

  return { element, draw, set };
}
