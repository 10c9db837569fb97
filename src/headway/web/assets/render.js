/**
 * The report of a comparison. `render(element, payload)` serves the HTML file, the studio and the notebook;
 * `payload` is what `headway.compare.page.payload` returns.
 */

import { header, keptViews, limits, methodList } from "./around.js";
import { lineChart, swatch } from "./chart.js";
import {
  bestMethods,
  cellsOf,
  costOf,
  csvOf,
  distanceLengths,
  distanceSeries,
  lengthSeries,
  lengthsOf,
  seedsOf,
  testAt,
  trainingSeries,
  unitsOf,
} from "./data.js";
import { download, html, prose } from "./dom.js";
import { foot, howItWasRun, mount } from "./frame.js";
import { methodStyles } from "./styles.js";
import { byteSize, decimals, grouped, threeDigits } from "./words.js";

/** @typedef {import("./data.js").Results} Results */
/** @typedef {{ key: string, figure: string, en: string, zh: string }} Finding */
/**
 * @typedef {object} Payload
 * @property {Results} results
 * @property {Finding[]} findings
 * @property {Record<string, Record<string, string>>} strings
 * @property {number} [thinned] how many recorded steps each training point stands for
 * @property {Record<string, import("./figures.js").View[]>} [views] of each method's trained model
 */

const CROWD = 16; // with more methods than this, the figures show only the best at first
const SHOWN = 10;

/**
 * @param {HTMLElement} element emptied and filled
 * @param {Payload} payload
 * @returns {() => void} takes the report out again
 */
export function render(element, payload) {
  const { results } = payload;
  const styles = methodStyles(results.methods);
  const units = unitsOf(results);
  const distances = distanceLengths(results);
  const crowded = results.methods.length > CROWD;
  const best = new Set(crowded ? bestMethods(results, units[0], SHOWN) : []);
  const others = () => new Set(results.methods.map(({ spec }) => spec).filter((spec) => best.size && !best.has(spec)));
  const state = {
    unit: units[0],
    distance: distances[distances.length - 1],
    /** @type {Set<string>} */
    hidden: others(),
    /** @type {Set<string>} figures drawn without cutting off */
    whole: new Set(),
    kept: "",
  };
  /** @type {import("./words.js").Words} */
  let words;
  /** @type {(() => void)[]} */
  let updates = [];
  const update = () => updates.forEach((one) => one());

  /** @param {import("./frame.js").Shell} shell */
  function content(shell) {
    ({ words, updates } = shell);
    const numbered = [figureLengths, ...(distances.length ? [figureDistance] : []), figureTraining, figureCost];
    return [
      header(shell, results),
      findingsBlock(),
      ...numbered.map((figure, i) => figure(i + 1)),
      resultTable(),
      Object.keys(payload.views ?? {}).length > 0 && keptViews(shell, payload, state),
      methodList(words, results, styles),
      limits(words, results),
      howItWasRun(words, results),
      foot(words, results.environment.headway),
    ];
  }

  const count = (/** @type {number} */ value) => words.count(value);
  const showing = (/** @type {number} */ value, unit = state.unit) =>
    unit.id === "accuracy" ? `${grouped(100 * value, 1)} %` : threeDigits(value);
  const withUnit = (/** @type {number} */ value, unit = state.unit) =>
    unit.id === "accuracy" ? showing(value, unit) : `${showing(value, unit)} ${words.say(`unit.${unit.id}`)}`;
  const axisName = (/** @type {{ id: string, better: "low" | "high" }} */ unit) =>
    words.say("axis.with_better", { axis: words.say(`axis.${unit.id}`), better: words.say(`better.${unit.better}`) });
  const onAxis = (/** @type {number} */ value, unit = state.unit) =>
    unit.id === "accuracy" ? `${grouped(100 * value, 0)} %` : `${Number(value.toPrecision(4)).toLocaleString("en-US")}`;

  /** Half of the seed range, with as many decimals as the mean has. */
  const half = (/** @type {import("./data.js").Point} */ { mean, low, high }) =>
    state.unit.id === "accuracy" ? grouped(50 * (high - low), 1) : grouped((high - low) / 2, decimals(mean));

  const sentence = (/** @type {Finding} */ finding) => prose(words.language === "zh" ? finding.zh : finding.en);

  function findingsBlock() {
    const warning = payload.findings.filter((finding) => finding.figure === "run");
    const told = payload.findings.filter((finding) => finding.figure !== "run");
    return html(
      "section",
      { class: "findings" },
      html("h2", {}, words.say("findings.title")),
      warning.length > 0 && html("div", { class: "warning", role: "note" }, warning.map((finding) => html("p", {}, sentence(finding)))),
      html("ul", {}, told.map((finding) => html("li", {}, sentence(finding)))),
    );
  }

  /**
   * The frame that every figure shares.
   * @param {number} number
   * @param {string} key
   * @param {{ tools?: Node | null, body: Node[], caption: () => string, table: () => HTMLElement, sheet: "lengths" | "training" | "cost" | "distance" }} parts
   */
  function figure(number, key, { tools, body, caption, table, sheet }) {
    const own = payload.findings.filter((finding) => finding.figure === key);
    const headline = own.find((finding) => finding.key.includes(".best.")) ?? own[0];
    const note = html("p", {});
    const holder = html("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": words.say("table.show") });
    const details = /** @type {HTMLDetailsElement} */ (html("details", {}, html("summary", {}, words.say("table.show")), holder));
    const fill = () => details.open && holder.replaceChildren(table());
    details.addEventListener("toggle", fill);
    updates.push(() => {
      note.textContent = caption();
      fill();
    });
    const save = html("button", { type: "button", class: "save", "data-csv": sheet, onclick: () => download(`headway-${sheet}.csv`, csvOf(results, sheet)) }, words.say("csv"));
    return html(
      "figure",
      { id: `figure-${key}` },
      html("div", { class: "figure-head" }, html("h2", {}, html("span", { class: "number" }, words.say("figure", { n: number })), words.say(`figure.${key}`)), tools),
      headline && html("p", { class: "headline" }, sentence(headline)),
      ...body,
      html("figcaption", {}, note),
      html("div", { class: "actions" }, save, details),
    );
  }

  function unitChoice() {
    if (units.length < 2) return null;
    const buttons = units.map((unit) =>
      html("button", { type: "button", "data-unit": unit.id, onclick: () => { state.unit = unit; update(); } }, words.say(`unit.short.${unit.id}`)),
    );
    updates.push(() => buttons.forEach((button, i) => button.setAttribute("aria-pressed", String(units[i].id === state.unit.id))));
    return html("div", { class: "choice", role: "group", "aria-label": words.say("unit.label") }, buttons);
  }

  function legend() {
    const buttons = results.methods.map(({ spec, title }) =>
      html(
        "button",
        {
          type: "button",
          title: title ?? spec,
          "data-method": spec,
          onclick: () => {
            if (!state.hidden.delete(spec)) state.hidden.add(spec);
            update();
          },
        },
        swatch(/** @type {any} */ (styles.get(spec))),
        html("span", {}, spec),
      ),
    );
    updates.push(() => buttons.forEach((button, i) => button.setAttribute("aria-pressed", String(!state.hidden.has(results.methods[i].spec)))));
    const group = html("div", { class: "legend", role: "group", "aria-label": words.say("legend.label") }, buttons);
    return crowded ? html("div", {}, crowdChoice(), group) : group;
  }

  /** With many methods: choose the best, all, or none. */
  function crowdChoice() {
    const lengths = lengthsOf(results);
    const every = () => new Set(results.methods.map(({ spec }) => spec));
    /** @type {[string, () => Set<string>][]} */
    const choices = [["best", others], ["all", () => new Set()], ["none", every]];
    const buttons = choices.map(([key, hidden]) => html("button", { type: "button", "data-show": key, onclick: () => { state.hidden = hidden(); update(); } },
      words.say(`crowd.${key}`, { n: best.size, x: count(lengths[lengths.length - 1] ?? 0) })));
    const same = (/** @type {Set<string>} */ a, /** @type {Set<string>} */ b) => a.size === b.size && [...a].every((spec) => b.has(spec));
    updates.push(() => buttons.forEach((button, i) => button.setAttribute("aria-pressed", String(same(state.hidden, choices[i][1]())))));
    return html("div", { class: "choice crowd", role: "group", "aria-label": words.say("legend.label") }, buttons);
  }

  const seen = (/** @type {import("./data.js").Series[]} */ list) => list.filter(({ spec }) => !state.hidden.has(spec));

  /** A point in words: "rotary at 512 tokens: 3.21 bits per byte (3.10–3.35, 2 seeds)". */
  function reading(key, spec, point, planned, unit) {
    const range = point.seeds > 1
      ? words.say(point.seeds < planned ? "reading.range_some" : "reading.range", { low: showing(point.low, unit), high: showing(point.high, unit), seeds: point.seeds, planned })
      : words.say(planned > 1 ? "reading.single_some" : "reading.single", { planned });
    return words.say(key, { spec, x: count(point.x), value: withUnit(point.mean, unit), range });
  }

  /**
   * @param {string} key
   * @param {() => any} describe
   */
  function chartBody(key, describe) {
    const note = html("p", { class: "clip-note" });
    const chart = lineChart(describe, (clipped) => {
      note.replaceChildren();
      const unit = describe().unit;
      if (clipped)
        note.append(
          html("span", {}, prose(words.say(`clip.${key}`, {
            limit: withUnit(clipped.limit, unit), spec: clipped.id, x: count(clipped.highest.x), value: showing(clipped.highest.mean, unit), n: clipped.count,
          }))),
          " ",
        );
      if (clipped || state.whole.has(key))
        note.append(html("button", { type: "button", onclick: () => { if (!state.whole.delete(key)) state.whole.add(key); update(); } }, words.say(clipped ? "clip.whole" : "clip.cut")));
    });
    updates.push(chart.draw);
    return [chart.element, note];
  }

  function stopText(stop, last) {
    if (stop.kind === "cannot") return words.say("stop.cannot", { n: count(last) });
    if (stop.kind === "missing") return words.say("stop.missing", { n: count(last) });
    return words.say(`stop.${stop.kind}`);
  }

  function figureLengths(number) {
    const series = () => lengthSeries(results, state.unit);
    const describe = () => ({
      unit: state.unit,
      label: words.say("figure.lengths"),
      hint: words.say("hint"),
      empty: words.say(state.hidden.size ? "empty.hidden" : "empty"),
      x: { label: words.say("axis.length"), ticks: lengthsOf(results), log: true, format: count },
      y: {
        label: axisName(state.unit),
        domain: state.unit.id === "accuracy" ? /** @type {[number, number]} */ ([0, 1]) : null,
        format: (/** @type {number} */ value) => onAxis(value),
        clip: state.whole.has("lengths") ? null : "outliers",
      },
      value: showing,
      series: seen(series()).map(({ spec, points, stop }) => ({
        id: spec, style: styles.get(spec), points,
        stop: stop && points.length ? stopText(stop, points[points.length - 1].x) : null,
      })),
      markers: true,
      endValues: true,
      marks: results.settings.train_length && lengthsOf(results).length
        ? [{ x: results.settings.train_length, label: words.say("mark.train", { n: count(results.settings.train_length) }) }] : [],
      heading: (/** @type {number} */ x) => words.say("tokens", { n: count(x) }),
      readout: (line, point) => reading("reading.length", line.id, point, series().find(({ spec }) => spec === line.id)?.planned ?? 1, state.unit),
    });
    const missing = html("p", { class: "missing" });
    updates.push(() => {
      const none = series().filter(({ points }) => !points.length);
      const named = none.map(({ spec, stop }) => `\`${spec}\` (${stop ? reason(stop) : words.say("status.missing")})`);
      const told = named.length > 0 && named.length < results.methods.length;
      missing.replaceChildren();
      if (told) missing.append(html("span", {}, prose(words.say("lengths.no_line", { specs: named.join(words.say("join.comma")) }))));
    });
    return figure(number, "lengths", {
      tools: unitChoice(),
      body: [legend(), ...chartBody("lengths", describe), missing],
      caption: () => [words.say("caption.lengths"), results.task === "text" ? words.say("caption.lengths_text", { n: count(results.settings.train_length) }) : "", bandNote(), state.unit.id === "accuracy" ? "" : words.say("caption.zero")].filter(Boolean).join(words.say("join.sentence")),
      table: () => longTable("lengths", series(), lengthsOf(results), (x) => count(x)),
      sheet: "lengths",
    });
  }

  const bandNote = () => words.say(seedsOf(results).length > 1 ? "caption.band" : "caption.one_seed", { n: seedsOf(results).length });

  /** Mean and range per method and x; a stop is named where it happens. */
  function longTable(key, series, xs, format, unit = state.unit) {
    return html(
      "table",
      {},
      html("thead", {}, html("tr", {}, html("th", { scope: "col" }, words.say("table.method")), xs.map((x) => html("th", { scope: "col" }, format(x))))),
      html(
        "tbody",
        {},
        series.map(({ spec, points, stop }) =>
          html(
            "tr",
            {},
            html("th", { scope: "row" }, swatch(/** @type {any} */ (styles.get(spec))), spec),
            xs.map((x) => {
              const point = points.find((one) => one.x === x);
              if (!point) return html("td", { class: "none" }, key === "lengths" && stop && x >= (stop.x ?? 0) ? reason(stop, points[points.length - 1]?.x) : "–");
              return html("td", {}, showing(point.mean, unit), point.seeds > 1 && html("small", {}, `${showing(point.low, unit)}–${showing(point.high, unit)}`));
            }),
          ),
        ),
      ),
    );
  }

  function reason(stop, last = /** @type {number | null} */ (null)) {
    const word = words.say(`status.${stop.kind}`);
    const message = (stop.message ?? "").trim();
    if (!message || message.length > 28) return stop.kind === "cannot" && last ? words.say("status.longest", { n: count(last) }) : word;
    return message.startsWith(stop.kind) && words.language === "en" ? message : `${word}${words.say("join.colon")}${message.replace(new RegExp(`^${stop.kind}\\s*`), "")}`;
  }

  /** Training curves can be shown in bits only if a token is a byte: then a nat is 1 / ln 2 bits. */
  function trainingUnit() {
    const bytes = results.settings.vocabulary === "bytes" && results.task === "text";
    const bits = bytes && state.unit.id === "bits_per_byte";
    const id = bits ? "bits_per_byte" : "loss";
    return { unit: units.find((one) => one.id === id) ?? { id, better: "low", of: () => null }, factor: bits ? 1 / Math.LN2 : 1 };
  }

  function figureTraining(number) {
    const curves = () => trainingSeries(results, trainingUnit().factor);
    const describe = () => {
      const { unit } = trainingUnit();
      const { series, dots } = curves();
      return {
        unit,
        label: words.say("figure.training"),
        hint: words.say("hint"),
        empty: words.say(state.hidden.size ? "empty.hidden" : "empty"),
        x: { label: words.say("axis.step"), ticks: null, log: false, format: count },
        y: { label: axisName(unit), domain: null, format: (/** @type {number} */ value) => onAxis(value, unit), clip: state.whole.has("training") ? null : "start" },
        value: (/** @type {number} */ value) => showing(value, unit),
        series: seen(series).map(({ spec, points, stop }) => ({ id: spec, style: styles.get(spec), points, dots: dots.get(spec), stop: stop ? reason(stop) : null })),
        markers: false,
        endValues: false,
        marks: [],
        heading: (/** @type {number} */ x) => words.say("step", { n: count(x) }),
        readout: (line, point) => reading("reading.step", line.id, point, series.find(({ spec }) => spec === line.id)?.planned ?? 1, unit),
      };
    };
    const validated = results.cells.some((cell) => cell.validation?.steps.length);
    return figure(number, "training", {
      body: [legend(), ...chartBody("training", describe)],
      caption: () => [
        words.say(`caption.training${curves().window > 1 ? "" : "_raw"}${validated ? "_validated" : ""}`, { n: curves().window }),
        bandNote(),
        payload.thinned && payload.thinned > 1 ? words.say("caption.thinned", { n: payload.thinned }) : "",
      ].filter(Boolean).join(words.say("join.sentence")),
      table: () => {
        const { series } = curves();
        const steps = [...new Set(series.flatMap(({ points }) => points.map((point) => point.x)))].sort((a, b) => a - b);
        const some = steps.filter((_, i) => i === steps.length - 1 || i % Math.max(1, Math.ceil(steps.length / 12)) === 0);
        return longTable("training", series, some, (x) => words.say("step", { n: count(x) }), trainingUnit().unit);
      },
      sheet: "training",
    });
  }

  function figureDistance(number) {
    const unit = /** @type {import("./data.js").Unit} */ (units.find(({ id }) => id === "accuracy"));
    const series = () => distanceSeries(results, state.distance);
    const select = html(
      "select",
      { "aria-label": words.say("distance.length"), onchange: (/** @type {Event} */ event) => { state.distance = Number(/** @type {HTMLSelectElement} */ (event.target).value); update(); } },
      distances.map((length) => html("option", { value: length, selected: length === state.distance }, words.say("tokens", { n: count(length) }))),
    );
    const describe = () => ({
      unit,
      label: words.say("figure.distance"),
      hint: words.say("hint"),
      empty: words.say(state.hidden.size ? "empty.hidden" : "empty"),
      x: { label: words.say("axis.distance"), ticks: [...new Set(series().flatMap(({ points }) => points.map((point) => point.x)))].sort((a, b) => a - b), log: true, format: count },
      y: { label: words.say("axis.accuracy"), domain: /** @type {[number, number]} */ ([0, 1]), format: (/** @type {number} */ value) => onAxis(value, unit), clip: null },
      value: (/** @type {number} */ value) => showing(value, unit),
      series: seen(series()).map(({ spec, points }) => ({ id: spec, style: styles.get(spec), points, stop: null })),
      markers: true,
      endValues: true,
      marks: [],
      heading: (/** @type {number} */ x) => words.say("distance.heading", { n: count(x) }),
      readout: (line, point) => reading("reading.distance", line.id, point, series().find(({ spec }) => spec === line.id)?.planned ?? 1, unit),
    });
    return figure(number, "distance", {
      tools: html("label", { class: "select" }, words.say("distance.length"), select),
      body: [legend(), ...chartBody("distance", describe)],
      caption: () => [words.say("caption.distance", { n: count(state.distance) }), bandNote()].filter(Boolean).join(words.say("join.sentence")),
      table: () => longTable("distance", series(), describe().x.ticks, (x) => count(x), unit),
      sheet: "distance",
    });
  }

  /** What each method costs, as rows of bars. */
  function costPanels() {
    const total = new Map(costOf(results, "parameters").map(({ spec, point }) => [spec, point]));
    const share = (/** @type {string} */ spec, /** @type {number} */ own) => {
      const whole = total.get(spec)?.mean;
      return whole && own ? words.say("cost.share", { own: count(own), share: ((100 * own) / whole).toPrecision(2) }) : count(own);
    };
    return [
      { key: /** @type {const} */ ("tokens_per_second"), text: (/** @type {string} */ _, /** @type {number} */ value) => count(Math.round(value)) },
      { key: /** @type {const} */ ("peak_memory_bytes"), text: (/** @type {string} */ _, /** @type {number} */ value) => byteSize(value) },
      { key: /** @type {const} */ ("position_parameters"), text: share },
    ]
      .map(({ key, text }) => ({ key, text, rows: costOf(results, key) }))
      .filter(({ rows }) => rows.some(({ point }) => point));
  }

  function figureCost(number) {
    const panels = costPanels().map(({ key, text, rows }) => {
      const most = Math.max(...rows.map(({ point }) => point?.high ?? 0)) || 1;
      return html(
        "div",
        { class: "bars", "data-panel": key },
        html("h3", {}, words.say(`cost.${key}`)),
        html("ul", {}, rows.map(({ spec, point }) => {
          const bar = html("span", { class: "bar" });
          const range = html("span", { class: "range" });
          if (point) {
            bar.style.width = `${(100 * point.mean) / most}%`;
            range.style.left = `${(100 * point.low) / most}%`;
            range.style.width = `${(100 * (point.high - point.low)) / most}%`;
          }
          return html("li", { class: `hue-${styles.get(spec)?.hue}`, "data-method": spec },
            html("span", { class: "bar-name", title: spec }, spec),
            html("span", { class: "track" }, point && bar, point && point.high > point.low && range),
            html("span", { class: "bar-value" }, point ? text(spec, point.mean) : "–"));
        })),
      );
    });
    return figure(number, "cost", {
      body: panels.length ? [html("div", { class: "panels" }, panels)] : [html("p", { class: "missing" }, words.say("empty"))],
      caption: () => [words.say("caption.cost"), seedsOf(results).length > 1 ? words.say("caption.cost_range") : words.say("caption.cost_once")].filter(Boolean).join(words.say("join.sentence")),
      table: () => html(
        "table",
        {},
        html("thead", {}, html("tr", {}, html("th", { scope: "col" }, words.say("table.method")), costPanels().map(({ key }) => html("th", { scope: "col" }, words.say(`cost.${key}`))))),
        html("tbody", {}, results.methods.map(({ spec }) => html("tr", {},
          html("th", { scope: "row" }, swatch(/** @type {any} */ (styles.get(spec))), spec),
          costPanels().map(({ text, rows }) => {
            const point = rows.find((row) => row.spec === spec)?.point;
            return html("td", {}, point ? text(spec, point.mean) : "–");
          })))),
      ),
      sheet: "cost",
    });
  }

  function resultTable() {
    const lengths = lengthsOf(results);
    const title = html("p", { class: "quiet" });
    const body = html("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": words.say("table.title") });
    updates.push(() => {
      const seeds = seedsOf(results).length;
      title.textContent = words.say("table.lead", { axis: axisName(state.unit), note: words.say(seeds > 1 ? "table.note_many" : "table.note_one", { seeds }) }) + (crowded ? words.say("join.sentence") + words.say("crowd.order") : "");
      const ranks = crowded ? bestMethods(results, state.unit, Infinity) : [];
      const rank = (/** @type {string} */ spec) => (ranks.includes(spec) ? ranks.indexOf(spec) : ranks.length);
      const series = lengthSeries(results, state.unit).sort((a, b) => rank(a.spec) - rank(b.spec));
      const low = state.unit.better === "low";
      const best = lengths.map((x) => series.flatMap(({ points }) => points.filter((point) => point.x === x)).sort((a, b) => (low ? a.mean - b.mean : b.mean - a.mean))[0]);
      // as in the findings: methods with overlapping seed ranges cannot be distinguished
      const near = (/** @type {import("./data.js").Point} */ point, /** @type {import("./data.js").Point} */ first) => showing(point.mean) === showing(first.mean) || (point.low <= first.high && first.low <= point.high);
      body.replaceChildren(
        html("table", { id: "results" },
          html("thead", {}, html("tr", {}, html("th", { scope: "col" }, words.say("table.method")),
            lengths.map((x) => html("th", { scope: "col" }, count(x), x === results.settings.train_length && html("small", {}, words.say("table.trained")))))),
          html("tbody", {}, series.map(({ spec, points, planned }) => html("tr", {},
            html("th", { scope: "row" }, swatch(/** @type {any} */ (styles.get(spec))), spec),
            lengths.map((x, i) => {
              const point = points.find((one) => one.x === x);
              if (!point) {
                const tests = cellsOf(results, spec).map((cell) => testAt(cell, x));
                const first = tests.find((test) => test.status !== "ok");
                return html("td", { class: "none" }, reason({ kind: first?.status ?? "missing", message: first?.message ?? null }, points[points.length - 1]?.x));
              }
              const text = showing(point.mean);
              const spread = point.seeds > 1 ? ` ± ${half(point)}` : "";
              const some = point.seeds < planned && html("small", {}, words.say("table.some", { n: point.seeds, planned }));
              return html("td", { class: near(point, best[i]) ? "best" : null }, html("span", {}, text), html("span", { class: "spread" }, spread), some);
            }))))),
      );
    });
    return html("section", { class: "results" }, html("h2", {}, words.say("table.title")), title, body);
  }

  return mount(element, payload.strings, content);
}
