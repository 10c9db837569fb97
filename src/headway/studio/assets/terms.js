/** The field's terms: explained where they occur, and all of them as a list. */

import { html } from "./dom.js";

/** @typedef {Record<string, [string, string]>} Term its name and its meaning in each language */

const MOST = 5; // explained terms of a view: each is a stop of the tab key
const MARGIN = 6; // pixels
const EXPLAINED = ".view > :is(.question, .finding), .notes li, .stage-said";

/** What a term is called in a text: "query, key, value" are three, and a remark in brackets is none. @param {string} name */
const namesOf = (name) => name.replace(/ ?[(（].*[)）]/, "").split(/[,，] ?/).filter((one) => one.length > 1 || one > "\u2e80");

/**
 * @param {import("./words.js").Words} words
 * @param {Term[]} glossary
 * @returns {{ explain: (place: Element) => void, tip: HTMLElement, list: () => HTMLElement }}
 */
export function termsIn(words, glossary) {
  const own = glossary.map((term) => term[words.language]);
  const meanings = new Map(own.flatMap(([name, means]) => namesOf(name).map((one) => /** @type {[string, string]} */ ([one.toLowerCase(), means]))));
  const longest = [...meanings.keys()].sort((a, b) => b.length - a.length).map((one) => one.replace(/[.*+?^${}()|[\]\\/]/g, "\\$&"));
  const pattern = words.language === "zh" ? new RegExp(`(${longest.join("|")})`, "i") : new RegExp(`(?<![\\w√])(${longest.join("|")})s?(?![\\w√])`, "i");
  const tip = html("div", { class: "tip term-tip", role: "tooltip", id: "term-tip", hidden: true });

  /** Mark the first occurrence of each term. @param {Element} place */
  function explain(place) {
    const known = new Set([...place.querySelectorAll(".term")].map((one) => one.getAttribute("data-term")));
    for (const element of place.querySelectorAll(EXPLAINED)) {
      if (element.querySelector(".term")) continue;
      const texts = [...element.childNodes].filter((node) => node.nodeType === Node.TEXT_NODE);
      for (let text = /** @type {Text | undefined} */ (texts.shift()); text && known.size < MOST; text = /** @type {Text | undefined} */ (texts.shift())) {
        const found = pattern.exec(text.data);
        if (!found) continue;
        const rest = text.splitText(found.index + found[0].length);
        texts.unshift(rest);
        const name = found[1].toLowerCase();
        if (known.has(name)) continue;
        known.add(name);
        text.splitText(found.index).replaceWith(mark(found[0], name));
      }
    }
  }

  /** @param {string} text @param {string} name */
  function mark(text, name) {
    const shown = html("dfn", { class: "term", tabindex: "0", "data-term": name, "aria-describedby": tip.id, onpointerenter: show, onfocus: show, onpointerleave: hide, onblur: hide, onkeydown: (/** @type {KeyboardEvent} */ event) => event.key === "Escape" && hide() }, text);
    function show() {
      tip.textContent = meanings.get(name) ?? "";
      tip.hidden = false;
      const box = shown.getBoundingClientRect();
      const below = box.bottom + MARGIN + tip.offsetHeight < window.innerHeight;
      tip.style.left = `${Math.max(MARGIN, Math.min(box.left, document.documentElement.clientWidth - tip.offsetWidth - MARGIN))}px`;
      tip.style.top = `${below ? box.bottom + MARGIN : box.top - MARGIN - tip.offsetHeight}px`;
    }
    return shown;
  }

  const hide = () => (tip.hidden = true);
  const list = () => html("dl", { class: "term-list", tabindex: "0" }, own.map(([name, means]) => html("div", {}, html("dt", {}, name), html("dd", {}, means))));
  return { explain, tip, list };
}
