/** The parts of a report around its figures: header, views of trained models, methods and limits. */

import { swatch } from "./chart.js";
import { finite, lengthsOf, seedsOf } from "./data.js";
import { html, prose } from "./dom.js";
import { drawView } from "./figures.js";
import { dated, head } from "./frame.js";
import { threeDigits } from "./words.js";

/** @typedef {import("./data.js").Results} Results */
/** @typedef {import("./words.js").Words} Words */

/**
 * @param {import("./frame.js").Shell} shell
 * @param {Results} results
 * @returns {HTMLElement}
 */
export function header(shell, results) {
  const { words } = shell;
  const lengths = lengthsOf(results);
  const longest = lengths[lengths.length - 1];
  const train = results.settings.train_length;
  const seeds = seedsOf(results).length;
  const one = (/** @type {string} */ key, /** @type {number} */ n) => words.say(n === 1 ? `${key}.one` : key, { n: words.count(n) });
  const facts = [
    one("head.methods", results.methods.length),
    one("head.seeds", seeds),
    results.settings.steps ? one("head.steps", results.settings.steps) : null,
    results.settings.text ? String(results.settings.text) : words.say(`task.${results.task}`),
    results.created ? dated(words, results.created) : null,
  ];
  const title = longest && train && longest > train
    ? words.say("title.longer", { train: words.count(train), longest: words.count(longest) })
    : words.say("title.plain", { train: train ? words.count(train) : "?" });
  return head(shell, words.say("brand"), title, facts);
}

/**
 * The views of one method's model at a time; another is drawn when it is chosen.
 * @param {import("./frame.js").Shell} shell
 * @param {import("./render.js").Payload} payload
 * @param {{ kept: string }} state which method was chosen
 * @returns {HTMLElement}
 */
export function keptViews({ words, updates }, payload, state) {
  const { results } = payload;
  const kept = payload.views ?? {};
  const specs = results.methods.map(({ spec }) => spec).filter((spec) => !spec.includes(" + "));
  const many = (/** @type {string} */ spec) => kept[spec]?.length ?? 0;
  // at first the method with the most to see
  if (!specs.includes(state.kept)) state.kept = specs.reduce((best, spec) => (many(spec) > many(best) ? spec : best));
  const place = html("div", { class: "kept-views" });
  const select = html("select", { "data-keep": "kept", onchange: (/** @type {Event} */ event) => { state.kept = /** @type {HTMLSelectElement} */ (event.target).value; show(); } },
    specs.map((spec) => html("option", { value: spec, selected: spec === state.kept }, spec)));
  /** @type {(() => void)[]} */
  let draws = [];
  function show() {
    const views = (kept[state.kept] ?? []).map((view) => drawView(view, words));
    place.replaceChildren(...(views.length ? views.map(({ element }) => element) : [html("p", { class: "missing" }, prose(words.say("saved.none", { method: state.kept })))]));
    draws = views.map(({ draw }) => draw);
    draws.forEach((draw) => draw());
  }
  let shown = false;
  updates.push(() => {
    if (shown) draws.forEach((draw) => draw());
    else show();
    shown = true;
  });
  return html("section", { class: "kept", id: "kept" }, html("h2", {}, words.say("saved.title")),
    html("p", { class: "quiet" }, words.say("saved.lead", { seed: words.count(seedsOf(results)[0] ?? 0) })),
    html("label", { class: "select" }, words.say("saved.method"), select),
    place);
}

/**
 * @param {Words} words
 * @param {Results} results
 * @param {Map<string, import("./styles.js").Style>} styles
 * @returns {HTMLElement}
 */
export function methodList(words, results, styles) {
  return html("section", { class: "methods" }, html("h2", {}, words.say("methods.title")),
    html("dl", {}, results.methods.map(({ spec, title, paper, ...method }) => {
      const own = words.language === "zh" && method.summary_zh;
      const summary = own || method.summary;
      return html("div", {},
        html("dt", {}, swatch(/** @type {any} */ (styles.get(spec))), html("code", {}, spec)),
        html("dd", {},
          html("strong", { lang: "en" }, title ?? spec), summary && html("span", { lang: own ? "zh" : "en" }, ` ${summary}`), paper && html("span", { class: "paper" }, ` ${paper}`)));
    })));
}

/**
 * What the comparison cannot say.
 * @param {Words} words
 * @param {Results} results
 * @returns {HTMLElement}
 */
export function limits(words, results) {
  const count = (/** @type {number} */ value) => words.count(value);
  const size = (/** @type {number} */ n) => (n >= 1e6 ? words.say("millions", { n: threeDigits(n / 1e6), count: count(n) }) : count(n));
  const seeds = seedsOf(results).length;
  const sizes = results.cells.flatMap((cell) => finite(cell.parameters) ?? []);
  const { steps, train_length: train } = results.settings;
  const lines = [
    results.complete === false && words.say("limits.interrupted"),
    sizes.length && steps ? words.say("limits.small", { size: size(Math.max(...sizes)), steps: count(steps) }) : words.say("limits.small_unknown"),
    seeds > 1 ? words.say("limits.seeds", { n: seeds }) : words.say("limits.one_seed"),
    results.task === "text" ? words.say("limits.text") : words.say("limits.task"),
    train && words.say("limits.length", { n: count(train) }),
    words.say("limits.speed", { threads: results.environment.threads ?? "?" }),
  ];
  return html("section", { class: "limits" }, html("h2", {}, words.say("limits.title")), html("ul", {}, lines.filter(Boolean).map((text) => html("li", {}, text))));
}
