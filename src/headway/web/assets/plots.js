/** Curves, bars, dials and small tables of a view. */

import { exact, onAxis, spoken } from "./blocks.js";
import { lineChart, swatch } from "./chart.js";
import { html, svg } from "./dom.js";
import { announce, frameOf, told } from "./parts.js";
import { niceTicks } from "./scales.js";
import { axisChoice } from "./choices.js";
import { isKnown, methodStyles, styleOf } from "./styles.js";
import { valueTip } from "./tip.js";

/** @typedef {import("./parts.js").Said} Said */
/** @typedef {import("./parts.js").Setting} Setting */
/** @typedef {import("./parts.js").Drawn} Drawn */
/** @typedef {{ label: Said, values: (number | null)[], low: (number | null)[] | null, high: (number | null)[] | null, style: number | null, steps: boolean }} Line */
/** @typedef {{ kind: "lines", title: Said, x: number[], lines: Line[], axes: [Said, Said], log_x: boolean, log_y: boolean, marks: [number, Said][], range?: [number, number] }} Lines */
/** @typedef {{ kind: "bars", title: Said, labels: string[], series: [Said, (number | null)[]][], axis: Said, range?: [number, number] }} Bars */
/** @typedef {{ kind: "dials", title: Said, labels: string[], hands: [Said, number[]][] }} Dials */
/** @typedef {{ kind: "grid", title: Said, columns: Said[], rows: [Said, string[]][] }} Grid */

const SHOWN = 200; // rows of a table
const THICKEST = 44; // pixels of a bar
const MARKED = 16; // up to this many points each gets a marker: an isolated point has no line

/**
 * @param {Lines} given
 * @param {Setting} setting
 * @returns {Drawn}
 */
export function lines(given, setting) {
  const { words } = setting;
  let figure = given;
  const chart = lineChart(describe, () => {});
  const axis = axisChoice(words, () => figure, () => chart.draw());
  const { element, refresh } = frameOf(setting, () => figure, [setting.form ? "" : axis.element, chart.element], { table, csv: () => csv() });
  const names = () => figure.lines.map((line) => told(words, line.label));
  const axes = () => figure.axes.map((one) => told(words, one));

  function describe() {
    const [x, y] = axes();
    const styles = lineStyles(figure.lines);
    const [logX, logY] = [axis.isLog("x"), axis.isLog("y")];
    const name = (/** @type {string} */ axis, /** @type {boolean} */ is) => `${axis}${is ? words.say("axis.log") : ""}`.replace("）（", "，");
    return {
      label: told(words, figure.title),
      hint: words.say("hint"),
      quiet: setting.quiet,
      empty: words.say("empty"),
      x: { label: name(x, logX), ticks: null, log: logX, format: onAxis },
      y: { label: name(y, logY), domain: figure.range ?? null, format: onAxis, clip: null, log: logY },
      value: spoken,
      series: figure.lines.map((line, i) => ({
        id: `${i}`,
        name: names()[i],
        style: styles[i],
        steps: line.steps,
        ...partOf(line),
      })),
      markers: figure.x.length <= MARKED,
      endValues: false,
      marks: figure.marks.map(([at, label]) => ({ x: at, label: told(words, label) })),
      heading: (/** @type {number} */ at) => `${x}${words.say("join.colon")}${onAxis(at)}`,
      readout: (/** @type {{ id: string }} */ line, /** @type {{ x: number, mean: number, low: number, high: number, seeds: number }} */ point) =>
        words.say(point.seeds > 1 ? "lines.reading.band" : "lines.reading", { name: names()[Number(line.id)], axis: x, x: onAxis(point.x), value: spoken(point.mean), low: spoken(point.low), high: spoken(point.high) }),
    };
  }

  /** The points of a line, and a word where it ends before the others. @param {Line} line */
  function partOf(line) {
    const points = pointsOf(figure, line, axis.isLog("y"));
    const last = points[points.length - 1]?.x;
    return { points, stop: last < Math.max(...figure.x) ? words.say("lines.stop", { x: onAxis(last) }) : null };
  }

  function table() {
    const count = Math.min(SHOWN, figure.x.length);
    return {
      head: [axes()[0], ...names()],
      rows: figure.x.slice(0, count).map((x, i) => [onAxis(x), ...figure.lines.map((line) => spoken(line.values[i]))]),
      note: count < figure.x.length ? words.say("view.table.rows", { m: words.count(count), rows: words.count(figure.x.length) }) : "",
    };
  }

  const csv = () => [
    [axes()[0], ...figure.lines.flatMap((line, i) => [names()[i], ...(line.low && line.high ? [`${names()[i]} low`, `${names()[i]} high`] : [])])],
    ...figure.x.map((x, i) => [x, ...figure.lines.flatMap((line) => [exact(line.values[i]), ...(line.low && line.high ? [exact(line.low[i]), exact(line.high[i])] : [])])]),
  ];

  return { element, draw: chart.draw, set: (next) => { figure = next; refresh(); axis.update(); chart.draw(); } };
}

/** A line's points; after a gap the line begins anew. @param {Lines} figure @param {Line} line @param {boolean} log */
function pointsOf({ x }, { values, low, high }, log) {
  const points = [];
  let gap = false;
  for (let i = 0; i < x.length; i += 1) {
    const mean = values[i];
    if (mean === null || mean === undefined || !Number.isFinite(mean) || (log && mean <= 0)) {
      gap = points.length > 0;
      continue;
    }
    const [from, to] = [low?.[i] ?? mean, high?.[i] ?? mean];
    points.push({ x: x[i], mean, low: from, high: to, seeds: low && high ? 2 : 1, gap });
    gap = false;
  }
  return points;
}

/** Methods look as they do everywhere; other lines as they say, or by their place. @param {Line[]} all */
function lineStyles(all) {
  const methods = all.map(({ label }) => ({ spec: label.en, name: label.en.split("(")[0] }));
  const looks = methods.every(({ name }) => isKnown(name)) ? methodStyles(methods) : new Map();
  return all.map(({ label, style }, i) => (style === null ? looks.get(label.en) ?? styleOf(i) : styleOf(style)));
}

/**
 * @param {Bars} given
 * @param {Setting} setting
 * @returns {Drawn}
 */
export function bars(given, setting) {
  const { words } = setting;
  let figure = given;
  /** @type {ReturnType<typeof place> | null} */
  let now = null;
  let focus = -1;
  const picture = svg("svg", { "aria-hidden": "true" });
  const plot = html("div", { class: "plot", tabindex: "0", role: "application" }, picture);
  const tip = valueTip(plot);
  const line = html("p", { class: "readout idle", "aria-live": "polite" });
  const legend = html("div", { class: "keys" });
  const { element, refresh } = frameOf(setting, () => figure, [legend, plot, line], { table: sheet, csv: () => numbers(exact) });
  const names = () => figure.series.map(([name]) => told(words, name));

  function draw() {
    const width = plot.clientWidth;
    if (!width) return;
    plot.setAttribute("aria-label", `${told(words, figure.title)}. ${words.say("hint")}`);
    legend.replaceChildren(...(figure.series.length > 1 ? names().map((name, i) => html("span", { class: `key hue-${styleOf(i).hue}` }, html("i", { class: i % 2 ? "hollow" : "", "aria-hidden": "true" }), name)) : []));
    now = place(width);
    paint(now);
    show();
  }

  /** @param {number} width */
  function place(width) {
    const all = figure.range ?? drawnOf(figure);
    const [low, high] = [Math.min(0, ...all), Math.max(0, ...all)];
    const ticks = niceTicks(low, high > low ? high : 1, 4);
    const left = Math.max(...ticks.map((tick) => onAxis(tick).length * 7)) + 12;
    const each = (width - left - 4) / Math.max(1, figure.labels.length);
    const longest = Math.max(0, ...figure.labels.map((label) => [...label].reduce((sum, letter) => sum + (letter > "\u2e80" ? 12.5 : 7), 0)));
    const tilted = longest + 6 > each && !figure.labels.every((label) => /^[+\-−]?[\d.,e]+$/.test(label));
    const [top, tall] = [22, 190];
    return { width, left, each, low, high: high > low ? high : 1, ticks, tilted, longest, top, tall, floor: top + tall };
  }

  /** @param {NonNullable<typeof now>} at */
  function paint({ width, left, each, low, high, ticks, tilted, longest, top, tall, floor }) {
    const y = (/** @type {number} */ value) => floor - ((value - low) / (high - low)) * tall;
    const below = tilted ? Math.min(90, longest) * Math.SQRT1_2 + 18 : 24;
    const count = figure.series.length;
    const gap = Math.max(each - count * THICKEST, each > 8 ? Math.min(10, each * 0.24) : 0);
    const thick = (each - gap) / count;
    const bar = (/** @type {number} */ i, /** @type {number} */ k, /** @type {number} */ value) => {
      const x = left + i * each + gap / 2 + k * thick;
      return `M${x.toFixed(2)} ${y(0).toFixed(2)}V${y(value).toFixed(2)}h${Math.max(0.5, thick - (thick > 4 ? 1 : 0)).toFixed(2)}V${y(0).toFixed(2)}Z`;
    };
    const every = Math.max(1, Math.ceil((tilted ? 20 : longest + 8) / each));
    const empty = figure.labels.map((_, i) => i).filter((i) => figure.series.every(([, values]) => values[i] === null));
    picture.setAttribute("viewBox", `0 0 ${width} ${floor + below}`);
    picture.setAttribute("height", String(floor + below));
    picture.replaceChildren(
      svg("text", { class: "axis-title", x: 0, y: 12 }, told(words, figure.axis)),
      svg("g", { class: "grid" }, ticks.flatMap((tick) => [
        svg("line", { x1: left, x2: width - 4, y1: y(tick), y2: y(tick) }),
        svg("text", { class: "tick", x: left - 7, y: y(tick) + 4, "text-anchor": "end" }, onAxis(tick)),
      ])),
      ...empty.map((i) => svg("text", { class: "tick", x: left + (i + 0.5) * each, y: y(0) - 5, "text-anchor": "middle" }, "–")).filter((_, i) => each > 10 || i === 0),
      ...figure.series.map(([, values], k) =>
        svg("path", { class: `column hue-${styleOf(k).hue}${k % 2 ? " hollow" : ""}`, "data-column": k, d: values.map((value, i) => (value === null || !Number.isFinite(value) ? "" : bar(i, k, value))).join("") })),
      svg("g", { class: "grid" }, svg("line", { class: "base", x1: left, x2: width - 4, y1: y(0), y2: y(0) })),
      ...figure.labels.flatMap((label, i) => {
        if (i % every) return [];
        const x = left + (i + 0.5) * each;
        const letters = [...label];
        const short = tilted && letters.length > 13 ? `${letters.slice(0, 12).join("")}…` : label;
        return [tilted ? svg("text", { class: "rail", transform: `translate(${x + 3} ${floor + 13}) rotate(-45)`, "text-anchor": "end" }, short) : svg("text", { class: "rail", x, y: floor + 17, "text-anchor": "middle" }, short)];
      }),
      svg("rect", { class: "chosen-column", y: top, height: tall, width: Math.max(2, each), visibility: "hidden" }),
    );
  }

  function show() {
    const mark = picture.querySelector(".chosen-column");
    if (!now || !mark) return;
    mark.setAttribute("visibility", focus < 0 ? "hidden" : "visible");
    line.classList.toggle("idle", focus < 0);
    if (focus < 0) {
      tip.hide();
      line.textContent = setting.quiet ? "" : words.say("hint");
      return;
    }
    mark.setAttribute("x", String(now.left + focus * now.each));
    line.textContent = `${figure.labels[focus]}${words.say("join.colon")}${figure.series.map(([name, values]) => `${told(words, name)} ${values[focus] === null ? words.say("bars.none") : spoken(values[focus])}`).join(words.say("join.strong"))}`;
    tip.show({ x: now.left + focus * now.each, y: now.top, width: now.each, height: 0 }, line.textContent);
  }

  const choose = (/** @type {number} */ index) => {
    focus = Math.max(-1, Math.min(figure.labels.length - 1, index));
    show();
  };
  plot.addEventListener("pointermove", (event) => {
    if (!now) return;
    const index = Math.floor((event.clientX - plot.getBoundingClientRect().left - now.left) / now.each);
    if (index >= 0 && index < figure.labels.length) choose(index);
  });
  plot.addEventListener("pointerleave", () => choose(-1));
  plot.addEventListener("blur", () => choose(-1));
  plot.addEventListener("click", () => focus >= 0 && announce(plot, "headway:cell", { row: 0, column: focus }));
  plot.addEventListener("keydown", (event) => {
    if (event.key === "Escape") return choose(-1);
    /** @type {Record<string, number>} */
    const moves = { ArrowLeft: Math.max(0, focus - 1), ArrowRight: focus + 1, Home: 0, End: Infinity };
    if (!(event.key in moves)) return;
    event.preventDefault();
    choose(moves[event.key]);
  });

  const numbers = (/** @type {(value: any) => unknown} */ write) => [
    [told(words, figure.axis), ...names()],
    ...figure.labels.map((label, i) => [label, ...figure.series.map(([, values]) => write(values[i]))]),
  ];

  function sheet() {
    const [head, ...rows] = numbers(spoken);
    const note = rows.length > SHOWN ? words.say("view.table.rows", { m: words.count(SHOWN), rows: words.count(rows.length) }) : "";
    return { head, rows: rows.slice(0, SHOWN), note };
  }

  return { element, draw, set: (next) => { figure = next; refresh(); draw(); } };
}

/**
 * The values of a figure of curves or bars, including the limits of bands.
 * @param {Lines | Bars} figure
 * @returns {number[]}
 */
export function drawnOf(figure) {
  const all = figure.kind === "bars" ? figure.series.flatMap(([, values]) => values) : figure.lines.flatMap(({ values, low, high }) => [...values, ...(low ?? []), ...(high ?? [])]);
  const positive = figure.kind === "lines" && figure.log_y;
  return all.flatMap((value) => (typeof value === "number" && Number.isFinite(value) && (!positive || value > 0) ? [value] : []));
}

/**
 * @param {Dials} given
 * @param {Setting} setting
 * @returns {Drawn}
 */
export function dials(given, setting) {
  const { words } = setting;
  let figure = given;
  const row = html("div", { class: "dials" });
  const legend = html("div", { class: "keys" });
  const { element, refresh } = frameOf(setting, () => figure, [legend, row], { table: () => ({ head: head(), rows: body(spoken) }), csv: () => [head(), ...body(exact)] });
  const names = () => figure.hands.map(([name]) => told(words, name));
  const head = () => [words.say("dials.angle"), ...names()];
  const body = (/** @type {(value: number) => unknown} */ write) => figure.labels.map((label, i) => [label, ...figure.hands.map(([, angles]) => write(angles[i]))]);

  function draw() {
    legend.replaceChildren(...names().map((name, i) => html("span", { class: "key" }, swatch(styleOf(i)), name)));
    row.replaceChildren(...figure.labels.map((label, i) => {
      const hands = figure.hands.map(([, angles], k) => {
        const [x, y] = [Math.cos(angles[i]), Math.sin(angles[i])];
        const reach = 30 - 7 * k; // hands at the same angle stay visible
        return svg("g", { class: `hue-${styleOf(k).hue}` },
          svg("line", { class: "line", x1: 0, y1: 0, x2: (x * reach).toFixed(2), y2: (-y * reach).toFixed(2) }),
          svg("circle", { class: "marker", cx: (x * reach).toFixed(2), cy: (-y * reach).toFixed(2), r: 3.2 }));
      });
      const text = figure.hands.map(([, angles], k) => `${names()[k]} ${degrees(angles[i])}`).join(words.say("join.strong"));
      return html("div", { class: "dial", role: "img", "aria-label": `${label}${words.say("join.colon")}${text}` },
        svg("svg", { viewBox: "-37 -37 74 74", width: 74, height: 74, "aria-hidden": "true" },
          svg("circle", { class: "face", r: 34 }), svg("line", { class: "zero", x1: 28, x2: 34, y1: 0, y2: 0 }), hands, svg("title", {}, text)),
        html("span", { class: "dial-name" }, label));
    }));
  }

  return { element, draw, set: (next) => { figure = next; refresh(); draw(); } };
}

/** An angle in degrees within a turn. @param {number} angle */
function degrees(angle) {
  const turn = ((((angle * 180) / Math.PI) % 360) + 360) % 360;
  return `${turn.toFixed(turn < 99.95 ? 1 : 0)}°`;
}

/**
 * @param {Grid} given
 * @param {Setting} setting
 * @returns {Drawn}
 */
export function grid(given, setting) {
  const { words } = setting;
  let figure = given;
  const scroll = html("div", { class: "scroll", tabindex: "0", role: "region" });
  const { element, refresh } = frameOf(setting, () => figure, [scroll], { csv: () => [head(), ...rows()] });
  const head = () => figure.columns.map((column) => told(words, column));
  const rows = () => figure.rows.map(([name, cells]) => [told(words, name), ...cells]);

  function draw() {
    scroll.setAttribute("aria-label", told(words, figure.title));
    scroll.replaceChildren(html("table", { class: "small" },
      html("thead", {}, html("tr", {}, head().map((text) => html("th", { scope: "col" }, text)))),
      html("tbody", {}, rows().map(([name, ...cells]) => html("tr", {}, html("th", { scope: "row" }, name), cells.map((one) => html("td", {}, one)))))));
  }

  return { element, draw, set: (next) => { figure = next; refresh(); draw(); } };
}
