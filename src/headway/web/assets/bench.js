/** The page of a benchmark: the cost of each method as bars relative to plain attention, and every value in a table. */

import { lineChart, swatch } from "./chart.js";
import { csvText, finite } from "./data.js";
import { download, html, prose } from "./dom.js";
import { dated, foot, head, howItWasRun, mount } from "./frame.js";
import { methodStyles } from "./styles.js";
import { byteSize, grouped, threeDigits } from "./words.js";

/**
 * @typedef {object} Row
 * @property {string} method
 * @property {string} contender
 * @property {number} length
 * @property {string} mode
 * @property {string} mask
 * @property {"ok" | "unsupported" | "out of memory" | "failed" | "left out"} status
 * @property {string | null} reason
 * @property {number | null} seconds
 * @property {number | null} ratio
 * @property {number | null} low
 * @property {number | null} high
 * @property {number | null} floor
 * @property {number} rounds
 * @property {number | null} gflops
 * @property {number | null} peak_bytes
 * @property {number | null} memory_ratio
 * @property {number | null} error
 * @property {number | null} error_ratio
 * @property {boolean | null} repeats
 * @property {number} head_dim
 * @property {string} dtype
 */
/** @typedef {{ name: string, bar: string, measured: number | null, floor: number | null, met_by: "bar" | "floor" | null, passed: boolean, reason: string | null }} Bar */
/**
 * @typedef {object} Payload
 * @property {{ rows: Row[], bars: Bar[], checked?: { of: number, exact: number }, settings: Record<string, any>, environment: Record<string, any>, complete: boolean, created?: string, command?: string | null }} results
 * @property {Record<string, Record<string, string>>} strings
 * @property {string} plain the contender that all others are divided by
 */

/** @type {(keyof Row)[]} */
const COLUMNS = [
  "method", "contender", "length", "mode", "mask", "status", "seconds", "ratio", "low", "high", "floor", "rounds",
  "gflops", "peak_bytes", "memory_ratio", "error", "error_ratio", "repeats", "head_dim", "dtype", "reason",
];

/**
 * @param {HTMLElement} element emptied and filled
 * @param {Payload} payload
 * @returns {() => void} takes the page out again
 */
export function render(element, payload) {
  const { results } = payload;
  const { rows, bars, environment } = results;
  const methods = [...new Set(rows.map(({ method }) => method))];
  const styles = methodStyles(methods.map((spec) => ({ spec, name: spec.split("(")[0] })));
  const shapes = new Set(rows.map(({ head_dim, dtype }) => `${head_dim}/${dtype}`));
  const keyOf = (/** @type {Row} */ { mode, mask, head_dim, dtype }) => [mode, mask, ...(shapes.size > 1 ? [head_dim, dtype] : [])].join("/");
  // what was only checked against float64 has no figure
  const timed = rows.filter((row) => row.contender === payload.plain && row.ratio !== null);
  const drawn = timed.length ? rows.filter((row) => timed.some((one) => one.length === row.length && keyOf(one) === keyOf(row))) : rows;
  const kinds = [...new Set(drawn.map(keyOf))];
  const leftOut = rows.filter(({ status }) => status === "left out").length;
  let chosen = kinds[0];
  /** @type {import("./words.js").Words} */
  let words;
  /** @type {(() => void)[]} */
  let updates = [];

  const isOurs = (/** @type {Row} */ row) => row.contender.startsWith("headway");
  const isPlain = (/** @type {Row} */ row) => row.contender === payload.plain;
  const times = (/** @type {number} */ value) => `${grouped(value, value < 9.995 ? 2 : 1)} ×`;
  const kindName = (/** @type {Row} */ { mode, mask, head_dim, dtype }) =>
    [
      words.say(`bench.mode.${mode}`),
      ...(mode.startsWith("decode") ? [] : [words.say(`bench.mask.${mask}`)]),
      ...(shapes.size > 1 ? [words.say("bench.width", { n: head_dim }), dtype] : []),
    ].join(" · ");
  const why = (/** @type {Row} */ { status, reason }) => `${words.say(`bench.status.${status}`)}${reason ? words.say("join.colon") + reason : ""}`;
  const milliseconds = (/** @type {number | null} */ seconds) => (seconds === null ? "–" : threeDigits(1e3 * seconds));

  /** @param {import("./frame.js").Shell} shell */
  function content(shell) {
    ({ words, updates } = shell);
    const threads = () => words.say("bench.threads", { n: environment.threads ?? "?", capability: environment.cpu_capability ?? "" });
    const machine = environment.device ?? [environment.processor, threads()].filter(Boolean).join(" · ");
    const facts = [
      machine,
      results.settings.dtype,
      environment.torch && `torch ${environment.torch}`,
      finite(environment.matmul_gflops) !== null && words.say("bench.matmul", { n: grouped(environment.matmul_gflops, 0) }),
      results.created && dated(words, results.created),
    ];
    return [
      head(shell, words.say("bench.brand"), words.say("bench.title"), facts),
      html("section", { class: "findings" },
        html("h2", {}, words.say("bench.read.title")),
        !results.complete && html("div", { class: "warning", role: "note" }, html("p", {}, words.say("bench.interrupted"))),
        html("p", {}, prose(words.say("bench.read"))),
        results.checked && html("p", {}, words.say("bench.checked", { n: results.checked.exact, all: results.checked.of })),
        leftOut > 0 && html("p", {}, words.say("bench.left", { n: leftOut }))),
      bars.length > 0 && barTable(),
      rows.length > 0 && figure(),
      rows.length > 0 && curves(),
      rows.length > 0 && rowTable(),
      html("section", { class: "limits" }, html("h2", {}, words.say("bench.compared.title")),
        html("ul", {}, ["tax", "floor", "core", "decode", "bias", "flex", "others", "memory", "error", "flops", "terms", "machine"].map((key) => html("li", {}, prose(words.say(`bench.compared.${key}`)))))),
      howItWasRun(words, results),
      foot(words, environment.headway),
    ];
  }

  function figure() {
    const panels = html("div", { class: "panels tax" });
    const buttons = kinds.map((kind) => {
      const one = /** @type {Row} */ (drawn.find((row) => keyOf(row) === kind));
      return html("button", { type: "button", "data-kind": kind, onclick: () => { chosen = kind; updates.forEach((update) => update()); } }, kindName(one));
    });
    const draw = () => {
      buttons.forEach((button, i) => button.setAttribute("aria-pressed", String(kinds[i] === chosen)));
      const shown = drawn.filter((row) => keyOf(row) === chosen);
      const scale = logScale(shown);
      const lengths = [...new Set(shown.map(({ length }) => length))];
      panels.replaceChildren(...lengths.map((length) => panel(length, shown.filter((row) => row.length === length), scale)));
    };
    updates.push(draw);
    return html("figure", { id: "figure-tax" },
      html("div", { class: "figure-head" }, html("h2", {}, words.say("bench.figure")),
        kinds.length > 1 && html("div", { class: "choice", role: "group", "aria-label": words.say("bench.kind.label") }, buttons)),
      panels,
      html("figcaption", {}, words.say("bench.caption")),
      html("div", { class: "actions" },
        html("button", { type: "button", class: "save", "data-csv": "rows", onclick: () => download("headway-bench.csv", csvText([COLUMNS, ...rows.map((row) => COLUMNS.map((key) => row[key]))])) }, words.say("csv"))));
  }

  /** Our tax and memory against length, a line per method. */
  function curves() {
    const both = /** @type {const} */ (["ratio", "memory_ratio"]).map((key) => {
      const chart = lineChart(() => curve(key), () => {});
      updates.push(chart.draw);
      return html("div", { "data-curve": key }, html("h3", {}, words.say(`bench.curve.${key}`)), chart.element);
    });
    return html("figure", { id: "figure-lengths" },
      html("div", { class: "figure-head" }, html("h2", {}, words.say("bench.curves"))),
      html("div", { class: "panels curves" }, both),
      html("figcaption", {}, words.say("bench.curves.caption")));
  }

  function curve(key) {
    const shown = drawn.filter((row) => keyOf(row) === chosen && isOurs(row) && finite(row[key]) !== null);
    const named = [...new Set(shown.map(({ method }) => method))];
    return {
      label: words.say(`bench.curve.${key}`),
      hint: words.say("hint"),
      empty: words.say("empty"),
      x: { label: words.say("bench.curve.length"), ticks: [...new Set(shown.map(({ length }) => length))].sort((a, b) => a - b), log: true, format: words.count },
      y: { label: words.say("bench.curve.axis"), domain: null, format: (/** @type {number} */ value) => String(Number(value.toPrecision(2))), clip: null, log: true },
      series: named.map((method) => {
        /** @type {Map<number, Row>} the first of our backends at each length */
        const first = new Map();
        for (const row of shown) if (row.method === method && !first.has(row.length)) first.set(row.length, row);
        const points = [...first.values()].sort((a, b) => a.length - b.length).map((row) => {
          const mean = /** @type {number} */ (row[key]);
          return { x: row.length, mean, low: mean, high: mean, seeds: 1 };
        });
        return { id: method, style: styles.get(method), points, stop: null };
      }),
      markers: true,
      endValues: true,
      marks: [],
      value: times,
      heading: (/** @type {number} */ x) => words.say("tokens", { n: words.count(x) }),
      readout: (/** @type {{ id: string }} */ line, /** @type {{ x: number, mean: number }} */ point) =>
        words.say("bench.curve.reading", { method: line.id, n: words.count(point.x), value: times(point.mean) }),
    };
  }

  /** All contenders at one length, by method. */
  function panel(length, shown, scale) {
    const base = shown.find(isPlain);
    const others = shown.filter((row) => !isPlain(row));
    return html("div", { class: "bars", "data-length": length },
      html("h3", {}, words.say("tokens", { n: words.count(length) }),
        base && finite(base.seconds) !== null && html("small", {}, words.say("bench.base", { ms: milliseconds(base.seconds), gflops: threeDigits(/** @type {number} */ (base.gflops)), memory: byteSize(/** @type {number} */ (base.peak_bytes)) }))),
      html("ul", {},
        [...new Set(others.map(({ method }) => method))].flatMap((method) => [
          html("li", { class: "method" }, html("span", { class: "method-name" }, swatch(/** @type {any} */ (styles.get(method))), html("strong", {}, method))),
          ...others.filter((row) => row.method === method).map((row) => barRow(row, scale)),
        ]),
        html("li", { class: "ticks", "aria-hidden": "true" }, html("span", {}), html("span", { class: "axis" }, scale.ticks.map((tick) => {
          const label = html("span", {}, String(tick));
          label.style.left = `${scale.at(tick)}%`;
          return label;
        })), html("span", {}))));
  }

  function barRow(row, scale) {
    const name = html("span", { class: "bar-name", title: row.contender }, row.contender);
    const ratio = finite(row.ratio);
    if (ratio === null) return html("li", { "data-status": row.status }, name, html("span", { class: "why" }, row.status === "ok" ? words.say("bench.untimed") : why(row)));
    const [low, high] = [finite(row.low) ?? ratio, finite(row.high) ?? ratio];
    const bar = html("span", { class: isOurs(row) ? "bar" : "bar hollow" });
    const range = html("span", { class: "range" });
    const one = html("span", { class: "one" });
    const floor = finite(row.floor);
    const mark = floor !== null && html("span", { class: "floor", title: words.say("bench.floor", { value: times(floor) }) });
    const span = (/** @type {HTMLElement} */ part, /** @type {number} */ from, /** @type {number} */ to) => {
      part.style.left = `${Math.min(scale.at(from), scale.at(to))}%`;
      part.style.width = `${Math.abs(scale.at(to) - scale.at(from))}%`;
    };
    span(bar, 1, ratio);
    span(range, low, high);
    one.style.left = `${scale.at(1)}%`;
    if (mark) mark.style.left = `${scale.at(floor)}%`;
    return html("li", { class: `hue-${styles.get(row.method)?.hue}`, "data-method": row.method, "data-ratio": ratio }, name,
      html("span", { class: "track", title: words.say("bench.rounds", { low: times(low), high: times(high), n: row.rounds }) }, bar, one, mark, low < high && range),
      html("span", { class: "bar-value" }, times(ratio)));
  }

  function barTable() {
    const failed = bars.filter(({ passed }) => !passed).length;
    return html("section", { class: "results" },
      html("h2", {}, words.say("bench.bars.title")),
      html("p", { class: "quiet" }, words.say(failed ? "bench.bars.failed" : "bench.bars.passed", { n: failed, all: bars.length })),
      html("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": words.say("bench.bars.title") },
        html("table", { id: "bars", class: "wordy" },
          html("thead", {}, html("tr", {}, ["what", "bar", "measured", "floor", "outcome"].map((key) => html("th", { scope: "col" }, words.say(`bench.bars.${key}`))))),
          html("tbody", {}, bars.map((bar) => html("tr", { class: bar.passed ? null : "failed" },
            html("th", { scope: "row" }, bar.name, bar.reason && html("small", {}, bar.reason)),
            html("td", {}, bar.bar),
            html("td", {}, bar.measured === null ? "–" : threeDigits(bar.measured)),
            html("td", {}, finite(bar.floor) === null ? "–" : threeDigits(/** @type {number} */ (bar.floor))),
            html("td", {}, words.say(bar.met_by === "floor" ? "bench.bars.near" : bar.passed ? "bench.bars.pass" : "bench.bars.fail"))))))));
  }

  function rowTable() {
    const number = (/** @type {number | null} */ value, /** @type {(value: number) => string} */ write) => (finite(value) === null ? "–" : write(/** @type {number} */ (value)));
    /** @type {[string, (row: Row) => import("./dom.js").Child | import("./dom.js").Child[]][]} */
    const columns = [
      ["seconds", (row) => milliseconds(row.seconds)],
      ["ratio", (row) => [number(row.ratio, (value) => grouped(value, 2)), row.rounds > 0 && !isPlain(row) && html("small", {}, `${number(row.low, (value) => grouped(value, 2))}–${number(row.high, (value) => grouped(value, 2))}`)]],
      ["floor", (row) => number(row.floor, (value) => grouped(value, 2))],
      ["gflops", (row) => number(row.gflops, threeDigits)],
      ["peak_bytes", (row) => number(row.peak_bytes, byteSize)],
      ["memory_ratio", (row) => number(row.memory_ratio, (value) => grouped(value, 2))],
      ["error", (row) => number(row.error, (value) => value.toExponential(1))],
      ["error_ratio", (row) => number(row.error_ratio, (value) => grouped(value, 2))],
      ["repeats", (row) => (row.repeats === null ? "–" : words.say(row.repeats ? "yes" : "no"))],
    ];
    const together = (/** @type {Row} */ one, /** @type {Row | undefined} */ other) => other !== undefined && other.length === one.length && keyOf(other) === keyOf(one);
    const body = rows.map((row, i) => {
      const first = !together(row, rows[i - 1]);
      const named = !first && rows[i - 1].method === row.method;
      let high = 1; // a method's name is shown once, beside all its contenders
      while (together(row, rows[i + high]) && rows[i + high].method === row.method) high += 1;
      const cells = row.status === "ok"
        ? columns.map(([, write]) => html("td", {}, write(row)))
        : [html("td", { class: "none left", colspan: columns.length }, why(row))];
      return [
        first && html("tr", { class: "group" }, html("th", { scope: "rowgroup", colspan: columns.length + 2 }, `${words.say("tokens", { n: words.count(row.length) })} · ${kindName(row)}`)),
        html("tr", {}, !named && html("th", { scope: "rowgroup", rowspan: high }, swatch(/** @type {any} */ (styles.get(row.method))), row.method), html("td", { class: "left" }, row.contender), cells),
      ];
    });
    return html("section", { class: "results" },
      html("h2", {}, words.say("table.title")),
      html("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": words.say("table.title") },
        html("table", { id: "results", class: "wordy" },
          html("thead", {}, html("tr", {}, html("th", { scope: "col" }, words.say("table.method")), html("th", { scope: "col", class: "left" }, words.say("bench.column.contender")),
            columns.map(([key]) => html("th", { scope: "col" }, words.say(`bench.column.${key}`))))),
          html("tbody", {}, body.flat()))));
  }

  return mount(element, payload.strings, content);
}

/**
 * A logarithmic axis that contains every ratio, and 1.
 * @param {Row[]} rows
 * @returns {{ at: (ratio: number) => number, ticks: number[] }} places in percent
 */
function logScale(rows) {
  const ratios = rows.flatMap(({ ratio, low, high, floor }) => [ratio, low, high, floor].flatMap((value) => finite(value) ?? []));
  const least = Math.log(Math.min(0.7, ...ratios) * 0.9);
  const most = Math.log(Math.max(2, ...ratios) * 1.1);
  const at = (/** @type {number} */ ratio) => (100 * (Math.log(ratio) - least)) / (most - least);
  const every = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000];
  const inside = every.filter((tick) => at(tick) >= 2 && at(tick) <= 98);
  // in a wide range only decades
  return { at, ticks: inside.length > 6 ? inside.filter((tick) => Number.isInteger(Math.log10(tick))) : inside };
}
