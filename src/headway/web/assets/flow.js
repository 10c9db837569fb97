/** The stages of a head with the numbers of one query: played, paused, moved through. */

import { exact, numbersOf, spoken } from "./blocks.js";
import { colourIndex, colourTable, isDark } from "./colours.js";
import { html, svg } from "./dom.js";
import { opens, steps } from "./many.js";
import { keptOf, told } from "./parts.js";
import { valueTip } from "./tip.js";

/** @typedef {import("./parts.js").Said} Said */
/** @typedef {import("./parts.js").Setting} Setting */
/** @typedef {{ label: Said, stage: number, column: number, values: import("./blocks.js").Block, width: number, scale: string, opens: string, hides: boolean }} Track */
/** @typedef {{ kind: "flow", title: Said, stages: import("./many.js").Stage[], rows: [string, Said][], tokens: number[], masked: number[], tracks: Track[], ends: Track[] }} Flow */
/** @typedef {{ track: Track, row: number, values: number[], node: HTMLElement, later: boolean }} Spot */

const PAUSE = 1600; // milliseconds from stage to stage
export const still = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

/**
 * @param {Flow} given
 * @param {Setting} setting
 * @param {import("./many.js").Make} make
 * @returns {import("./parts.js").Drawn}
 */
export function flow(given, setting, make) {
  const { words } = setting;
  let figure = given;
  let at = Number(keptOf(given).stage ?? figure.stages.length - 1);
  let playing = 0;
  /** @type {Spot[]} */
  let spots = [];
  /** @type {{ spot: Spot, entry: number } | null} */
  let focus = null;

  const range = /** @type {HTMLInputElement} */ (html("input", { type: "range", min: "0", step: "1", "aria-label": words.say("flow.stage"), oninput: () => { const index = Number(range.value); stop(); strip.show(index); } }));
  const button = html("button", { type: "button", class: "save play", onclick: () => (playing ? stop() : play()) });
  const label = html("output", { class: "film-label" });
  const area = html("div", { class: "flow-cells" });
  const ends = html("div", { class: "flow-ends" });
  const arrows = svg("svg", { class: "flow-arrows", "aria-hidden": "true" });
  const plot = html("div", { class: "flow", tabindex: "0", role: "application" }, area, ends, arrows);
  const line = html("p", { class: "readout idle", "aria-live": "polite" });
  const tip = valueTip(plot);
  const strip = steps(given, setting, make, { above: html("div", { class: "film" }, button, range, label), below: html("div", {}, plot, line), first: at, shown: (index) => go(index), sheets: { table: () => sheet(spoken), csv: () => { const { head, rows } = sheet(exact); return [head, ...rows]; } } });
  strip.element.classList.add("flow-figure");

  /** @param {number} index */
  function go(index) {
    at = index;
    name();
    mark();
    rest();
  }

  function name() {
    const text = `${at + 1} / ${figure.stages.length} · ${told(words, figure.stages[at].label).replace(/^· /, "")}`;
    range.max = String(figure.stages.length - 1);
    range.value = String(at);
    range.setAttribute("aria-valuetext", text);
    label.textContent = text;
    button.textContent = words.say(playing ? "flow.pause" : still() ? "flow.next" : "flow.play");
  }

  /** Stage after stage; one only where nothing should move. */
  function play() {
    const last = figure.stages.length - 1;
    const next = () => strip.show(at === last ? 0 : at + 1);
    if (still()) return next();
    const tick = () => {
      if (!strip.element.isConnected || at >= last) return stop();
      playing = window.setTimeout(tick, PAUSE);
      next();
    };
    playing = window.setTimeout(tick, PAUSE);
    next();
  }

  function stop() {
    window.clearTimeout(playing);
    playing = 0;
    name();
  }

  const dark = () => isDark(plot);
  const limitOf = (/** @type {string} */ scale) => [...figure.tracks, ...figure.ends].filter((one) => one.scale === scale).reduce((most, one) => numbersOf(one.values).reduce((top, value) => (Math.abs(value) > top ? Math.abs(value) : top), most), 0) || 1;
  const columnsOf = () => [...new Set(figure.tracks.map(({ column }) => column))].map((column) => figure.tracks.filter((one) => one.column === column));
  const wide = (/** @type {Track} */ track) => track.values.shape[1] > 1;

  function build() {
    spots = [];
    const limits = new Map([...figure.tracks, ...figure.ends].map(({ scale }) => [scale, limitOf(scale)]));
    const signed = new Set([...figure.tracks].filter((one) => numbersOf(one.values).some((value) => value < 0)).map(({ scale }) => scale));
    const table = colourTable("diverging", dark());
    const colour = (/** @type {number} */ value, /** @type {number} */ limit) => `rgb(${table.slice(3 * colourIndex(value, -limit, limit), 3 * colourIndex(value, -limit, limit) + 3).join(" ")})`;

    /** @param {Track} track @param {number} row @param {number[]} values */
    function cell(track, row, values) {
      const limit = limits.get(track.scale) ?? 1;
      const node = html("div", { class: "flow-cell", "data-spot": String(spots.length) });
      node.style.setProperty("--row", String(row));
      if (wide(track)) {
        const strip_ = html("i", { class: "vector" });
        strip_.style.background = `linear-gradient(90deg, ${values.map((value, i) => `${colour(value, limit)} ${((100 * i) / values.length).toFixed(2)}% ${((100 * (i + 1)) / values.length).toFixed(2)}%`).join(", ")})`;
        node.append(strip_);
      } else {
        const [value] = values;
        const bar = html("i", { class: `bar-thin hue-${value < 0 ? 1 : 0}` });
        const share = Math.abs(value) / limit;
        Object.assign(bar.style, signed.has(track.scale) ? { width: `${50 * share}%`, left: value < 0 ? `${50 - 50 * share}%` : "50%" } : { width: `${100 * share}%`, left: "0" });
        node.append(html("span", {}, spoken(value)), html("span", { class: "bar-track" }, bar));
      }
      if (track.hides && figure.masked.includes(row)) node.classList.add("masked");
      spots.push({ track, row, values, node, later: false });
      return node;
    }

    const columns = columnsOf();
    area.style.gridTemplateColumns = `minmax(5.2rem, 1.1fr) ${columns.map(([one]) => (wide(one) ? "minmax(0, 1.35fr)" : "minmax(0, 0.8fr)")).join(" ")}`;
    const heads = columns.map((tracks) => html("div", { class: "flow-head" }, tracks.map((one) => told(words, one.label)).join(", "), wide(tracks[0]) && tracks[0].width > tracks[0].values.shape[1] && html("small", {}, ` ${tracks[0].values.shape[1]}/${tracks[0].width}`)));
    const rows = figure.rows.map(([kind, said], row) => [html("div", { class: `flow-name flow-${kind}` }, told(words, said)), ...columns.map((tracks) => {
      for (const track of tracks) {
        const width = track.values.shape[1];
        const values = Array.from(numbersOf(track.values).slice(row * width, (row + 1) * width));
        if (!Number.isNaN(values[0])) return cell(track, row, values);
      }
      return html("div", { class: "flow-none" });
    })]);
    area.replaceChildren(html("div"), ...heads, ...rows.flat());
    ends.replaceChildren(...figure.ends.flatMap((track, i) => [i === figure.ends.length - 1 ? html("span", { class: "sign" }, "=") : "", html("div", { class: "flow-end" }, html("span", { class: "flow-head" }, told(words, track.label)), cell(track, figure.rows.length, Array.from(numbersOf(track.values))))]));
    mark();
  }

  /** What is computed by the stage that is shown, what is not yet, and the arrows to the former. */
  function mark() {
    for (const spot of spots) {
      spot.later = spot.track.stage > at;
      spot.node.classList.toggle("later", spot.later);
      spot.node.classList.toggle("now", spot.track.stage === at);
    }
    ends.classList.toggle("later", at < figure.stages.length - 1);
    const origin = plot.getBoundingClientRect();
    arrows.setAttribute("viewBox", `0 0 ${origin.width} ${origin.height}`);
    const box = (/** @type {Spot} */ { node }) => {
      const { left, right, top, bottom } = node.getBoundingClientRect();
      return { left: left - origin.left, right: right - origin.left, top: top - origin.top, bottom: bottom - origin.top };
    };
    const middle = (/** @type {{ top: number, bottom: number }} */ { top, bottom }) => (top + bottom) / 2;
    /** @type {string[]} */
    const paths = [];
    const across = (/** @type {Spot} */ from, /** @type {Spot} */ to) => {
      const [a, b] = [box(from), box(to)];
      const [x, y, bend] = [a.right, middle(a), (b.left - a.right) / 2];
      paths.push(`M${x} ${y}C${x + bend} ${y} ${b.left - bend} ${middle(b)} ${b.left - 2} ${middle(b)}`);
    };
    for (const spot of spots) {
      const [kind] = figure.rows[spot.row] ?? [""];
      if (spot.track.stage !== at || !origin.width || spot.row >= figure.rows.length) continue;
      const before = spots.filter((one) => !one.later && one.track.column < spot.track.column && one.track.stage < at);
      const beside = before.filter((one) => one.row === spot.row).pop();
      if (kind === "sum") {
        const [x, to] = [(box(spot).left + box(spot).right) / 2, box(spot)];
        paths.push(`M${x} ${to.top - 8}V${to.top - 1}`);
      } else if (beside) across(beside, spot);
      const query = before.filter((one) => figure.rows[one.row]?.[0] === "query" && one.track.column === beside?.track.column).pop();
      if (query && spot.row > 0 && !wide(spot.track)) across(query, spot); // a product of the query and a key
    }
    arrows.replaceChildren(svg("defs", {}, svg("marker", { id: "flow-tip", viewBox: "0 0 6 6", refX: 5, refY: 3, markerWidth: 5, markerHeight: 5, orient: "auto" }, svg("path", { d: "M0 0L6 3L0 6Z" }))), ...paths.map((d) => svg("path", { d, pathLength: 1, "marker-end": "url(#flow-tip)" })));
  }

  function rest() {
    focus?.spot.node.classList.remove("chosen");
    focus = null;
    line.textContent = words.say("flow.hint");
    line.classList.add("idle");
    tip.hide();
  }

  const rowName = (/** @type {Spot} */ { row }) => told(words, figure.rows[row]?.[1] ?? figure.title);

  /** @param {Spot} spot @param {number} entry */
  function look(spot, entry) {
    focus?.spot.node.classList.remove("chosen");
    focus = { spot, entry: Math.max(0, Math.min(spot.values.length - 1, entry)) };
    spot.node.classList.add("chosen");
    const masked = spot.node.classList.contains("masked") ? ` (${words.say("flow.masked")})` : "";
    const value = spot.later ? words.say("flow.later") : spoken(spot.values[focus.entry]) + masked;
    line.textContent = words.say(spot.values.length > 1 ? "flow.entry" : "flow.number", { row: rowName(spot), name: told(words, spot.track.label).replace(/^\+ /, ""), i: focus.entry, value });
    line.classList.remove("idle");
    const [outer, inner] = [plot, spot.node].map((one) => one.getBoundingClientRect());
    tip.show({ x: inner.left - outer.left, y: inner.top - outer.top, width: inner.width, height: inner.height }, line.textContent ?? "");
  }

  function enter() {
    if (!focus?.spot.track.opens) return;
    const { spot, entry } = focus;
    const [view, matrix] = spot.track.opens.split(":");
    const token = figure.tokens[spot.row] ?? -1;
    const query = view === "projection" && token >= 0 ? { query: token, column: entry } : {};
    const options = matrix ? { options: { matrix } } : view === "split" && token >= 0 ? { options: { key: token } } : {};
    opens(plot, { view, ...query, ...options });
  }

  /** @param {PointerEvent | MouseEvent} event */
  function pointed(event) {
    const node = /** @type {Element} */ (event.target).closest("[data-spot]");
    const spot = node && spots[Number(node.getAttribute("data-spot"))];
    if (!spot) return;
    const { left, width } = spot.node.getBoundingClientRect();
    look(spot, Math.floor(((event.clientX - left) / width) * spot.values.length));
  }

  for (const kind of ["pointermove", "pointerdown"]) plot.addEventListener(kind, (event) => pointed(/** @type {PointerEvent} */ (event)));
  plot.addEventListener("click", enter);
  plot.addEventListener("pointerleave", rest);
  plot.addEventListener("blur", rest);
  plot.addEventListener("keydown", (event) => {
    if (event.key === "Escape") return rest();
    if (event.key === "Enter") return enter();
    const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0], PageUp: [0, 0], PageDown: [0, 0], Home: [0, -Infinity], End: [0, Infinity] };
    const move = moves[/** @type {"Home"} */ (event.key)];
    if (!move || event.altKey || event.metaKey || event.ctrlKey) return;
    event.preventDefault();
    if (!focus) return look(spots[0], 0);
    const { spot, entry } = focus;
    if (event.key.startsWith("Page")) return look(spot, entry + (event.key === "PageUp" ? -1 : 1));
    const same = spots.filter((one) => (move[0] ? one.track.column === spot.track.column || one.row === figure.rows.length : one.row === spot.row));
    const next = same[Math.max(0, Math.min(same.length - 1, same.indexOf(spot) + (move[0] || move[1])))];
    look(next, entry);
  });

  /** Every number that is shown: a row for each vector or number. @param {(value: number) => unknown} write */
  function sheet(write) {
    const most = Math.max(...figure.tracks.map((one) => one.values.shape[1]));
    const name = (/** @type {Spot} */ spot) => [told(words, spot.track.label), rowName(spot)].join(" · ");
    return { head: ["", ...Array.from({ length: most }, (_, i) => String(i))], rows: spots.map((spot) => [name(spot), ...spot.values.map(write)]) };
  }

  function draw() {
    build();
    plot.setAttribute("aria-label", `${told(words, figure.title)}. ${words.say("flow.hint")}`);
    strip.draw();
  }

  /** @param {Flow} next */
  function set(next) {
    const whole = at === figure.stages.length - 1;
    stop();
    figure = next;
    at = whole ? next.stages.length - 1 : Math.min(at, next.stages.length - 1);
    strip.set(next);
    strip.show(at);
    draw();
  }

  go(at);
  return { element: strip.element, draw, set };
}
