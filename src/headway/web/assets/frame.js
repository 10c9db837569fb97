/** Common to every page: language and theme, redrawing, facts in pairs, the command that made it. */

import { html } from "./dom.js";
import { firstLanguage, wordsIn } from "./words.js";

/** @typedef {import("./words.js").Words} Words */
/**
 * @typedef {object} Shell
 * @property {Words} words in the reader's language
 * @property {(() => void)[]} updates called after each build, and again when the width changes
 * @property {HTMLElement} controls buttons for theme and language
 */

/**
 * Fill an element with a page, and again whenever the reader chooses another language.
 * @param {HTMLElement} element emptied and filled
 * @param {Record<string, Record<string, string>>} strings
 * @param {(shell: Shell) => import("./dom.js").Child[]} content
 * @param {{ language?: string, theme?: string }} [wish] before the reader chooses; else as the browser
 * @returns {() => void} takes the page out again
 */
export function mount(element, strings, content, wish = {}) {
  const chosen = { language: recall("language"), theme: recall("theme") };
  const state = {
    language: [chosen.language, wish.language].find((one) => one && Object.hasOwn(strings, one)) ?? firstLanguage(navigator.languages ?? [navigator.language]),
    theme: [chosen.theme, wish.theme].find((one) => THEMES.includes(one ?? "")) ?? "auto",
  };
  /** @type {(() => void)[]} */
  let updates = [];
  const update = () => updates.forEach((one) => one());

  function paint() {
    if (state.theme === "auto") element.removeAttribute("data-theme");
    else element.setAttribute("data-theme", state.theme);
  }

  function build() {
    const words = wordsIn(strings, state.language);
    updates = [];
    const scroll = window.scrollY;
    const focused = document.activeElement?.getAttribute("data-keep");
    element.lang = state.language === "zh" ? "zh-CN" : "en";
    element.classList.add("headway");
    element.replaceChildren(html("div", { class: "page" }, content({ words, updates, controls: controls(words) })));
    update();
    if (focused) /** @type {HTMLElement | null} */ (element.querySelector(`[data-keep="${focused}"]`))?.focus();
    window.scrollTo(0, scroll);
  }

  /** @param {Words} words */
  function controls(words) {
    const choose = (/** @type {"theme" | "language"} */ key, /** @type {string} */ value, /** @type {string} */ text, /** @type {() => void} */ act, lang = "") =>
      html(
        "button",
        { type: "button", "data-keep": `${key}-${value}`, lang: lang || null, "aria-pressed": String(state[key] === value), onclick: (/** @type {Event} */ event) => {
          state[key] = value;
          if (event.isTrusted) remember(key, value); // not what a page around this one wishes
          act();
        } },
        text,
      );
    const themes = THEMES.map((theme) =>
      choose("theme", theme, words.say(`theme.${theme}`), () => {
        paint();
        update();
        for (const button of element.querySelectorAll('[data-keep^="theme-"]'))
          button.setAttribute("aria-pressed", String(button.getAttribute("data-keep") === `theme-${theme}`));
      }),
    );
    const languages = /** @type {const} */ ([["en", "EN"], ["zh", "中文"]]).map(([language, text]) =>
      choose("language", language, text, build, language === "zh" ? "zh-CN" : "en"),
    );
    return html(
      "div",
      { class: "controls" },
      html("div", { class: "choice", role: "group", "aria-label": words.say("theme.label") }, themes),
      html("div", { class: "choice", role: "group", "aria-label": words.say("language.label") }, languages),
    );
  }

  paint();
  build();
  const stop = onNewLook(element, update);
  return () => {
    stop();
    element.replaceChildren();
  };
}

const THEMES = ["auto", "light", "dark"];
/** Each page has its own memory: files share one origin. */
const memoryOf = (/** @type {string} */ key) => `headway:${location.pathname}:${key}`;

/**
 * What the reader chose on this page before.
 * @param {string} key
 * @returns {string | null}
 */
export function recall(key) {
  try {
    return localStorage.getItem(memoryOf(key));
  } catch {
    return null; // a frame of a notebook may have no storage
  }
}

/**
 * For the next time that this page is opened.
 * @param {string} key
 * @param {string} value
 */
export function remember(key, value) {
  try {
    localStorage.setItem(memoryOf(key), value);
  } catch {
    // as above: forgotten on reload
  }
}

/**
 * Call back when an element's width, the system's theme or the zoom changes, or when printing: whatever is drawn in
 * pixels must be redrawn.
 * @param {Element} element
 * @param {() => void} update
 * @returns {() => void} stops it
 */
export function onNewLook(element, update) {
  let width = element.clientWidth;
  const observer = new ResizeObserver(() => {
    if (element.clientWidth === width) return;
    width = element.clientWidth;
    update();
  });
  observer.observe(element);
  const queries = ["(prefers-color-scheme: dark)", "print", `(resolution: ${window.devicePixelRatio}dppx)`].map((query) => window.matchMedia(query));
  for (const query of queries) query.addEventListener("change", update);
  return () => {
    observer.disconnect();
    for (const query of queries) query.removeEventListener("change", update);
  };
}

/**
 * The head of a page.
 * @param {Shell} shell
 * @param {string} brand what kind of page it is
 * @param {string} title
 * @param {import("./dom.js").Child[]} facts
 */
export function head({ controls }, brand, title, facts) {
  return html(
    "header",
    {},
    html("div", { class: "topline" }, html("span", { class: "brand" }, "headway", html("span", {}, brand)), controls),
    html("h1", {}, title),
    html("p", { class: "facts" }, facts.filter(Boolean).map((fact) => html("span", {}, fact))),
  );
}

/**
 * How it was run: settings, versions and machine, and the command to run it again.
 * @param {Words} words
 * @param {{ settings: Record<string, unknown>, environment: Record<string, unknown>, command?: string | null }} results
 */
export function howItWasRun(words, { settings, environment, command }) {
  const list = (/** @type {Record<string, unknown>} */ record) =>
    html("dl", { class: "pairs" }, Object.entries(record).map(([key, value]) =>
      html("div", {}, html("dt", {}, words.has(`setting.${key}`) ? words.say(`setting.${key}`) : (key.charAt(0).toUpperCase() + key.slice(1)).replaceAll("_", " ")), html("dd", {}, plainly(words, value)))));
  return html("section", { class: "settings" },
    html("h2", {}, words.say("settings.title")),
    html("div", { class: "columns" },
      html("div", {}, html("h3", {}, words.say("settings.run")), list(settings)),
      html("div", {}, html("h3", {}, words.say("settings.machine")), list(environment))),
    html("h3", {}, words.say("reproduce.title")),
    command
      ? [html("p", {}, words.say("reproduce.text")), html("pre", { tabindex: "0" }, html("code", {}, String(command)))]
      : html("p", {}, words.say("reproduce.none")));
}

/**
 * The last line of a page.
 * @param {Words} words
 * @param {unknown} version
 */
export function foot(words, version) {
  return html("footer", {}, words.say("footer", { version: String(version ?? "") }));
}

/**
 * A date and time in the format of the reader's language.
 * @param {Words} words
 * @param {string} text
 */
export function dated(words, text) {
  const date = new Date(text);
  if (Number.isNaN(date.getTime())) return text;
  return `${new Intl.DateTimeFormat(words.language === "zh" ? "zh-CN" : "en-GB", { dateStyle: "long", timeStyle: "short", timeZone: "UTC" }).format(date)} UTC`;
}

/** @param {Words} words @param {unknown} value @returns {string} */
function plainly(words, value) {
  if (value === null || value === undefined) return "–";
  if (typeof value === "boolean") return words.say(value ? "yes" : "no");
  if (typeof value === "number") return Number.isInteger(value) ? words.count(value) : String(value);
  if (Array.isArray(value)) return value.map((one) => plainly(words, one)).join(", ");
  if (typeof value === "object") return Object.entries(value).map(([key, one]) => `${key} ${plainly(words, one)}`).join(", ");
  return String(value);
}
