/** The studio's page: views on the left, text and model at the top, the view below. */

import { calmly, reason } from "./asking.js";
import { USES, controlPanel, longest, optionsOf } from "./controls.js";
import { html } from "./dom.js";
import { drawView } from "./figures.js";
import { mount, recall, remember } from "./frame.js";
import { told } from "./parts.js";
import { nextRequests, nextStrip } from "./next.js";
import { addressOf, modelOf, placeOf } from "./place.js";
import { shareTools } from "./share.js";
import { termsIn } from "./terms.js";
import { tour } from "./tour.js";
import { trainingPanel } from "./training.js";

/** @typedef {import("./place.js").Place} Place */
/** @typedef {{ view: import("./figures.js").View, meta: any, place?: Partial<Place> }} Answer with what is shown instead of what was asked for */
/**
 * @typedef {object} Source where views come from: the studio's server, or files composed beforehand
 * @property {((asked: Record<string, unknown>) => Promise<Answer>) & { end: () => void }} views the newest call counts
 * @property {((asked: Record<string, unknown>) => Promise<import("./next.js").Found>) | null} [next] the likeliest next tokens of a text
 * @property {ReturnType<typeof import("./training.js").followTraining>} training
 * @property {() => Promise<import("./share.js").Template>} page an empty page, to save a view in
 * @property {((asked: Record<string, unknown>) => Promise<Blob>) | null} picture draws a view for print
 */

const GROUPS = /** @type {const} */ ([
  ["compute", ["stepper", "projection", "scaling", "softmax"]],
  ["heads", ["wall", "head", "split", "distance", "long"]],
  ["predict", ["prediction", "generation"]],
  ["position", ["vectors", "similarity", "bias", "rotation"]],
  ["compare", ["sidebyside", "whatif", "longer", "report"]],
  ["learning", ["film", "step", "board"]],
]);
const OF_TRAINING = ["film", "step", "board"];
/** Views whose rows and columns are the text's tokens: a click chooses the query. */
const OF_PAIRS = ["head", "split", "whatif"];
const BESIDE = ["fresh:alibi", "fresh:none"];
const COMMANDS = () => html("pre", { tabindex: "0" }, html("code", {}, "headway compare\nheadway studio headway-compare"));
const TYPING = 250; // milliseconds after the last key before the view is requested
const SHORT = 512; // tokens that a single map can show
const LIVE = 700; // milliseconds between two requests about a model that trains

/**
 * @param {HTMLElement} element emptied and filled
 * @param {any} offers what there is to choose from
 * @param {Record<string, Record<string, string>>} strings
 * @param {Source} source
 */
export function open(element, offers, strings, source) {
  const first = offers.first;
  /** @type {Place} */
  const trained = offers.opening?.asked.model.run ?? ""; // an address that names no model is about that of the opening
  const groups = GROUPS.map(([name, views]) => /** @type {[string, string[]]} */ ([name, views.filter((view) => !offers.site || offers.site.views.includes(view))])).filter(([, views]) => views.length);
  const order = groups.flatMap(([, views]) => views);
  const home = { view: order.includes(first.view) ? first.view : order[0], text: first.text, kind: trained ? "run" : "fresh", ...first.model.fresh, run: trained || (offers.runs[0]?.id ?? ""), layer: first.layer, head: first.head, query: first.query, column: first.column, others: [], results: "", options: {}, more: {} };
  const last = location.hash.length > 1 ? "" : recall("last") ?? ""; // of an earlier session: an address with "#" is followed
  /** What an address without a state shows. @type {{ asked: any, texts: Record<string, string> } | null} */
  const opening = offers.opening ?? null;
  let untouched = opening !== null && location.hash.length < 2; // its text is in the reader's language until there is another
  /** The state in the address, with a valid view; without one, that of the opening. */
  const here = () => {
    if (opening && location.hash.length < 2) {
      const { view, text, layer, head, model } = opening.asked;
      return { ...home, view, text, layer, head, kind: "run", run: model.run };
    }
    const found = placeOf(location.hash, home, history.state?.text);
    return order.includes(found.view) ? found : { ...found, view: home.view };
  };
  let place = here();
  /** Each view's own options while the page is open. @type {Record<string, Place["options"]>} */
  const options = { [place.view]: place.options };
  /** @type {{ view: any, meta: any } | null} */
  let answer = null;
  /** @type {any} an Error, whose message may be in both languages */
  let failure = null;
  let waiting = false;
  let moved = false; // away from what was opened
  let answered = ""; // the request of the shown view
  const touring = { at: -1 };
  const wishes = { source: "typed", optimizer: "adamw", lr: "", steps: "1000" };
  const { training, views: asked } = source;
  /** What the present build of the page is made of. @type {any} */
  let built = null;

  const typed = calmly(load, TYPING);
  const next = nextRequests(source.next ?? null, () => place, () => built?.next());

  /**
   * Change the state, store it in the address, and request the view.
   * @param {Partial<Place>} change
   * @param {"soon" | "now"} [when] soon waits for the next key or move, and leaves no trace in the browser's history
   */
  function go(change, when = "now") {
    options[place.view] = place.options;
    if (change.text !== undefined) untouched = false;
    place = { ...place, ...change };
    if (change.options) options[place.view] = change.options;
    if (change.view && !change.options) place.options = options[change.view] ?? {};
    if (change.view) furnish();
    store(when === "soon");
    built?.update();
    if (when === "soon") typed.soon();
    else typed.now();
  }

  /** A view of several models starts with some. */
  function furnish() {
    if (place.view !== "sidebyside" || place.others.length) return;
    const own = offers.runs.find((/** @type {any} */ one) => one.id === place.run)?.vocabulary; // the same tokens
    const runs = offers.runs.filter((/** @type {any} */ one) => own && one.vocabulary === own && one.id !== place.run).map((/** @type {any} */ one) => `run:${one.id}`);
    place.others = place.kind === "run" && runs.length ? runs.slice(0, 2) : [...BESIDE];
  }

  /** What the view still needs: a key of the words, or "". */
  function lacking() {
    const { view, kind, others } = place;
    if (offers.site) return offers.site.parts.some((/** @type {string} */ name) => name.startsWith(`${view}-`)) || view === "report" ? "" : view === "longer" ? "comparison" : "site";
    if (view === "longer" && !offers.comparisons.length) return "comparison";
    if (view === "sidebyside" && !others.length) return "others";
    if (["longer", "report"].includes(view)) return "";
    if (kind === "run" && !offers.runs.length) return "run";
    if (kind === "run" && view === "film" && offers.runs.some((/** @type {any} */ one) => one.id === place.run && !one.watched)) return "watch";
    const begun = training.points().length > 0;
    if (kind === "live" && training.told().state === "none") return "training";
    if ((view === "film" || view === "board") && (kind === "fresh" || (kind === "live" && !begun))) return "training";
    return "";
  }

  /** @param {boolean} replace */
  function store(replace) {
    const state = { text: place.text };
    const address = addressOf(place, home);
    if (replace || address === location.hash) history.replaceState(state, "", address);
    else history.pushState(state, "", address);
    moved ||= Boolean(answer);
    if (moved) remember("last", addressOf(place, null));
  }

  function question() {
    const { view, text, layer, head, query, column, others, results } = place;
    const compared = view === "longer" ? results || offers.comparisons[0]?.id || "" : "";
    return {
      view, text, layer, head, query, column,
      model: modelOf(place),
      others: view === "sidebyside" ? others.map((other) => modelOf(place, other)) : [],
      results: compared,
      options: optionsOf(place),
    };
  }

  async function load() {
    if (place.view === "report" || lacking()) {
      asked.end();
      answer = null;
      failure = null;
      return settle(true);
    }
    const wanted = question();
    const key = JSON.stringify(wanted);
    waiting = true;
    built?.state();
    try {
      const found = await asked(wanted);
      // typing keeps the scroll position; another view starts at its top
      const other = answer?.view.key !== found.view.key;
      answer = found;
      failure = null;
      answered = key;
      const { layer, head, column, query: row } = found.meta; // the nearest valid ones in the model
      place = { ...place, ...found.place, layer, head, column, query: place.query < 0 ? place.query : row };
      settle(other);
    } catch (error) {
      if (/** @type {Error} */ (error).name === "AbortError") return;
      answer = null;
      failure = error;
      settle(true);
    }
  }

  /** @param {boolean} other whether it is another view than before */
  function settle(other) {
    waiting = false;
    built?.show(other);
    built?.update();
    built?.state();
    if (!lacking()) next.ask(place.kind === "live");
  }

  const running = () => ["playing", "paused"].includes(training.told().state);

  // The view of a model that trains is refreshed after new steps, one request at a time.
  let looked = 0;
  let again = 0;
  let seen = "";
  let state = "none";
  training.listen((now) => {
    built?.panel();
    if (now.state !== state) built?.update();
    state = now.state;
    const news = `${now.session}-${now.finished}`;
    const concerned = place.kind === "live" || place.others.includes("live");
    if (!concerned || now.state === "none" || news === seen || place.view === "report") return;
    seen = news;
    clearTimeout(again);
    const wait = Math.max(0, looked + LIVE - performance.now());
    const look = () => {
      if (waiting) return void (again = window.setTimeout(look, 100));
      looked = performance.now();
      load();
    };
    again = window.setTimeout(look, wait);
  });

  addEventListener("popstate", () => {
    place = here();
    moved = true;
    options[place.view] = place.options;
    furnish();
    built?.update();
    if (JSON.stringify(question()) !== answered || failure) load();
  });
  addEventListener("keydown", (event) => shortcut(event));

  /** @param {number} by */
  const turn = (by) => go({ view: order[(order.indexOf(place.view) + by + order.length) % order.length] });
  /** @param {"layer" | "head" | "query"} what @param {number} by */
  const move = (what, by) => {
    const count = { layer: answer?.meta.layers, head: answer?.meta.heads, query: answer?.meta.tokens.length }[what];
    if (!count || !USES[place.view]?.look.includes(what)) return;
    go({ [what]: (((place[what] + by) % count) + count) % count });
  };
  /** @type {Record<string, () => void>} */
  const keys = {
    j: () => turn(1),
    k: () => turn(-1),
    "[": () => move("layer", -1),
    "]": () => move("layer", 1),
    "{": () => move("head", -1),
    "}": () => move("head", 1),
    ",": () => move("query", -1),
    ".": () => move("query", 1),
    "/": () => element.querySelector("textarea")?.focus(),
    m: () => built.methods(),
    p: () => element.querySelector('[data-live="pause"]:not([hidden]), [data-live="play"]:not([hidden]), [data-live="start"]:not([hidden])')?.dispatchEvent(new MouseEvent("click")),
    s: () => element.querySelector('[data-live="step"]')?.dispatchEvent(new MouseEvent("click")),
    "?": () => help(),
  };

  /** @param {KeyboardEvent} event */
  function shortcut(event) {
    const target = /** @type {HTMLElement} */ (event.target);
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    if (target.matches('textarea, select, input:not([type="range"])')) {
      if (event.key === "Escape") target.blur();
      return;
    }
    const act = keys[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  }

  function help() {
    const { words } = built;
    const rows = [["j k", "view"], ["[ ]", "layer"], ["{ }", "head"], [", .", "query"], ["/", "text"], ["m", "method"], ["p", "play"], ["s", "step"], ["?", "help"], ["← ↑ → ↓", "cell"], ["Esc", "escape"]];
    dialogOf(words.say("studio.keys"), html("dl", {}, rows.map(([key, what]) => html("div", {}, html("dt", {}, key.split(" ").map((one) => html("kbd", {}, one))), html("dd", {}, words.say(`studio.key.${what}`))))));
  }

  /** @param {string} title @param {HTMLElement} content */
  function dialogOf(title, content) {
    const dialog = /** @type {HTMLDialogElement} */ (html("dialog", { class: "picker help", "aria-label": title, onclose: () => dialog.remove() },
      html("div", { class: "picker-head" }, html("h2", {}, title), html("button", { type: "button", class: "plain", "aria-label": built.words.say("studio.close"), onclick: () => dialog.close() }, "✕")), content));
    element.append(dialog);
    dialog.showModal();
  }

  mount(element, strings, ({ words, updates, controls }) => {
    const titles = new Map([...offers.views.map((/** @type {any} */ one) => [one.key, [told(words, one.title), told(words, one.question)]]), ["report", [words.say("view.report.title"), words.say("view.report.question")]]]);
    const title = (/** @type {string} */ key) => titles.get(key)?.[0] ?? key;
    document.title = `${title(place.view)} · headway studio`;
    if (opening && untouched && place.text !== opening.texts[words.language]) {
      place.text = opening.texts[words.language];
      if (built) typed.now();
    }

    const links = order.map((key) => html("a", { href: `#view=${key}`, title: titles.get(key)?.[1], "data-view-link": key, "data-keep": `view-${key}`, onclick: (/** @type {MouseEvent} */ event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      go({ view: key });
    } }, title(key)));
    const group = (/** @type {string} */ name, /** @type {readonly string[]} */ views) => html("section", {}, html("h2", {}, words.say(`studio.group.${name}`)), html("ul", {}, views.map((key) => html("li", {}, links[order.indexOf(key)]))));
    const short = /** @type {HTMLSelectElement} */ (html("select", { "data-keep": "view-select", "aria-label": words.say("studio.views"), onchange: () => go({ view: short.value }) },
      groups.map(([name, views]) => html("optgroup", { label: words.say(`studio.group.${name}`) }, views.map((key) => html("option", { value: key }, title(key)))))));
    const nav = html("nav", { class: "views-nav", "aria-label": words.say("studio.views") }, groups.map(([name, views]) => group(name, views)));

    const panel = controlPanel(words, offers, { place: () => place, meta: () => answer?.meta ?? null, go, running, home: () => element });
    const live = trainingPanel(words, training, {
      place: () => place,
      limits: offers.limits,
      wishes,
      started: () => go({ kind: "live", ...(OF_TRAINING.includes(place.view) ? {} : { view: "board" }) }),
      look: (view) => go({ view, kind: "live" }),
    });
    const strip = nextStrip(words, { place: () => place, go, requests: next });
    panel.asked.after(strip.element);
    const hint = html("p", { class: "hint", hidden: true }, words.say("studio.long.short"), " ", html("button", { type: "button", class: "save", "data-keep": "long", onclick: () => go({ text: longest(words) }) }, words.say("studio.sample.thousands")));
    const before = placeOf(last, home).view;
    const resume = html("p", { class: "hint", hidden: !last || !order.includes(before) }, html("button", { type: "button", class: "save", "data-keep": "resume", onclick: () => (location.hash = last) }, words.say("studio.resume", { view: title(before) })));
    const suited = html("p", { class: "hint instead", role: "note", hidden: true });
    const status = html("p", { class: "status", role: "status" });
    const shown = html("div", { class: "screen", id: "studio-view", tabindex: "-1", "aria-busy": "false" });
    const terms = termsIn(words, offers.glossary);
    for (const kind of ["click", "keyup"]) shown.addEventListener(kind, () => terms.explain(shown)); // another stage has other words
    /** @type {ReturnType<typeof drawView> | null} */
    let drawn = null;
    let key = "";

    // A tile of the wall opens its head; a cell of a map of pairs chooses its query.
    shown.addEventListener("headway:choose", (event) => {
      const { layer, head } = /** @type {CustomEvent} */ (event).detail;
      go({ view: "head", layer, head });
    });
    // A stage or a number opens the view behind it.
    shown.addEventListener("headway:open", (event) => {
      const { options: given, ...change } = /** @type {CustomEvent} */ (event).detail;
      go(given ? { ...change, options: { ...options[change.view], ...given } } : change);
    });
    shown.addEventListener("headway:cell", (event) => {
      const { row, column } = /** @type {CustomEvent} */ (event).detail;
      const tokens = answer?.meta.tokens.length ?? 0;
      if (place.view === "projection") go({ query: row, column });
      else if (OF_PAIRS.includes(place.view) && row < tokens) go({ query: row, ...(place.view === "split" ? { options: { ...place.options, key: column } } : {}) });
    });

    built = {
      words,
      methods: panel.methods,
      panel: () => live.update(),
      next: strip.update,
      update() {
        if (moved) resume.hidden = true;
        document.title = `${title(place.view)} · headway studio`;
        for (const link of links) {
          if (link.dataset.viewLink === place.view) {
            if (!link.hasAttribute("aria-current")) within(nav, link);
            link.setAttribute("aria-current", "page");
          } else link.removeAttribute("aria-current");
        }
        short.value = place.view;
        live.element.hidden = Boolean(offers.site) || place.kind !== "live" && (place.kind === "run" || !OF_TRAINING.includes(place.view));
        panel.update();
        strip.update();
      },
      state() {
        shown.setAttribute("aria-busy", String(waiting));
        hint.hidden = Boolean(offers.site) || place.view !== "long" || !answer || answer.meta.count >= SHORT;
        const lacks = waiting ? null : instead(words);
        if (lacks) suited.replaceChildren(...lacks);
        suited.hidden = !suited.childNodes.length || ["longer", "report"].includes(place.view) || answer?.view.key !== place.view;
        status.textContent = waiting ? words.say("studio.waiting") : answer && place.view !== "longer" ? words.say("studio.shown", { view: title(place.view), name: answer.meta.name === "live" ? words.say("studio.model.live") : answer.meta.name, n: words.count(answer.meta.count) }) : "";
      },
      /** @param {boolean} other */
      show(other) {
        if (answer && !failure && drawn && key === answer.view.key) {
          drawn.set(answer.view); // keeps what the reader has opened and pointed at
          drawn.draw();
          return terms.explain(shown);
        }
        drawn = null;
        const lacks = lacking();
        if (failure) shown.replaceChildren(refusal(words));
        else if (place.view === "report") shown.replaceChildren(reports(words));
        else if (lacks) shown.replaceChildren(invitation(words, lacks));
        else if (answer) {
          drawn = drawView(answer.view, words);
          key = answer.view.key;
          shown.replaceChildren(drawn.element);
          drawn.draw();
          if (place.kind === "live") newestFrame(drawn.element);
        }
        terms.explain(shown);
        if (other && window.scrollY > shown.offsetTop) shown.scrollIntoView();
      },
    };
    updates.push(() => drawn?.draw());
    built.update();
    built.show(false);
    built.state();

    const guide = tour(words, { go, state: touring, has: (view) => order.includes(view) });
    const share = shareTools(words, strings, { place: () => place, answer: () => answer, question, screen: shown, source });
    // when all is in its place: the list scrolls to the view that a link has opened
    updates.push(() => within(nav, links[order.indexOf(place.view)]));
    return [
      html("header", { class: "topline" },
        html("span", { class: "brand" }, "headway", html("span", {}, words.say("studio.brand"))),
        html("div", { class: "controls" }, !offers.site && guide.button, html("button", { type: "button", class: "save", "data-keep": "terms", "aria-haspopup": "dialog", onclick: () => dialogOf(words.say("studio.terms"), terms.list()) }, words.say("studio.terms")), share, html("button", { type: "button", class: "save", "data-keep": "help", "aria-haspopup": "dialog", onclick: help }, words.say("studio.keys"), " ", html("kbd", {}, "?")), controls)),
      html("div", { class: "studio-body" },
        nav,
        html("div", { class: "studio-main" },
          html("div", { class: "short-nav" }, html("label", { class: "select" }, html("span", {}, words.say("studio.views")), short)),
          panel.element, live.element, status, resume, hint, suited, shown)),
      guide.element,
      terms.tip,
    ];
  });

  /** That the method has nothing to show in this view, what is shown instead, and how to choose it. @param {import("./words.js").Words} words */
  function instead(words) {
    const { instead: told, position, name: model } = answer?.meta ?? {};
    if (!told || failure) return [];
    const name = (/** @type {string} */ spec) => offers.methods.find((/** @type {any} */ one) => one.name === spec.split("(")[0])?.title ?? spec;
    return [html("span", {}, words.say("studio.instead", { of: name(told.of), shown: name(position), model })), " ",
      ...told.suits.map((/** @type {string} */ spec) => html("button", { type: "button", class: "save", "data-suits": spec, onclick: () => go({ position: spec, kind: "fresh" }) }, words.say("studio.instead.choose", { name: name(spec) })))];
  }

  /** Why a view cannot be shown. @param {import("./words.js").Words} words */
  function refusal(words) {
    return headed(words, html("div", { class: "warning", role: "alert" }, html("p", {}, html("strong", {}, words.say("studio.refused")), " ", html("span", { lang: failure.said || !failure.message ? null : "en" }, reason(words, failure)))));
  }

  /** What to do first. @param {import("./words.js").Words} words @param {string} lacks */
  function invitation(words, lacks) {
    return headed(words, html("p", { class: "invitation" }, words.say(`studio.lacks.${lacks}`)), lacks === "comparison" && COMMANDS(), lacks === "watch" && html("pre", { tabindex: "0" }, html("code", {}, "headway train --watch 10")));
  }

  /** The view's title and question, and what stands in its place. @param {import("./words.js").Words} words @param {...import("./dom.js").Child} children */
  function headed(words, ...children) {
    return html("section", { class: "view", "data-view": place.view }, html("h2", {}, words.say(`view.${place.view}.title`)), html("p", { class: "question" }, words.say(`view.${place.view}.question`)), children);
  }

  /** @param {import("./words.js").Words} words */
  function reports(words) {
    return headed(words, ...(offers.comparisons.length
        ? [html("p", { class: "invitation" }, words.say("studio.report.there")), html("ul", { class: "reports" }, offers.comparisons.map((/** @type {any} */ one) => html("li", {}, html("a", { href: one.href ?? `/report/${one.id}`, target: "_blank", rel: "noopener" }, words.say("studio.report.open", { name: one.title })))))]
        : [html("p", { class: "invitation" }, words.say("studio.report.how")), COMMANDS()]),
      html("p", { class: "quiet invitation" }, words.say("studio.report.what")));
  }

  furnish();
  store(true);
  load();
}

/** A film of a training that goes on begins with its newest frame, and then follows it. @param {Element} element */
function newestFrame(element) {
  const slider = /** @type {HTMLInputElement | null} */ (element.querySelector('.film input[type="range"]'));
  if (!slider) return;
  slider.value = slider.max;
  slider.dispatchEvent(new Event("input"));
}

/** Scroll a list so that one of its parts is seen, and nothing else on the page. @param {HTMLElement} list @param {HTMLElement} part */
function within(list, part) {
  const [outer, inner] = [list.getBoundingClientRect(), part.getBoundingClientRect()];
  if (inner.top < outer.top) list.scrollTop -= outer.top - inner.top + 40;
  if (inner.bottom > outer.bottom) list.scrollTop += inner.bottom - outer.bottom + 40;
}
