/** A line chart: mean lines, seed bands, direct labels, stops, a crosshair for pointer and keyboard. */

import { html, svg } from "./dom.js";
import { placeNote, spread } from "./labels.js";
import { decimalTicks, logTicks, niceTicks, outlierLimit, roomAround, startLimit } from "./scales.js";
import { DASHES, isHollow, markerPath } from "./styles.js";

/** @typedef {import("./data.js").Point} Point */
/**
 * @typedef {object} ChartSeries
 * @property {string} id
 * @property {string} [name] shown for it; else its id
 * @property {import("./styles.js").Style} style
 * @property {boolean} [steps] flat from each point to the next
 * @property {Point[]} points
 * @property {Point[]} [dots] drawn as small marks beside the line
 * @property {string | null} stop why the line ends early
 */
/**
 * @typedef {object} ChartSpec
 * @property {string} label what the chart is, for screen readers
 * @property {{ label: string, ticks: number[] | null, log: boolean, format: (x: number) => string }} x ticks null: chosen here
 * @property {{ label: string, domain: [number, number] | null, format: (y: number) => string, clip: "outliers" | "start" | null, log?: boolean }} y
 * @property {ChartSeries[]} series those to draw
 * @property {boolean} markers
 * @property {boolean} endValues whether the last value stands beside the name
 * @property {{ x: number, label: string }[]} marks vertical lines
 * @property {(y: number) => string} value a value beside a name; axis numbers use y.format
 * @property {(series: ChartSeries, point: Point) => string} readout
 * @property {(x: number) => string} heading
 * @property {string} hint how to read values
 * @property {boolean} [quiet] without saying so below the figure
 * @property {string} empty
 */
/** @typedef {{ limit: number, highest: Point, id: string, count: number } | null} Clipped */

const GAP = 17; // between the middles of two labels
const NARROW = 360; // pixels
const CROWDED = 2000; // points of a line, from which some share their pixels
const NEVER = /** @type {Clipped} */ (null);

/**
 * @param {() => ChartSpec} describe
 * @param {(clipped: Clipped) => void} onClip called after each drawing with what was cut off
 * @returns {{ element: HTMLElement, draw: () => void }}
 */
export function lineChart(describe, onClip) {
  const canvas = svg("svg", { "aria-hidden": "true" });
  const tip = html("div", { class: "tip", hidden: true });
  const plot = html("div", { class: "plot", tabindex: "0", role: "application" }, canvas, tip);
  const line = html("p", { class: "readout", "aria-live": "polite" });
  const element = html("div", { class: "chart" }, plot, line);
  /** @type {ReturnType<typeof layout> | null} */
  let now = null;
  /** @type {{ id: string, x: number } | null} */
  let focus = null;

  function draw() {
    const spec = describe();
    plot.setAttribute("aria-label", `${spec.label}. ${spec.hint}`);
    canvas.replaceChildren();
    tip.hidden = true;
    now = null;
    focus = null;
    line.textContent = spec.quiet ? "" : spec.hint;
    line.classList.add("idle");
    const drawn = spec.series.filter((series) => series.points.length);
    const width = plot.clientWidth;
    if (!width) return;
    if (!drawn.length) {
      line.textContent = "";
      canvas.setAttribute("viewBox", `0 0 ${width} 120`);
      canvas.setAttribute("height", "120");
      canvas.append(svg("text", { class: "empty", x: width / 2, y: 64, "text-anchor": "middle" }, spec.empty));
      onClip(NEVER);
      return;
    }
    now = layout(spec, drawn, width, plot);
    paint(canvas, now);
    onClip(now.clipped);
  }

  function show() {
    for (const group of canvas.querySelectorAll("[data-series]")) {
      group.classList.toggle("dim", focus !== null && group.getAttribute("data-series") !== focus.id);
      group.classList.toggle("chosen", group.getAttribute("data-series") === focus?.id);
    }
    const cross = canvas.querySelector(".cross");
    if (!now || !focus || !cross) {
      cross?.setAttribute("visibility", "hidden");
      tip.hidden = true;
      return;
    }
    const { spec, x, y, frame, drawn } = now;
    const at = focus.x;
    const column = drawn
      .flatMap((series) => {
        const point = series.points.find((one) => one.x === at);
        return point ? [{ series, point }] : [];
      })
      .sort((a, b) => b.point.mean - a.point.mean);
    const chosen = column.find(({ series }) => series.id === focus?.id);
    if (!chosen) return;
    cross.replaceChildren(
      svg("line", { x1: x(at), x2: x(at), y1: frame.y, y2: frame.y + frame.height }),
      svg("circle", { class: `hue-${chosen.series.style.hue}`, cx: x(at), cy: y(chosen.point.mean), r: 6.5 }),
    );
    cross.setAttribute("visibility", "visible");
    line.textContent = spec.readout(chosen.series, chosen.point);
    line.classList.remove("idle");
    tip.replaceChildren(
      html("div", { class: "tip-head" }, spec.heading(at)),
      ...column.map(({ series, point }) =>
        html(
          "div",
          { class: series.id === focus?.id ? "tip-row chosen" : "tip-row" },
          swatch(series.style),
          html("span", { class: "tip-name" }, nameOf(series)),
          html("span", { class: "tip-value" }, spec.value(point.mean)),
        ),
      ),
    );
    tip.hidden = false;
    const right = x(at) + 16 + tip.offsetWidth < now.width;
    tip.style.left = `${right ? x(at) + 14 : Math.max(0, x(at) - 14 - tip.offsetWidth)}px`;
    tip.style.top = `${Math.max(0, Math.min(frame.y + 4, frame.y + frame.height - tip.offsetHeight))}px`;
  }

  function clear() {
    focus = null;
    show();
    const { hint, quiet } = describe();
    line.textContent = quiet ? "" : hint;
    line.classList.add("idle");
  }

  plot.addEventListener("pointermove", (event) => {
    if (!now) return;
    const box = canvas.getBoundingClientRect();
    const px = event.clientX - box.left;
    const py = event.clientY - box.top;
    const { x, y, drawn } = now;
    const near = drawn.map((/** @type {ChartSeries} */ series) => ({ series, point: closest(series.points, (point) => x(point.x), px) }));
    const column = nearest(near, ({ point }) => Math.abs(x(point.x) - px));
    const chosen = nearest(
      near.filter(({ point }) => point.x === column.point.x),
      ({ point }) => Math.abs(y(point.mean) - py),
    );
    focus = { id: chosen.series.id, x: chosen.point.x };
    show();
  });
  plot.addEventListener("pointerleave", clear);
  plot.addEventListener("blur", clear);
  plot.addEventListener("keydown", (event) => {
    if (!now) return;
    if (event.key === "Escape") return clear();
    /** @type {Record<string, [number, number]>} */
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1], Home: [-1e9, 0], End: [1e9, 0] };
    const move = moves[event.key];
    if (!move) return;
    event.preventDefault();
    focus = step(now, focus, move);
    show();
  });
  return { element, draw };
}

/**
 * The colour, dash and marker of a method, as a small picture.
 * @param {import("./styles.js").Style} style
 * @returns {SVGElement}
 */
export function swatch({ hue, dash }) {
  return svg(
    "svg",
    { class: `swatch hue-${hue}`, width: 34, height: 12, viewBox: "0 0 34 12", "aria-hidden": "true" },
    svg("line", { class: "line", x1: 1, x2: 33, y1: 6, y2: 6, "stroke-dasharray": DASHES[dash] }),
    svg("path", { class: isHollow(dash) ? "marker hollow" : "marker", d: markerPath(dash, 17, 6, 3.6) }),
  );
}

const nameOf = (/** @type {ChartSeries} */ series) => series.name ?? series.id;

/** Where everything goes, in pixels. */
function layout(spec, drawn, width, host) {
  const font = getComputedStyle(host).fontFamily;
  const context = document.createElement("canvas").getContext("2d");
  const measure = (/** @type {string} */ text, weight = "400", size = 13) => {
    if (!context) return text.length * 7;
    context.font = `${weight} ${size}px ${font}`;
    return context.measureText(text).width;
  };
  const xs = [...new Set(drawn.flatMap((series) => series.points.map((point) => point.x)))];
  const whole = xs.every(Number.isInteger); // between layers 1 and 2 there is none
  const ticksX = spec.x.ticks ?? (spec.x.log ? logTicks(xs, width < 560 ? 5 : 9) : niceTicks(Math.min(0, ...xs), Math.max(...xs), width < 560 ? 4 : 7).filter((tick) => !whole || Number.isInteger(tick)));
  const [least, most] = [Math.min(...xs, ...(spec.x.log && !spec.x.ticks ? [] : ticksX)), Math.max(...xs, ...(spec.x.ticks ?? []))];
  const end = Math.max(...xs);

  // Vertical range: what the bands need, unless a few values would flatten all others.
  const means = drawn.flatMap((series) => series.points.map((point) => point.mean)).sort((a, b) => a - b);
  const every = drawn.flatMap((series) => [...series.points, ...(series.dots ?? [])]);
  let [low, high] = spec.y.domain ?? [
    every.reduce((least, point) => Math.min(least, point.low, point.mean), Infinity),
    every.reduce((most, point) => Math.max(most, point.high, point.mean), -Infinity),
  ];
  const limit = spec.y.domain ? null : spec.y.clip === "outliers" ? outlierLimit(means) : spec.y.clip === "start" ? startLimit(means) : null;
  if (limit !== null) high = limit;
  const over = drawn
    .flatMap((series) => series.points.map((point) => ({ id: series.id, point })))
    .filter(({ point }) => limit !== null && point.mean > limit);
  const highest = over.sort((a, b) => b.point.mean - a.point.mean)[0];
  /** @type {Clipped} */
  const clipped = highest ? { limit: high, highest: highest.point, id: highest.id, count: over.length } : null;
  if (!spec.y.domain) {
    const [from, to] = roomAround(low, high, Boolean(spec.y.log));
    low = from;
    if (!clipped) high = to;
  }

  // the only line of a narrow figure is named above it
  const ending = drawn.length === 1 && width < NARROW ? [] : drawn.filter((series) => series.points[series.points.length - 1].x === end && !series.stop);
  const valueAt = (series) => {
    const { mean } = series.points[series.points.length - 1];
    return spec.endValues ? spec.value(mean) + (limit !== null && mean > limit ? " ▲" : "") : "";
  };
  const room = Math.min(width * 0.42, 240);
  const names = ending.map((series) => shorten(nameOf(series), room - 24 - measure(` ${valueAt(series)}`), measure));
  const widest = Math.max(0, ...ending.map((series, i) => measure(names[i], "600") + measure(` ${valueAt(series)}`)));
  const ticksY = (spec.y.log ? decimalTicks(low, high, 8) : niceTicks(low, high, 5)).filter((tick) => tick >= low && tick <= high);
  const left = Math.max(...ticksY.map((tick) => measure(spec.y.format(tick), "400", 12)), 18) + 14;
  const right = ending.length ? widest + 34 : 22;
  const top = spec.marks.length ? 46 : 30;
  const bottom = 46;
  const tall = Math.max(Math.min(width * 0.5, 400), 270, ending.length * GAP + 8);
  const frame = { x: left, y: top, width: Math.max(60, width - left - right), height: tall };
  const height = top + tall + bottom;

  const inset = 10;
  const straight = (/** @type {number} */ value) => value;
  // On a logarithmic axis 0 is drawn one doubling before the smallest other x.
  const start = Math.min(...xs.filter((value) => value > 0)) / 2;
  const warp = spec.x.log ? (/** @type {number} */ value) => Math.log2(value > 0 ? value : start) : straight;
  const warpY = spec.y.log ? (/** @type {number} */ value) => Math.log(Math.max(value, low / 10)) : straight;
  const span = warp(most) - warp(least);
  const x = (/** @type {number} */ value) =>
    span ? frame.x + inset + ((warp(value) - warp(least)) / span) * (frame.width - 2 * inset) : frame.x + frame.width / 2;
  const y = (/** @type {number} */ value) =>
    frame.y + frame.height - ((warpY(Math.min(value, high)) - warpY(low)) / (warpY(high) - warpY(low) || 1)) * frame.height;
  const places = spread(
    ending.map((series) => y(series.points[series.points.length - 1].mean)),
    GAP,
    frame.y + 4,
    frame.y + frame.height - 4,
  );
  return { spec, drawn, ending, names, places, valueAt, x, y, low, high, warpY, ticksX, ticksY, frame, width, height, clipped, limit, measure };
}

/** Draw a layout. */
function paint(canvas, now) {
  const { spec, drawn, ending, names, places, valueAt, x, y, ticksX, ticksY, frame, width, height, limit, measure } = now;
  const floor = frame.y + frame.height;
  const over = (/** @type {Point} */ point) => limit !== null && point.mean > limit;
  canvas.setAttribute("viewBox", `0 0 ${width} ${height}`);
  canvas.setAttribute("height", String(height));
  const id = `clip-${Math.random().toString(36).slice(2)}`;
  canvas.append(
    svg("defs", {}, svg("clipPath", { id }, svg("rect", { x: frame.x - 8, y: frame.y, width: frame.width + 16, height: frame.height + 1 }))),
    svg("text", { class: "axis-title", x: 0, y: 14 }, spec.y.label),
  );

  const grid = svg("g", { class: "grid" });
  for (const tick of ticksY)
    grid.append(
      svg("line", { x1: frame.x, x2: frame.x + frame.width, y1: y(tick), y2: y(tick) }),
      svg("text", { class: "tick", x: frame.x - 8, y: y(tick) + 4, "text-anchor": "end" }, spec.y.format(tick)),
    );
  let free = -Infinity;
  const lastTick = ticksX[ticksX.length - 1];
  for (const tick of ticksX) {
    const half = measure(spec.x.format(tick), "400", 12) / 2 + 5;
    grid.append(svg("line", { class: "notch", x1: x(tick), x2: x(tick), y1: floor, y2: floor + 5 }));
    const lastHalf = measure(spec.x.format(lastTick), "400", 12) / 2 + 5;
    if (x(tick) - half < free || (tick !== lastTick && x(tick) + half > x(lastTick) - lastHalf)) continue;
    free = x(tick) + half;
    grid.append(svg("text", { class: "tick", x: x(tick), y: floor + 19, "text-anchor": "middle" }, spec.x.format(tick)));
  }
  grid.append(
    svg("line", { class: "base", x1: frame.x, x2: frame.x + frame.width, y1: floor, y2: floor }),
    svg("text", { class: "axis-title", x: frame.x + frame.width / 2, y: floor + 40, "text-anchor": "middle" }, spec.x.label),
  );
  canvas.append(grid);
  /** @type {import("./labels.js").Box[]} */
  const boxes = [];
  let written = -Infinity;
  for (const mark of [...spec.marks].sort((a, b) => a.x - b.x)) {
    const at = x(mark.x);
    const wide = measure(mark.label, "400", 12);
    const before = at + wide > frame.x + frame.width;
    canvas.append(svg("line", { class: "mark", x1: at, x2: at, y1: frame.y - 14, y2: floor }));
    if (at + (before ? -6 - wide : 6) < written) continue;
    written = at + (before ? 0 : wide + 12);
    canvas.append(svg("text", { class: "mark-label", x: at + (before ? -6 : 6), y: frame.y - 6, "text-anchor": before ? "end" : "start" }, mark.label));
  }

  const plot = svg("g", { "clip-path": `url(#${id})` });
  // Many overlapping bands must stay distinguishable.
  const bands = svg("g", { "fill-opacity": Math.min(0.18, 0.6 / drawn.length).toFixed(3) });
  const lines = svg("g");
  const marks = svg("g");
  for (const { id: name, style, points, dots, steps } of drawn) {
    const common = { "data-series": name, class: `series hue-${style.hue}` };
    if (points.some((point) => point.seeds > 1)) {
      const d = runs(points).map((all) => {
        const run = visible(all, x);
        const up = run.map((point) => `${x(point.x).toFixed(1)} ${trueY(now, point.high).toFixed(1)}`);
        const down = run.map((point) => `${x(point.x).toFixed(1)} ${trueY(now, point.low).toFixed(1)}`).reverse();
        return `M${[...up, ...down].join("L")}Z`;
      });
      bands.append(svg("g", common, svg("path", { class: "band", d: d.join("") })));
    }
    const d = runs(points).map((run) => {
      const corners = (steps ? run : visible(run, x)).map((point) => [x(point.x).toFixed(1), trueY(now, point.mean).toFixed(1)]);
      return steps ? `M${corners.map(([px, py], i) => (i ? `H${px}V${py}` : `${px} ${py}`)).join("")}` : `M${corners.map((corner) => corner.join(" ")).join("L")}`;
    });
    lines.append(svg("g", common, svg("path", { class: "line", d: d.join(""), "stroke-dasharray": DASHES[style.dash] })));
    const group = svg("g", common);
    for (const point of [...(spec.markers ? points : []), ...(dots ?? [])]) {
      if (over(point) && !spec.markers) continue;
      const [px, py] = [x(point.x), y(point.mean)];
      group.append(
        over(point)
          ? svg("path", { class: "beyond", d: `M${px - 6} ${frame.y + 11}L${px} ${frame.y + 1}L${px + 6} ${frame.y + 11}Z` })
          : svg("path", {
              class: isHollow(style.dash) || !spec.markers ? "marker hollow" : "marker",
              "data-x": point.x,
              "data-y": point.mean,
              d: markerPath(style.dash, px, py, spec.markers ? 4 : 3),
            }),
      );
    }
    marks.append(group);
  }
  plot.append(bands, lines);
  canvas.append(plot, marks);

  const labels = svg("g");
  const start = frame.x + frame.width + 26;
  ending.forEach((series, i) => {
    const point = series.points[series.points.length - 1];
    labels.append(
      svg(
        "g",
        { "data-series": series.id, class: `series hue-${series.style.hue}` },
        svg("path", { class: "leader", d: `M${x(point.x) + 7} ${y(point.mean)}L${start - 14} ${places[i]}H${start - 5}` }),
        svg("text", { class: "end-label", x: start, y: places[i] + 4.5 },
          svg("tspan", { class: "end-name" }, names[i]), svg("tspan", { class: "end-value", dx: 6 }, valueAt(series)),
          svg("title", {}, nameOf(series))),
      ),
    );
  });
  const obstacles = drawn.some((/** @type {ChartSeries} */ one) => one.stop) ? sampled(now) : [];
  for (const series of drawn.filter((one) => one.stop)) {
    const point = series.points[series.points.length - 1];
    const anchor = { x: x(point.x), y: y(point.mean) };
    const name = shorten(nameOf(series), frame.width * 0.5, measure);
    const text = ` ${series.stop}`;
    const size = { width: measure(name, "600", 12.5) + measure(text, "400", 12.5) + 6, height: 17 };
    const box = placeNote(anchor, size, { ...frame, width: Math.max(frame.width, size.width) }, obstacles, boxes);
    boxes.push(box);
    const toX = Math.max(box.x, Math.min(anchor.x, box.x + box.width));
    const toY = box.y > anchor.y ? box.y + 2 : box.y + box.height - 2;
    labels.append(
      svg(
        "g",
        { "data-series": series.id, class: `series hue-${series.style.hue}` },
        Math.hypot(toX - anchor.x, toY - anchor.y) > 14 && svg("line", { class: "leader", x1: anchor.x, y1: anchor.y, x2: toX, y2: toY }),
        svg("path", { class: "stop", d: `M${anchor.x - 6} ${anchor.y - 6}l12 12m0 -12l-12 12` }),
        svg("text", { class: "note", x: box.x + 3, y: box.y + 13 }, svg("tspan", { class: "end-name" }, name), text),
      ),
    );
  }
  canvas.append(labels, svg("g", { class: "cross", visibility: "hidden" }));
}

/** A value above the limit continues its line out of the frame, where the clip path cuts it. */
function trueY({ frame, low, high, warpY }, value) {
  const far = Math.min(value, low + (high - low) * 50);
  return frame.y + frame.height - ((warpY(far) - warpY(low)) / (warpY(high) - warpY(low) || 1)) * frame.height;
}

/** A line's points, divided where numbers are missing. @param {(Point & { gap?: boolean })[]} points */
function runs(points) {
  /** @type {Point[][]} */
  const found = [];
  for (const point of points) {
    if (!found.length || point.gap) found.push([]);
    found[found.length - 1].push(point);
  }
  return found;
}

/**
 * Of several points in one column of pixels the first, lowest, highest and last: the line covers the same pixels.
 * @param {Point[]} run @param {(value: number) => number} x
 */
function visible(run, x) {
  if (run.length <= CROWDED) return run;
  /** @type {Point[]} */
  const found = [];
  for (let start = 0; start < run.length; ) {
    const column = Math.round(2 * x(run[start].x));
    let [end, low, high] = [start, start, start];
    for (; end < run.length && Math.round(2 * x(run[end].x)) === column; end += 1) {
      if (run[end].mean < run[low].mean) low = end;
      if (run[end].mean > run[high].mean) high = end;
    }
    for (const at of new Set([start, Math.min(low, high), Math.max(low, high), end - 1])) found.push(run[at]);
    start = end;
  }
  return found;
}

/** Points along every line, for notes to avoid. */
function sampled({ drawn, x, y }) {
  return drawn.flatMap(({ points }) =>
    points.flatMap((point, i) => {
      const here = { x: x(point.x), y: y(point.mean) };
      const next = points[i + 1];
      if (!next) return [here];
      const there = { x: x(next.x), y: y(next.mean) };
      const count = Math.max(1, Math.ceil(Math.hypot(there.x - here.x, there.y - here.y) / 8));
      return Array.from({ length: count }, (_, k) => ({
        x: here.x + ((there.x - here.x) * k) / count,
        y: here.y + ((there.y - here.y) * k) / count,
      }));
    }),
  );
}

/** Move the readout along a line, or to the line above or below. */
function step({ drawn }, focus, [across, down]) {
  const current = drawn.find((series) => series.id === focus?.id);
  if (!focus || !current) return { id: drawn[0].id, x: drawn[0].points[0].x };
  if (across) {
    const at = current.points.findIndex((point) => point.x === focus.x);
    const stride = Math.sign(across) * Math.max(Math.abs(across) > 1 ? 1e9 : 1, Math.round(current.points.length / 40));
    const next = current.points[Math.max(0, Math.min(current.points.length - 1, at + stride))];
    return { id: focus.id, x: next.x };
  }
  const column = drawn
    .flatMap((series) => series.points.filter((point) => point.x === focus.x).map((point) => ({ id: series.id, mean: point.mean })))
    .sort((a, b) => b.mean - a.mean);
  const rank = column.findIndex(({ id }) => id === focus.id) + down;
  return { id: column[Math.max(0, Math.min(column.length - 1, rank))].id, x: focus.x };
}

/** The nearest of points in ascending order. @param {Point[]} points @param {(point: Point) => number} place @param {number} at */
function closest(points, place, at) {
  let [from, to] = [0, points.length - 1];
  while (to - from > 1) {
    const middle = (from + to) >> 1;
    if (place(points[middle]) < at) from = middle;
    else to = middle;
  }
  return Math.abs(place(points[from]) - at) <= Math.abs(place(points[to]) - at) ? points[from] : points[to];
}

/** @template T @param {T[]} items @param {(item: T) => number} distance @returns {T} */
function nearest(items, distance) {
  return items.reduce((best, item) => (distance(item) < distance(best) ? item : best));
}

/** @param {string} text @param {number} room @param {(text: string, weight?: string, size?: number) => number} measure */
function shorten(text, room, measure) {
  if (measure(text, "600") <= room) return text;
  let kept = text;
  while (kept.length > 3 && measure(`${kept}…`, "600") > room) kept = kept.slice(0, -1);
  return `${kept}…`;
}
