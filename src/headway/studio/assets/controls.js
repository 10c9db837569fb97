/** What the reader chooses for a view: the text, the model, layer and head, and options of single views. */

import { html } from "./dom.js";
import { pick } from "./picker.js";
import { told } from "./parts.js";
import { plain } from "./place.js";
import { popover } from "./popover.js";

/** @typedef {import("./place.js").Place} Place */
/** @typedef {{ name: string, kind: "choice" | "slider" | "number" | "method" | "key", values?: (string | number)[], first?: string | number, when?: [string, string], trained?: boolean, off?: number }} Option off is a value that leaves the option out */
/** @typedef {{ layers: number, heads: number, head_dim: number, tokens: string[], keys: number[] | null, count: number, layer: number, head: number, query: number, column: number, position: string, name: string, seconds: number }} Meta */

const POWERS = (/** @type {number} */ from, /** @type {number} */ to) => Array.from({ length: Math.log2(to / from) + 1 }, (_, i) => from * 2 ** i);
const WHAT = /** @type {Option} */ ({ name: "what", kind: "choice", values: ["weights", "scores"], first: "weights" });
const TOKENS = /** @type {Option} */ ({ name: "group", kind: "choice", values: ["characters", "words", "tokens"], first: "characters", trained: true });
const RATES = [0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1];
const rate = (/** @type {string} */ name, /** @type {number} */ first) => /** @type {Option} */ ({ name: `lr_${name}`, kind: "slider", values: RATES, first });
const MATRIX = /** @type {Option} */ ({ name: "matrix", kind: "choice", values: ["q", "k", "v"], first: "q" });

const SAMPLING = /** @type {Option[]} */ ([
  { name: "temperature", kind: "slider", values: [0, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.5, 2, 3, 5], first: 1 },
  { name: "top_k", kind: "slider", values: [0, 1, 2, 3, 4, 5, 8, 10, 20, 40, 50, 100], first: 0, off: 0 },
  { name: "top_p", kind: "slider", values: [0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1], first: 1, off: 1 },
]);

/** Which choosers a view has, and its own options. @type {Record<string, { look: string[], options?: Option[] }>} */
export const USES = {
  stepper: { look: ["layer", "head", "query"] },
  projection: { look: ["layer", "head", "query", "column"], options: [MATRIX] },
  softmax: { look: ["layer", "head", "query"] },
  scaling: { look: ["layer", "head"], options: [{ name: "dim", kind: "slider", values: POWERS(1, 1024) }] },
  wall: { look: [], options: [TOKENS] },
  head: { look: ["layer", "head", "query"], options: [WHAT, { ...TOKENS, when: ["what", "weights"] }] },
  split: { look: ["layer", "head", "query"], options: [{ name: "key", kind: "key" }] },
  distance: { look: ["layer", "head"], options: [{ name: "sample", kind: "choice", values: ["typed", "windows"], first: "typed", trained: true }] },
  vectors: { look: [], options: [{ name: "positions", kind: "slider", values: POWERS(8, 512) }] },
  similarity: { look: [], options: [{ name: "positions", kind: "slider", values: POWERS(8, 4096) }] },
  bias: { look: ["layer"], options: [{ name: "reach", kind: "slider", values: POWERS(16, 16384) }] },
  rotation: { look: ["layer", "head", "query"], options: [{ name: "positions", kind: "slider", values: POWERS(8, 256) }] },
  prediction: { look: ["query"], options: [...SAMPLING, { name: "shift", kind: "slider", values: [0, 1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000, 10000], first: 0, off: 0 }] },
  generation: { look: ["layer", "head"], options: [{ name: "tokens", kind: "slider", values: [1, 2, 4, 8, 12, 16, 24, 32, 48, 64], first: 12 }, ...SAMPLING, { name: "seed", kind: "number", first: 0 }, { name: "heads", kind: "choice", values: ["all", "chosen"], first: "all" }] },
  sidebyside: { look: ["layer", "head", "query"], options: [TOKENS] },
  whatif: {
    look: ["layer", "head"],
    options: [
      { name: "change", kind: "choice", values: ["shift", "shuffle", "swap"], first: "shift" },
      { name: "by", kind: "slider", values: [1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000], first: 5, when: ["change", "shift"] },
      { name: "seed", kind: "number", first: 0, when: ["change", "shuffle"] },
      { name: "position", kind: "method", first: "alibi", when: ["change", "swap"] },
      WHAT,
      { ...TOKENS, when: ["what", "weights"] },
    ],
  },
  longer: { look: [] },
  report: { look: [] },
  film: { look: ["layer", "head"], options: [MATRIX] },
  step: { look: ["layer", "head"], options: [MATRIX, rate("sgd", 0.1), rate("adam", 0.003)] },
  board: { look: [] },
  long: { look: ["layer", "head"], options: [{ name: "reach", kind: "slider", values: POWERS(16, 1024) }] },
};
const LONG = 40; // repetitions of the longer example in the longest
const SIZES = /** @type {const} */ ({ dim: [8, 16, 24, 32, 48, 64, 96, 128, 192, 256], heads: [1, 2, 3, 4, 6, 8, 12, 16], layers: [1, 2, 3, 4, 6, 8] });

/**
 * The options of a view that apply: the chosen value, or the default.
 * @param {Place} place
 * @returns {Record<string, string | number>}
 */
export function optionsOf(place) {
  /** @type {Record<string, string | number>} */
  const found = {};
  const options = USES[place.view]?.options ?? [];
  const value = (/** @type {string} */ name) => place.options[name] ?? options.find((one) => one.name === name)?.first;
  for (const option of options) {
    if ((option.when && value(option.when[0]) !== option.when[1]) || (option.trained && place.kind === "fresh")) continue;
    const given = value(option.name);
    if (given !== undefined && given !== "" && given !== option.off) found[option.name] = given;
  }
  return found;
}

/**
 * @param {import("./words.js").Words} words
 * @param {any} offers of the server: methods, runs, comparisons, limits
 * @param {object} options
 * @param {() => Place} options.place
 * @param {() => Meta | null} options.meta of the view that is shown
 * @param {(change: Partial<Place>, when?: "soon" | "now") => void} options.go
 * @param {() => boolean} options.running whether a training is under way
 * @param {() => HTMLElement} options.home where dialogs stand
 * @returns {{ element: HTMLElement, asked: HTMLElement, update: () => void, methods: () => void }} asked is the row of text and model
 */
export function controlPanel(words, offers, { place, meta, go, running, home }) {
  const title = (/** @type {string} */ spec) => offers.methods.find((/** @type {any} */ one) => one.name === spec.split("(")[0])?.title ?? spec;
  const methodChoices = () => offers.methods.map((/** @type {any} */ one) => ({ value: one.name, name: one.name, title: one.title, text: told(words, one.summary) }));

  // The text
  const area = /** @type {HTMLTextAreaElement} */ (html("textarea", { class: "field wide", id: "studio-text", "aria-label": words.say("studio.text"), rows: "1", maxlength: offers.limits.text, readonly: Boolean(offers.site), spellcheck: "false", "data-keep": "text", oninput: () => go({ text: area.value }, "soon") }));
  const samples = /** @type {HTMLSelectElement} */ (html("select", { "aria-label": words.say("studio.sample"), "data-keep": "sample", onchange: () => {
    const text = offers.site ? samples.value : words.say(`studio.sample.${samples.value}.text`);
    if (samples.value === "thousands") go({ text: longest(words), view: "long" });
    else if (samples.value) go({ text, query: -1 });
    samples.value = "";
  } }, html("option", { value: "" }, words.say("studio.sample")), offers.site?.texts.map((/** @type {string} */ text) => html("option", { value: text }, text)) ?? ["short", "chinese", "repeated", "long", "thousands"].map((key) => html("option", { value: key }, words.say(`studio.sample.${key}`)))));
  // one line; while it is typed in, the controls are taller and lie over the page below: the figures stay where they are
  const textLine = html("div", { class: "text-line" }, area);
  const textBox = html("div", { class: "text-box" }, textLine, samples);

  // The model
  const runName = (/** @type {any} */ one) => one.kind === "checkpoint" && one.layers && one.heads && one.dim ? words.say("studio.run.sizes", { ...one, family: one.position }) : one.position ? `${one.title} · ${one.position}` : one.title;
  const groupOf = (/** @type {any} */ one) => words.say(one.kind === "shipped" ? "studio.shipped" : "studio.own");
  const kinds = /** @type {const} */ (["fresh", "run", "live"]).map((kind) =>
    html("button", { type: "button", "data-keep": `kind-${kind}`, "data-kind-of-model": kind, onclick: () => go({ kind, ...(kind === "run" && !place().run ? { run: offers.runs[0]?.id ?? "" } : {}) }) }, words.say(`studio.model.${kind}`)));
  const method = html("button", { type: "button", class: "save", "data-keep": "method", "aria-haspopup": "dialog", title: words.say("studio.method.choose"), onclick: methods });
  const sizes = /** @type {const} */ (["dim", "heads", "layers"]).map((name) => chooser(name, () => withOwn(SIZES[name], place()[name]).map((value) => [value, String(value)]), () => place()[name], (value) => go({ [name]: value })));
  const seed = numberField("seed", () => place().seed, offers.limits.seed, (value) => go({ seed: value }, "soon"));
  const runs = chooser("run", () => offers.runs.length ? offers.runs.map((/** @type {any} */ one) => [one.id, runName(one), groupOf(one)]) : [["", words.say("studio.run.none")]], () => place().run, (value) => go({ run: String(value) }), true);
  const fresh = html("div", { class: "row" }, sizes.map((one) => one.element), seed.element);
  const chosenMethod = html("span", { class: "select" }, method, html("span", { class: "mark" }, words.say("view.untrained")));
  const more = html("details", { class: "more-options" }, html("summary", {}, words.say("studio.more")), html("div", { class: "row" }, offers.options.map(modelOption)));
  more.open = Object.keys(place().more).length > 0;
  const noRuns = html("p", { class: "quiet" }, words.say("studio.run.how"), " ", html("code", { class: "name" }, "headway train"));
  const model = popover("model", words.say("studio.model.more"),
    html("div", { class: "row" }, html("span", { class: "caption", id: "studio-model" }, words.say("studio.model")), html("div", { class: "choice", role: "group", "aria-labelledby": "studio-model" }, kinds)),
    fresh, more, noRuns);

  // Where to look
  const limit = (/** @type {number} */ count, /** @type {(i: number) => string} */ label) => Array.from({ length: count }, (_, i) => /** @type {[number, string]} */ ([i, label(i)]));
  const choosers = {
    layer: chooser("layer", () => limit(meta()?.layers ?? place().layers, String), () => place().layer, (layer) => go({ layer: Number(layer) })),
    head: chooser("head", () => limit(meta()?.heads ?? place().heads, String), () => place().head, (head) => go({ head: Number(head) })),
    query: chooser("query", () => limit(meta()?.tokens.length ?? 1, (i) => `${i} · ${meta()?.tokens[i] ?? ""}`), () => (place().query < 0 ? place().query + (meta()?.tokens.length ?? 1) : place().query), (query) => go({ query: Number(query) })),
    column: chooser("column", () => limit(meta()?.head_dim ?? 1, String), () => place().column, (column) => go({ column: Number(column) })),
  };
  const own = html("div", { class: "row options" });
  const look = html("div", { class: "row look" }, Object.values(choosers).map((one) => one.element), own);
  const models = chooser("model", () => offers.site?.models.map(modelName) ?? [], () => (place().kind === "run" ? `run:${place().run}` : `fresh:${place().position}`), (value) => {
    const [kind, own_] = String(value).split(/:(.*)/s);
    go(kind === "run" ? { kind, run: own_ } : { kind: "fresh", position: own_ });
  }, true);
  const asked = html("div", { class: "row asked" }, textBox, html("div", { class: "row of-model" }, ...(offers.site ? [models.element] : [chosenMethod, runs.element, model.element])), look);

  // Further models, and comparisons
  const others = html("div", { class: "row others" });
  const compared = chooser("results", () => offers.comparisons.map((/** @type {any} */ one) => [one.id, one.title]), () => place().results || offers.comparisons[0]?.id, (value) => go({ results: String(value) }), true);

  /** @param {string} key of a site's model @returns {[string, string]} */
  const modelName = (key) => [key, key.startsWith("run:") ? runName(offers.runs.find((/** @type {any} */ one) => `run:${one.id}` === key) ?? {}) : title(key.slice(6))];

  function methods() {
    if (offers.site) return;
    pick({ words, place: home(), title: words.say("studio.method.choose"), choices: methodChoices(), current: place().position, free: words.say("studio.method.free"), done: (position) => go({ position, kind: place().kind === "live" && !running() ? "live" : "fresh" }) });
  }

  /**
   * @param {string} name
   * @param {() => [string | number, string, string?][]} values value, label, and the name of a group
   * @param {() => string | number | undefined} current
   * @param {(value: string | number) => void} choose
   */
  function chooser(name, values, current, choose, text = false) {
    const select = /** @type {HTMLSelectElement} */ (html("select", { "data-keep": `choose-${name}`, "data-choose": name, onchange: () => choose(text ? select.value : Number(select.value)) }));
    let shown = "";
    function update() {
      const list = values();
      const key = JSON.stringify(list);
      if (key !== shown) select.replaceChildren(...grouped(list));
      shown = key;
      select.value = String(current() ?? "");
    }
    return { element: html("label", { class: "select", "data-for": name }, html("span", {}, words.say(`studio.${name}`)), select), update };
  }

  /** @param {string} name @param {() => number} current @param {number} most @param {(value: number) => void} choose */
  function numberField(name, current, most, choose) {
    const { input, wrong } = wholeNumber(`choose-${name}`, current(), most, current, choose);
    return { element: html("label", { class: "select" }, html("span", {}, words.say(`studio.${name}`)), input, wrong), update: () => {
      if (document.activeElement !== input) input.value = String(current());
    } };
  }

  /**
   * A field for a whole number from 0; invalid input is reported beside it, and removed when the field loses the focus.
   * @param {string} keep @param {unknown} value at first @param {number} most
   * @param {() => unknown} current what holds @param {(value: number) => void} choose
   */
  function wholeNumber(keep, value, most, current, choose) {
    const wrong = html("span", { class: "field-wrong", id: `${keep}-wrong`, role: "alert", hidden: true }, words.say("studio.number.wrong", { most: words.count(most) }));
    /** @param {boolean} yes */
    const mark = (yes) => {
      wrong.hidden = !yes;
      input.setAttribute("aria-invalid", String(yes));
    };
    /** @type {HTMLInputElement} */
    const input = /** @type {HTMLInputElement} */ (html("input", { type: "number", class: "field short", min: 0, max: most, step: 1, value, "data-keep": keep, "aria-describedby": wrong.id, "aria-invalid": "false",
      oninput: () => {
        const given = Number(input.value);
        const fits = input.value !== "" && Number.isInteger(given) && given >= 0 && given <= most;
        mark(!fits && (input.value !== "" || input.validity.badInput));
        if (fits) choose(given);
      },
      onblur: () => {
        mark(false);
        input.value = String(current());
      } }));
    return { input, wrong };
  }

  /**
   * A further option of a fresh model, as listed by the server; empty means the default.
   * @param {{ name: string, kind: string, choices: string[], default: unknown, title: Record<string, string> }} option
   */
  function modelOption({ name, kind, choices, default: usual, title: said }) {
    const choose = (/** @type {string} */ text, /** @type {"soon" | "now"} */ when = "now") => {
      const chosen = { ...place().more };
      if (text.trim() === "") delete chosen[name];
      else chosen[name] = plain(text);
      go({ more: chosen }, when);
    };
    const first = usual === null ? words.say("studio.more.default") : typeof usual === "boolean" ? words.say(usual ? "yes" : "no") : String(usual);
    const values = kind === "bool" ? ["true", "false"].filter((value) => value !== String(usual)) : choices.filter((value) => value !== usual);
    const label = (/** @type {string} */ value) => (kind === "bool" ? words.say(value === "true" ? "yes" : "no") : value);
    const now = String(place().more[name] ?? "");
    const field = values.length
      ? html("select", { "data-more": name, "data-keep": `more-${name}`, onchange: (/** @type {Event} */ event) => choose(/** @type {HTMLSelectElement} */ (event.target).value) },
          html("option", { value: "" }, first), values.map((value) => html("option", { value, selected: value === now }, label(value))))
      : html("input", { class: "field short", inputmode: "decimal", placeholder: first, value: now, "data-more": name, "data-keep": `more-${name}`, oninput: (/** @type {Event} */ event) => choose(/** @type {HTMLInputElement} */ (event.target).value, "soon") });
    return html("label", { class: "select" }, html("span", {}, said[words.language] ?? name), field);
  }

  /** @param {Option} option */
  function optionField(option) {
    const label = words.say(`studio.option.${place().view}.${option.name}`);
    const current = place().options[option.name] ?? option.first;
    const choose = (/** @type {string | number | undefined} */ value, /** @type {"soon" | "now"} */ when = "now") => {
      const options = { ...place().options };
      if (value === undefined || value === "") delete options[option.name];
      else options[option.name] = value;
      go({ options }, when);
    };
    const keep = `option-${option.name}`;
    if (option.kind === "choice")
      return html("div", { class: "select" }, html("span", {}, label), html("div", { class: "choice", role: "group", "aria-label": label }, (option.values ?? []).map((value) =>
        html("button", { type: "button", "data-keep": `${keep}-${value}`, "aria-pressed": String(value === current), onclick: () => choose(value) }, words.say(`studio.value.${value}`)))));
    if (option.kind === "method")
      return html("span", { class: "select" }, html("span", {}, label), html("button", { type: "button", class: "save", "data-keep": keep, "aria-haspopup": "dialog", onclick: () =>
        pick({ words, place: home(), title: label, choices: methodChoices(), current: String(current), free: words.say("studio.method.free"), done: (value) => choose(value) }) }, title(String(current))));
    if (option.kind === "key")
      return html("label", { class: "select" }, html("span", {}, label), html("select", { "data-keep": keep, onchange: (/** @type {Event} */ event) => {
        const { value } = /** @type {HTMLSelectElement} */ (event.target);
        choose(value === "" ? undefined : Number(value));
      } }, html("option", { value: "" }, words.say("studio.value.largest")), (meta()?.keys ?? meta()?.tokens.map((_, i) => i) ?? []).map((i) => html("option", { value: i, selected: current === i }, `${i} · ${meta()?.tokens[i] ?? ""}`))));
    if (option.kind === "number") {
      const { input, wrong } = wholeNumber(keep, current, offers.limits.seed, () => place().options[option.name] ?? option.first, (value) => choose(value, "soon"));
      return html("label", { class: "select" }, html("span", {}, label), input, wrong);
    }
    const values = /** @type {number[]} */ (option.values);
    const nearest = (/** @type {number} */ wish) => values.reduce((best, value, i) => (Math.abs(value - wish) < Math.abs(values[best] - wish) ? i : best), 0);
    const reads = (/** @type {number} */ value) => (value === option.off ? words.say("studio.value.off") : Number.isInteger(value) ? words.count(value) : String(value));
    const output = html("output", {}, current === undefined ? words.say("studio.value.own") : reads(Number(current)));
    const start = current === undefined ? nearest(option.name === "dim" ? (meta()?.head_dim ?? 16) : 64) : nearest(Number(current));
    const slider = /** @type {HTMLInputElement} */ (html("input", { type: "range", min: 0, max: values.length - 1, step: 1, value: start, "data-keep": keep, "aria-valuetext": output.textContent, oninput: () => {
      const value = values[Number(slider.value)];
      output.textContent = reads(value);
      slider.setAttribute("aria-valuetext", output.textContent ?? "");
      choose(value, "soon");
    } }));
    return html("label", { class: "select slider" }, html("span", {}, label), slider, output);
  }

  /** Rebuild the row of the view's own options, unless one of them is in use. */
  let ownShown = "";
  let ownView = "";
  function updateOwn() {
    const { view, options, kind } = place();
    const given = optionsOf(place());
    const shown = (offers.site ? [] : USES[view]?.options ?? []).filter((one) => (!one.when || given[one.when[0]] === one.when[1]) && !(one.trained && kind === "fresh"));
    const key = JSON.stringify([view, shown.map((one) => one.name), shown.map((one) => (one.kind === "slider" ? 0 : options[one.name])), shown.some((one) => one.kind === "key") && [meta()?.tokens, meta()?.keys], meta()?.head_dim]);
    const busy = view === ownView && own.contains(document.activeElement) && document.activeElement instanceof HTMLInputElement;
    if (key === ownShown || busy) return;
    ownShown = key;
    ownView = view;
    const focused = own.contains(document.activeElement) && document.activeElement?.getAttribute("data-keep");
    own.replaceChildren(...shown.map(optionField));
    if (focused) /** @type {HTMLElement | null} */ (own.querySelector(`[data-keep="${focused}"]`))?.focus();
  }

  function updateOthers() {
    const { view, others: chosen } = place();
    others.hidden = view !== "sidebyside" || Boolean(offers.site);
    if (others.hidden) return;
    const name = (/** @type {string} */ other) => other === "live" ? words.say("studio.model.live") : other.startsWith("run:") ? (offers.runs.find((/** @type {any} */ one) => one.id === other.slice(4))?.title ?? other.slice(4)) : title(other.slice(6));
    const choices = () => [...offers.runs.map((/** @type {any} */ one) => ({ value: `run:${one.id}`, name: one.title, title: one.title, text: one.position ?? "" })), ...methodChoices().map((/** @type {any} */ one) => ({ ...one, value: `fresh:${one.value}` }))];
    others.replaceChildren(html("span", { class: "caption" }, words.say("studio.others")),
      ...chosen.map((other, i) => html("span", { class: "chip" }, name(other), html("button", { type: "button", class: "plain", "data-keep": `other-${i}`, "aria-label": words.say("studio.others.remove", { name: name(other) }), onclick: () => go({ others: chosen.filter((_, at) => at !== i) }) }, "✕"))),
      chosen.length < offers.limits.others && html("button", { type: "button", class: "save", "data-keep": "other-add", "aria-haspopup": "dialog", onclick: () =>
        pick({ words, place: home(), title: words.say("studio.others.add"), choices: choices(), current: "", done: (value) => go({ others: [...place().others, value] }) }) }, `+ ${words.say("studio.others.add")}`) || "");
  }

  function update() {
    const now = place();
    if (document.activeElement !== area) area.value = now.text;
    for (const button of kinds) button.setAttribute("aria-pressed", String(button.dataset.kindOfModel === now.kind));
    method.textContent = title(now.position) + (now.position.includes("(") ? ` ${now.position.slice(now.position.indexOf("("))}` : "");
    for (const field of /** @type {NodeListOf<HTMLInputElement>} */ (more.querySelectorAll("[data-more]")))
      if (document.activeElement !== field) field.value = String(now.more[field.dataset.more ?? ""] ?? "");
    for (const one of [...sizes, seed, runs, models, compared, ...Object.values(choosers)]) one.update();
    const uses = offers.site ? offers.site.look[now.view] ?? [] : USES[now.view]?.look ?? [];
    for (const [name, one] of Object.entries(choosers)) one.element.hidden = !uses.includes(name);
    const compares = now.view === "longer";
    const aside = now.view === "report" || compares;
    asked.hidden = aside;
    compared.element.hidden = !compares || !offers.comparisons.length;
    fresh.hidden = more.hidden = now.kind === "run" || (now.kind === "live" && running());
    chosenMethod.hidden = fresh.hidden;
    runs.element.hidden = now.kind !== "run" || !offers.runs.length;
    noRuns.hidden = now.kind !== "run" || offers.runs.length > 0;
    updateOwn();
    updateOthers();
    look.hidden = !uses.length && !own.children.length;
  }

  update();
  const element = html("div", { class: "choices" }, asked, others, compared.element);
  let flat = 0;
  let pressed = false;
  const height = () => element.getBoundingClientRect().height;
  const stretch = () => (element.style.marginBottom = textLine.classList.contains("typed") ? `${flat - height()}px` : "");
  /** @param {boolean} typed */
  const write = (typed) => {
    if (typed && !textLine.classList.contains("typed")) flat = height();
    textLine.classList.toggle("typed", typed);
    stretch();
  };
  const done = () => setTimeout(() => {
    pressed = false;
    write(document.activeElement === area);
  });
  new ResizeObserver(stretch).observe(element);
  area.addEventListener("focus", () => write(true));
  area.addEventListener("blur", () => pressed || write(false)); // what is being pressed must not move before it is clicked
  element.addEventListener("pointerdown", () => {
    pressed = true;
    addEventListener("pointerup", done, { once: true });
  });
  return { element, asked, update, methods };
}

/** The longer example, over and over. @param {import("./words.js").Words} words */
export function longest(words) {
  return Array(LONG).fill(words.say("studio.sample.long.text")).join(" ");
}

/** Options, in groups where they have one. @param {[string | number, string, string?][]} list */
function grouped(list) {
  const names = [...new Set(list.map(([, , group]) => group))];
  const options = (/** @type {string | undefined} */ of) => list.filter(([, , group]) => group === of).map(([value, label]) => html("option", { value }, label));
  return names.flatMap((name) => (name ? html("optgroup", { label: name }, options(name)) : options(name)));
}

/** @param {readonly number[]} list @param {number} value */
function withOwn(list, value) {
  return list.includes(value) ? [...list] : [...list, value].sort((a, b) => a - b);
}
