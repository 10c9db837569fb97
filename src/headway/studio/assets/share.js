/** What is shown, for others: a link to it, and files of it. */

import { reason } from "./asking.js";
import { html, offer } from "./dom.js";
import { addressOf } from "./place.js";
import { popover } from "./popover.js";
import { wordsIn } from "./words.js";

/** @typedef {{ html: string, strings: Record<string, Record<string, string>>, version: string }} Template an empty page, and what it says */

const EMPTY = '<script type="application/json" id="data">{}</script>';
const PICTURES = ["svg", "png", "pdf"];
const LONG = 80; // characters of a text that is a title
const COPIED = 2500; // milliseconds

/**
 * "Copy link" and the menu "Save".
 * @param {import("./words.js").Words} words
 * @param {Record<string, Record<string, string>>} strings
 * @param {object} options
 * @param {() => import("./place.js").Place} options.place
 * @param {() => import("./studio.js").Answer | null} options.answer what is shown
 * @param {() => Record<string, unknown>} options.question
 * @param {Element} options.screen where it is shown
 * @param {import("./studio.js").Source} options.source
 * @returns {HTMLElement[]}
 */
export function shareTools(words, strings, { place, answer, question, screen, source }) {
  const copy = html("button", { type: "button", class: "save", "data-keep": "copy-link", onclick: copyLink }, words.say("studio.share.link"));
  const said = html("span", { class: "hidden-visually", role: "status" });
  const list = html("div", { class: "menu", role: "group", "aria-label": words.say("studio.share.save") });
  const problem = html("p", { class: "warning", role: "alert", hidden: true });
  const menu = popover("save", `${words.say("studio.share.save")} ▾`, list, problem);
  menu.panel.addEventListener("beforetoggle", (event) => /** @type {ToggleEvent} */ (event).newState === "open" && fill());

  async function copyLink() {
    const address = location.href.split("#")[0] + addressOf(place(), null);
    try {
      await navigator.clipboard.writeText(address);
      copy.textContent = said.textContent = words.say("studio.share.copied");
      setTimeout(() => (copy.textContent = words.say("studio.share.link")), COPIED);
    } catch {
      history.replaceState(history.state, "", addressOf(place(), null)); // from there it can be copied by hand
      said.textContent = copy.textContent = words.say("studio.share.address");
    }
  }

  function fill() {
    const item = (/** @type {string} */ key, /** @type {string} */ text, /** @type {() => unknown} */ act) =>
      html("button", { type: "button", "data-save": key, onclick: () => run(act) }, text);
    const note = (/** @type {string} */ text) => html("p", { class: "quiet" }, text);
    problem.hidden = true;
    if (!answer()) return list.replaceChildren(note(words.say("studio.share.nothing")));
    const sheets = /** @type {HTMLElement[]} */ ([...screen.querySelectorAll("[data-csv]")]).filter((one) => one.offsetParent);
    const name = (/** @type {HTMLElement} */ one, /** @type {number} */ i) => one.closest("figure")?.querySelector(".shown-title")?.textContent || String(i + 1);
    list.replaceChildren(
      item("html", words.say("studio.share.html"), savePage),
      ...(source.picture ? PICTURES.map((kind) => item(kind, words.say(`studio.share.${kind}`), () => savePicture(kind))) : [note(words.say("studio.share.pictures"))]),
      ...sheets.map((one, i) => item("csv", words.say("studio.share.csv", { name: name(one, i) }), () => one.click())));
  }

  /** @param {() => unknown} act */
  async function run(act) {
    try {
      await act();
      menu.close();
    } catch (error) {
      problem.textContent = reason(words, error);
      problem.hidden = false;
    }
  }

  const file = (/** @type {string} */ ending) => `headway-${place().view}.${ending}`;

  async function savePage() {
    const template = await source.page();
    offer(file("html"), new Blob([pageOf(template, /** @type {import("./studio.js").Answer} */ (answer()), strings, words.language)], { type: "text/html;charset=utf-8" }));
  }

  /** @param {string} kind */
  async function savePicture(kind) {
    if (source.picture) offer(file(kind), await source.picture({ ...question(), format: kind, language: words.language }));
  }

  return [copy, menu.element, said];
}

/**
 * A view as a page of its own, with what the reader has opened and chosen in it.
 * @param {Template} template
 * @param {import("./studio.js").Answer} answer
 * @param {Record<string, Record<string, string>>} strings
 * @param {string} language
 */
function pageOf(template, { view, meta }, strings, language) {
  const both = (/** @type {(words: import("./words.js").Words) => string} */ say) => Object.fromEntries(Object.keys(strings).map((one) => [one, say(wordsIn(strings, one))]));
  const text = meta.tokens.join(" ");
  const facts = [
    both((words) => words.say("studio.shown", { name: meta.name === "live" ? words.say("studio.model.live") : meta.name, n: words.count(meta.count) })),
    both((words) => words.say("studio.share.place", { layer: meta.layer, head: meta.head })),
  ];
  const data = { title: both(() => (text.length > LONG ? `${text.slice(0, LONG)}…` : text)), facts, views: [view], version: template.version, strings: template.strings, language };
  // no server stands behind the page: of a map of tiles it has the overview
  const plain = JSON.stringify(data, (_, value) => (value?.kind === "tiles" ? { ...value, source: "" } : value)).replaceAll("<", "\\u003c");
  return template.html.replace(EMPTY, () => EMPTY.replace("{}", () => plain));
}
