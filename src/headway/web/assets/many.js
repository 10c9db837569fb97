/** Figures made of figures: walls, steps, films and columns. */

import { exact, spoken } from "./blocks.js";
import { html } from "./dom.js";
import { scaleChoice } from "./choices.js";
import { colourBar, heatmap, limitsOf } from "./heatmap.js";
import { announce, frameOf, keptOf, told } from "./parts.js";
import { drawnOf } from "./plots.js";
import { roomAround } from "./scales.js";
import { valueTip } from "./tip.js";

/** @typedef {import("./parts.js").Said} Said */
/** @typedef {import("./parts.js").Plain} Plain */
/** @typedef {import("./parts.js").Setting} Setting */
/** @typedef {import("./parts.js").Drawn} Drawn */
/** @typedef {(figure: Plain, setting: Setting) => Drawn} Make */
/** @typedef {import("./heatmap.js").Heatmap} Heatmap */
/** @typedef {{ kind: "wall", title: Said, tiles: [Said, Heatmap, Record<string, number>][], columns: number, sorts: Record<string, Said> }} Wall */
/** @typedef {{ label: Said, shape: string, formula: string, said: Said, figures: Plain[], deeper: [string, Said][] }} Stage */
/** @typedef {{ kind: "steps", title: Said, stages: Stage[] }} Steps */
/** @typedef {{ kind: "film", title: Said, frames: [Said, Plain[]][] }} Film */
/** @typedef {{ kind: "columns", title: Said, columns: [Said, Plain[]][] }} Columns */

const TILE = 168; // pixels of a tile, at most
const FEW = 8; // tiles, which may be larger
const SMALLEST = 62;
const WHOLE_FILM = 6000; // milliseconds from the first frame to the last

/**
 * Stacked figures whose values can be replaced without rebuilding them.
 * @param {Plain[]} figures
 * @param {Setting} setting
 * @param {Make} make
 */
export function group(figures, setting, make) {
  const element = html("div", { class: "group" });
  /** @type {{ kind: string, one: Drawn }[]} */
  let drawn = [];

  /** @param {Plain[]} next */
  function set(next) {
    drawn = next.map((figure, i) => {
      const old = drawn[i];
      if (old?.kind === figure.kind) {
        old.one.set(figure);
        return old;
      }
      return { kind: figure.kind, one: make(figure, { ...setting, file: `${setting.file}-${i + 1}` }) };
    });
    const elements = drawn.map(({ one }) => one.element);
    if (elements.length !== element.children.length || elements.some((one, i) => one !== element.children[i])) {
      element.replaceChildren(...elements);
      draw();
    }
  }
  const draw = () => drawn.forEach(({ one }) => one.draw());

  set(figures);
  return { element, draw, set, all: () => drawn.map(({ one }) => one) };
}

/**
 * Small multiples with a common scale, in the model's order or sorted by a value.
 * @param {Wall} given
 * @param {Setting} setting
 * @returns {Drawn}
 */
export function wall(given, setting) {
  const { words } = setting;
  let figure = given;
  let order = String(keptOf(given).order ?? "");
  /** @type {{ button: HTMLElement, name: HTMLElement, value: HTMLElement, one: Drawn, at: number }[]} */
  let tiles = [];
  const area = html("div", { class: "wall" });
  const field = html("div", { class: "wall-field", onpointerleave: () => tip.hide() }, area);
  const tip = valueTip(field);
  const bar = colourBar(words);
  const line = html("p", { class: "readout", "aria-live": "polite" });
  const menu = html("select", { onchange: (/** @type {Event} */ event) => { order = keptOf(figure).order = /** @type {HTMLSelectElement} */ (event.target).value; arrange(); } });
  const tools = html("label", { class: "select" }, words.say("wall.sort"), menu);
  let whole = false;
  const choice = scaleChoice(words, (all) => { whole = all; set(figure); });
  const sheets = { table: () => sheet(spoken), csv: () => { const { head, rows } = sheet(exact); return [head, ...rows]; } };
  const { element, refresh } = frameOf(setting, () => figure, [tools, field, bar.element, choice.element, line], sheets);

  /** Give all tiles common limits. */
  function scaled() {
    const maps = figure.tiles.map(([, map]) => (whole ? { ...map, fit: null } : map));
    const limits = commonLimits(maps);
    return maps.map((map) => ({ ...map, limits, fit: null }));
  }

  function build() {
    const maps = scaled();
    tiles = figure.tiles.map((_, at) => {
      const one = heatmap(maps[at], { ...setting, form: "tile" });
      const [name, value] = [html("span", { class: "tile-name" }), html("span", { class: "tile-value" })];
      const button = html("button", { type: "button", class: "tile", onclick: () => choose(at), onfocus: () => tell(at), onblur: () => tip.hide(), onpointerenter: () => tell(at) }, one.element, name, value);
      return { button, name, value, one, at };
    });
    name();
    arrange();
  }

  function name() {
    tools.hidden = !Object.keys(figure.sorts).length;
    menu.replaceChildren(
      html("option", { value: "" }, words.say("wall.sort.none")),
      ...Object.entries(figure.sorts).flatMap(([key, said]) => ["down", "up"].map((way) => html("option", { value: `${way}:${key}` }, words.say(`wall.sort.${way}`, { name: told(words, said) })))),
    );
    /** @type {HTMLSelectElement} */ (menu).value = order;
    for (const tile of tiles) tile.name.textContent = told(words, figure.tiles[tile.at][0]);
  }

  function arrange() {
    const [way, key] = order.split(":");
    const number = (/** @type {number} */ at) => figure.tiles[at][2][key] ?? -Infinity;
    const sorted = key ? [...tiles].sort((a, b) => (way === "up" ? 1 : -1) * (number(a.at) - number(b.at)) || a.at - b.at) : tiles;
    for (const { value, at } of tiles) value.textContent = key ? spoken(figure.tiles[at][2][key]) : "";
    const focused = document.activeElement;
    area.replaceChildren(...sorted.map(({ button }) => button));
    if (focused instanceof HTMLElement && area.contains(focused)) focused.focus();
  }

  function draw() {
    const width = area.clientWidth;
    if (!width) return;
    const fit = Math.max(1, Math.floor(width / SMALLEST));
    area.style.gridTemplateColumns = `repeat(${Math.min(figure.columns, fit)}, minmax(0, ${figure.tiles.length > FEW ? TILE : 1.4 * TILE}px))`;
    for (const { one } of tiles) one.draw();
    const maps = scaled();
    if (maps.length) bar.draw(maps[0], /** @type {[number, number]} */ (maps[0].limits), { masked: maps.some((map) => map.hidden) });
    choice.update(figure.tiles.some(([, map]) => map.fit), whole);
  }

  const place = (/** @type {number} */ at) => {
    const { layer, head } = figure.tiles[at][2];
    return { layer: layer ?? Math.floor(at / figure.columns), head: head ?? at % figure.columns, label: told(words, figure.tiles[at][0]) };
  };

  /** @param {number} at */
  function choose(at) {
    for (const tile of tiles) tile.button.setAttribute("aria-pressed", String(tile.at === at));
    announce(area, "headway:choose", place(at));
  }

  /** @param {number} at */
  function tell(at) {
    const [label, , numbers] = figure.tiles[at];
    const told_ = Object.entries(figure.sorts).map(([key, said]) => `${told(words, said)} ${spoken(numbers[key])}`);
    line.textContent = `${told(words, label)}${told_.length ? words.say("join.colon") : ""}${told_.join(words.say("join.strong"))}`;
    const { offsetLeft: x, offsetTop: y, offsetWidth: width, offsetHeight: height } = tiles[at].button;
    tip.show({ x, y, width, height }, line.textContent);
  }

  /** @param {(value: number) => unknown} write */
  function sheet(write) {
    const keys = Object.keys(figure.sorts);
    return {
      head: ["", ...keys.map((key) => told(words, figure.sorts[key]))],
      rows: figure.tiles.map(([label, , numbers]) => [told(words, label), ...keys.map((key) => write(numbers[key]))]),
    };
  }

  /** @param {Wall} next */
  function set(next) {
    const same = next.tiles.length === figure.tiles.length;
    keptOf(next, figure);
    figure = next;
    refresh();
    if (!same) build();
    else {
      const maps = scaled();
      tiles.forEach(({ one }, i) => one.set(maps[i]));
      name();
      arrange();
    }
    draw();
  }

  build();
  return { element, draw, set };
}

/** The limits that several maps share. @param {Heatmap[]} maps @returns {[number, number]} */
function commonLimits(maps) {
  const all = maps.map(limitsOf);
  return [Math.min(...all.map(([low]) => low)), Math.max(...all.map(([, high]) => high))];
}

let tabs = 0; // tab ids are unique within the page

/**
 * A strip of stages, one of which is open.
 * @param {Steps} given
 * @param {Setting} setting
 * @param {Make} make
 * @param {{ above?: HTMLElement, below?: HTMLElement, first?: number, shown?: (index: number) => void, sheets?: Parameters<typeof frameOf>[3] }} [around] the strip
 * @returns {Drawn & { show: (index: number) => void }}
 */
export function steps(given, setting, make, { above, below, first = 0, shown, sheets = {} } = {}) {
  const { words } = setting;
  let figure = given;
  let open = Number(keptOf(given).stage ?? first);
  tabs += 1;
  const id = `stage-${tabs}`;
  const strip = html("div", { class: "strip", role: "tablist" });
  const said = html("p", { class: "stage-said" });
  const formula = html("code", { class: "stage-formula" });
  const deeper = html("p", { class: "deeper" });
  const inside = group(figure.stages[open]?.figures ?? [], { ...setting, level: setting.level + 1 }, make);
  const panel = html("div", { class: "stage", role: "tabpanel", id: `${id}-panel`, tabindex: "0" }, said, formula, deeper, inside.element);
  const { element, refresh } = frameOf(setting, () => figure, [above, strip, below, panel], sheets);

  function build() {
    strip.setAttribute("aria-label", told(words, figure.title));
    strip.replaceChildren(...figure.stages.map((stage, i) =>
      html("button", { type: "button", role: "tab", id: `${id}-${i}`, "aria-controls": `${id}-panel`, onclick: () => show(i), onkeydown: (/** @type {KeyboardEvent} */ event) => move(event, i) },
        html("span", { class: "stage-label" }, told(words, stage.label)), html("span", { class: "stage-shape" }, stage.shape))));
    show(Math.min(open, figure.stages.length - 1));
  }

  /** @param {number} index */
  function show(index) {
    open = keptOf(figure).stage = index;
    [...strip.children].forEach((tab, i) => {
      tab.setAttribute("aria-selected", String(i === open));
      tab.setAttribute("tabindex", i === open ? "0" : "-1");
    });
    const stage = figure.stages[open];
    panel.setAttribute("aria-labelledby", `${id}-${open}`);
    said.textContent = told(words, stage.said);
    formula.textContent = stage.formula;
    formula.hidden = !stage.formula;
    link(stage);
    inside.set(stage.figures);
    shown?.(open);
  }

  /** The views behind a stage, where there are such. @param {Stage} stage */
  function link({ deeper: views }) {
    const there = views.filter(([view]) => element.closest(".studio") || document.getElementById(`view-${view}`));
    deeper.replaceChildren(...there.map(([view, title]) => html("button", { type: "button", class: "save", "data-opens": view, onclick: () => opens(panel, { view }) }, `${told(words, title)} →`)));
  }

  /** @param {KeyboardEvent} event @param {number} from */
  function move(event, from) {
    const last = figure.stages.length - 1;
    /** @type {Record<string, number>} */
    const to = { ArrowLeft: from - 1, ArrowRight: from + 1, ArrowUp: from - 1, ArrowDown: from + 1, Home: 0, End: last };
    if (!(event.key in to)) return;
    event.preventDefault();
    show(Math.max(0, Math.min(last, to[event.key])));
    /** @type {HTMLElement} */ (strip.children[open]).focus();
  }

  function draw() {
    link(figure.stages[open]);
    inside.draw();
  }

  build();
  return { element, draw, show, set: (next) => { keptOf(next, figure); figure = next; refresh(); build(); } };
}

/**
 * Open another view: the page around is told; where it does not know, one that is on the page comes into sight.
 * @param {Element} element
 * @param {{ view: string, [key: string]: any }} detail
 */
export function opens(element, detail) {
  announce(element, "headway:open", detail);
  document.getElementById(`view-${detail.view}`)?.scrollIntoView();
}

/**
 * The same figures at several times, with a slider and a button that plays them.
 * @param {Film} given
 * @param {Setting} setting
 * @param {Make} make
 * @returns {Drawn}
 */
export function film(given, setting, make) {
  const { words } = setting;
  const scaled = (/** @type {Film} */ { frames: all }) => onOneScale(all.map(([, figures]) => figures));
  let frames = scaled(given);
  let figure = given;
  let at = Math.min(given.frames.length - 1, Number(keptOf(given).frame ?? 0));
  let asked = 0;
  let playing = 0;
  const range = /** @type {HTMLInputElement} */ (html("input", { type: "range", min: "0", step: "1", max: String(given.frames.length - 1), value: String(at), oninput: () => { stop(); go(Number(range.value)); } }));
  const button = html("button", { type: "button", class: "save play", onclick: () => (playing ? stop() : play()) });
  const label = html("output", { class: "film-label" });
  const inside = group(frames[at] ?? [], { ...setting, level: setting.level + 1, quiet: true }, make);
  const { element, refresh } = frameOf(setting, () => figure, [html("div", { class: "film" }, button, range, label), inside.element], {});

  /** Show a frame when the screen is next drawn, so that a fast hand does not queue frames. @param {number} next */
  function go(next) {
    at = Math.max(0, Math.min(frames.length - 1, next));
    range.value = String(keptOf(figure).frame = at);
    name();
    asked ||= requestAnimationFrame(() => {
      asked = 0;
      inside.set(frames[at]);
    });
  }

  function name() {
    const text = told(words, figure.frames[at][0]);
    label.textContent = text;
    range.max = String(frames.length - 1);
    range.setAttribute("aria-label", told(words, figure.title));
    range.setAttribute("aria-valuetext", text);
    button.textContent = words.say(playing ? "film.pause" : "film.play");
  }

  function play() {
    const pause = Math.max(40, Math.min(700, WHOLE_FILM / frames.length));
    if (at === frames.length - 1) at = -1;
    const tick = () => {
      if (!element.isConnected || at >= frames.length - 1) return stop();
      playing = window.setTimeout(tick, pause);
      go(at + 1);
    };
    tick();
  }

  function stop() {
    window.clearTimeout(playing);
    playing = 0;
    name();
  }

  /** @param {Film} next */
  function set(next) {
    const last = at === frames.length - 1; // a reader at the newest frame stays at the newest
    keptOf(next, figure);
    figure = next;
    frames = scaled(next);
    at = Math.min(at, frames.length - 1);
    refresh();
    name();
    go(last && frames.length > 1 ? frames.length - 1 : at);
  }

  name();
  return { element, draw: inside.draw, set };
}

/**
 * Figures of several times or subjects; those that show the same quantity have a common scale, so that they can be compared.
 * @param {Plain[][]} all for each time or thing its figures
 * @returns {Plain[][]}
 */
function onOneScale(all) {
  const scales = (all[0] ?? []).map((first, i) => {
    const same = all.map((figures) => figures[i]).filter((figure) => figure?.kind === first.kind && JSON.stringify(figure.title) === JSON.stringify(first.title));
    if (same.length < all.length) return {};
    if (first.kind === "heatmap") return first.limits ? {} : { limits: commonLimits(/** @type {any[]} */ (same)) };
    if (first.kind !== "lines" && first.kind !== "bars") return {};
    const [low, high] = reach(same.flatMap((figure) => drawnOf(/** @type {any} */ (figure))));
    if (!(high > low)) return {};
    return { range: first.kind === "bars" ? [low, high] : roomAround(low, high, first.log_y) };
  });
  return all.map((figures) => figures.map((figure, i) => ({ ...figure, ...scales[i], kept: keptOf(figure) })));
}

/** @param {number[]} values @returns {[number, number]} lowest and highest, of many too */
function reach(values) {
  return values.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], /** @type {[number, number]} */ ([Infinity, -Infinity]));
}

/**
 * Figures side by side; pointing at a cell of one points at it in all.
 * @param {Columns} given
 * @param {Setting} setting
 * @param {Make} make
 * @returns {Drawn}
 */
export function columns(given, setting, make) {
  const { words } = setting;
  let figure = given;
  const level = setting.level + (told(words, figure.title) ? 1 : 0);
  const area = html("div", { class: "beside" });
  /** @type {{ name: HTMLElement, inside: ReturnType<typeof group> }[]} */
  let all = [];
  const { element, refresh } = frameOf(setting, () => figure, [area], {});

  const onScale = () => onOneScale(figure.columns.map(([, figures]) => figures));

  function build() {
    const scaled = onScale();
    all = figure.columns.map((column, i) => ({ name: html(`h${Math.min(6, level)}`, { class: "column-name" }), inside: group(scaled[i], { ...setting, level: twice(column) ? level : level + 1, file: `${setting.file}-${i + 1}`, quiet: true }, make) }));
    area.replaceChildren(...all.map(({ name, inside }) => html("div", { class: "beside-one" }, name, inside.element)));
    area.classList.toggle("crowd", all.length > 3);
    name();
  }
  /** Whether a column's only figure already shows its name. */
  const twice = (/** @type {Columns["columns"][number]} */ [label, figures]) => figures.length === 1 && told(words, figures[0].title) === told(words, label);
  const name = () =>
    all.forEach((one, i) => {
      one.name.textContent = told(words, figure.columns[i][0]);
      one.name.hidden = twice(figure.columns[i]);
    });
  const draw = () => all.forEach(({ inside }) => inside.draw());

  area.addEventListener("headway:point", (event) => {
    const { row, column } = /** @type {CustomEvent} */ (event).detail;
    const target = /** @type {Node} */ (event.target);
    const which = all.flatMap(({ inside }) => inside.all().map((one, i) => ({ one, i }))).find(({ one }) => one.element.contains(target));
    if (!which) return;
    for (const { inside } of all) {
      const other = inside.all()[which.i];
      if (other && other !== which.one) other.point?.(row, column);
    }
  });

  area.addEventListener("headway:scale", (event) => {
    for (const { inside } of all) for (const one of inside.all()) if (!one.element.contains(/** @type {Node} */ (event.target))) one.rescale?.(/** @type {CustomEvent} */ (event).detail.whole);
  });

  /** @param {Columns} next */
  function set(next) {
    const same = next.columns.length === figure.columns.length;
    figure = next;
    refresh();
    if (!same) {
      build();
      return draw();
    }
    const scaled = onScale();
    all.forEach(({ inside }, i) => inside.set(scaled[i]));
    name();
  }

  build();
  return { element, draw, set };
}
