/** The page of a position method: its formula, its effect as curves, its hyperparameters and its backend. */

import { lineChart } from "./chart.js";
import { csvText } from "./data.js";
import { download, html, prose } from "./dom.js";
import { foot, head, mount } from "./frame.js";
import { threeDigits } from "./words.js";

/**
 * @typedef {object} Picture
 * @property {"score" | "weight" | "numbers" | "none"} kind
 * @property {{ values: (number | null)[], hue: number, dash: number }[]} curves
 */
/**
 * @typedef {object} Payload
 * @property {{ name: string, spec: string, title: string, paper: string, summary: string, summary_zh: string, derivation: string, notes: string[], example: string, picture: Picture }} entry
 * @property {Record<string, { caption: string, labels: string[], facts: [string, string[]][] }>} said by language
 * @property {string} version
 * @property {Record<string, Record<string, string>>} strings
 */

/**
 * @param {HTMLElement} element emptied and filled
 * @param {Payload} payload
 * @returns {() => void} takes the page out again
 */
export function render(element, payload) {
  const { entry } = payload;
  const { picture } = entry;
  /** @type {import("./words.js").Words} */
  let words;
  /** @type {(() => void)[]} */
  let updates = [];
  const said = () => payload.said[words.language];

  /** @param {import("./frame.js").Shell} shell */
  function content(shell) {
    ({ words, updates } = shell);
    const own = words.language === "zh" && entry.summary_zh;
    return [
      head(shell, words.say("methods.brand"), entry.title, [html("code", {}, entry.spec), entry.paper]),
      html("p", { class: "headline", lang: own ? "zh" : "en" }, own || entry.summary),
      section("formula", [html("pre", { tabindex: "0", lang: "en" }, entry.derivation)]),
      figure(),
      html("section", {}, html("dl", { class: "told" }, said().facts.map(([key, lines]) =>
        html("div", {}, html("dt", {}, words.say(`methods.${key}`)), html("dd", {}, lines.map((line) => html("p", {}, line))))))),
      section("notes", entry.notes.map((note) => html("p", { lang: "en" }, prose(note)))),
      entry.example && section("example", [html("pre", { tabindex: "0", lang: "en" }, html("code", {}, entry.example))]),
      foot(words, payload.version),
    ];
  }

  const section = (/** @type {string} */ key, /** @type {Node[]} */ children) =>
    html("section", { class: `method-${key}` }, html("h2", {}, words.say(`methods.${key}`)), children);

  function figure() {
    const body = [];
    if (picture.curves.length) {
      const chart = lineChart(describe, () => {});
      updates.push(chart.draw);
      body.push(chart.element);
    }
    return html(
      "figure",
      { id: "figure-method" },
      html("div", { class: "figure-head" }, html("h2", {}, words.say("methods.picture"))),
      ...body,
      html("figcaption", {}, html("p", {}, said().caption)),
      body.length > 0 && html("div", { class: "actions" },
        html("button", { type: "button", class: "save", "data-csv": "curves", onclick: () => download(`headway-${entry.name}.csv`, sheet()) }, words.say("csv"))),
    );
  }

  const signed = (/** @type {number} */ value) => (value === 0 ? "0" : Math.abs(value) < 0.01 ? value.toPrecision(2) : threeDigits(value)).replace("-", "−");

  const onAxis = (/** @type {number} */ value) => Number(value.toPrecision(3)).toLocaleString("en-US", { maximumSignificantDigits: 3 }).replace("-", "−");

  const describe = () => ({
    label: words.say("methods.picture"),
    hint: words.say("hint"),
    empty: words.say("empty"),
    x: { label: words.say(`methods.axis.${picture.kind}`), ticks: null, log: false, format: words.count },
    y: { label: words.say(`methods.value.${picture.kind}`), domain: null, format: onAxis, clip: null },
    value: signed,
    series: picture.curves.map(({ values, hue, dash }, i) => ({
      id: said().labels[i],
      style: { hue, dash },
      points: values.flatMap((mean, x) => (mean === null ? [] : [{ x, mean, low: mean, high: mean, seeds: 1 }])),
      stop: null,
    })),
    markers: false,
    endValues: false,
    marks: [],
    heading: (/** @type {number} */ x) => `${words.say(`methods.axis.${picture.kind}`)}${words.say("join.colon")}${words.count(x)}`,
    readout: (/** @type {{ id: string }} */ line, /** @type {{ x: number, mean: number }} */ point) =>
      words.say("methods.reading", { label: line.id, x: words.count(point.x), value: signed(point.mean) }),
  });

  const sheet = () => csvText([["x", ...payload.said.en.labels], ...picture.curves[0].values.map((_, x) => [x, ...picture.curves.map(({ values }) => values[x])])]);

  return mount(element, payload.strings, content);
}
