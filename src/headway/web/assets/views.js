/** A page of views: the subject, then each view from its question to its notes. */

import { html } from "./dom.js";
import { drawView } from "./figures.js";
import { foot, head, mount } from "./frame.js";
import { followHost } from "./host.js";
import { told } from "./parts.js";

/** @typedef {import("./parts.js").Said} Said */
/**
 * @typedef {object} Payload
 * @property {Said} title
 * @property {Said[]} facts what was looked at, beside each other under the title
 * @property {import("./figures.js").View[]} views
 * @property {string} version
 * @property {Record<string, Record<string, string>>} strings
 * @property {string} [language] before the reader chooses
 */

/**
 * @param {HTMLElement} element emptied and filled
 * @param {Payload} payload
 * @returns {() => void} takes the page out again
 */
export function render(element, payload) {
  const close = mount(element, payload.strings, (shell) => {
    const { words, updates } = shell;
    document.title = `headway: ${told(words, payload.title)}`;
    const views = payload.views.map((view) => drawView(view, words));
    updates.push(...views.map(({ draw }) => draw));
    return [
      head(shell, words.say("view.brand"), told(words, payload.title), payload.facts.map((fact) => told(words, fact))),
      views.length > 1 && html("nav", { class: "contents", "aria-label": words.say("view.contents") },
        html("ul", {}, payload.views.map((view) => html("li", {}, html("a", { href: `#view-${view.key}` }, told(words, view.title)))))),
      ...views.map((view) => view.element),
      foot(words, payload.version),
    ];
  }, payload);
  followHost(element);
  return close;
}
