/** A dialog to choose one of many by typing part of its name. */

import { html } from "./dom.js";

/** @typedef {{ value: string, title: string, name: string, text: string }} Choice */

/**
 * Open a dialog and let the reader choose.
 * @param {object} options
 * @param {import("./words.js").Words} options.words
 * @param {Element} options.place where the dialog stands, so that it has the page's colours
 * @param {string} options.title
 * @param {Choice[]} options.choices
 * @param {string} options.current the value chosen now
 * @param {string} [options.free] label of a field for a value that is not in the list
 * @param {(value: string) => void} options.done
 */
export function pick({ words, place, title, choices, current, free, done }) {
  const list = html("div", { class: "picker-list" });
  const count = html("p", { class: "quiet", role: "status" });
  const search = /** @type {HTMLInputElement} */ (html("input", { type: "text", class: "field wide", "aria-label": words.say("studio.pick.search"), placeholder: words.say("studio.pick.search"), oninput: fill, autocomplete: "off", spellcheck: "false" }));
  const own = /** @type {HTMLInputElement} */ (html("input", { class: "field wide", value: current, autocomplete: "off", spellcheck: "false" }));
  const dialog = /** @type {HTMLDialogElement} */ (html("dialog", { class: "picker", "aria-label": title, onclose: () => dialog.remove(), onkeydown: keys },
    html("div", { class: "picker-head" }, html("h2", {}, title), html("button", { type: "button", class: "plain", "aria-label": words.say("studio.close"), onclick: () => dialog.close() }, "✕")),
    search, count, list,
    free && html("form", { class: "picker-free", onsubmit: (/** @type {Event} */ event) => (event.preventDefault(), choose(own.value)) },
      html("label", {}, html("span", {}, free), own), html("button", { class: "save" }, words.say("studio.pick.use")))));

  /** @param {string} value */
  function choose(value) {
    dialog.close();
    dialog.remove(); // otherwise its field would keep the focus, and swallow a key, until the next frame
    if (value.trim()) done(value.trim());
  }

  function fill() {
    const wanted = search.value.trim().toLowerCase();
    const rank = (/** @type {Choice} */ one) => [one.name, one.title, one.text].findIndex((part) => part.toLowerCase().includes(wanted));
    const found = wanted ? choices.filter((one) => rank(one) >= 0).sort((a, b) => rank(a) - rank(b)) : choices;
    const chosen = current.split("(")[0];
    list.replaceChildren(...found.map((one) =>
      html("button", { type: "button", "aria-pressed": String(one.value === current || one.name === chosen), onclick: () => choose(one.value) },
        html("span", { class: "picker-name" }, html("strong", {}, one.title), one.name !== one.title && html("code", {}, one.name)), html("span", { class: "picker-text" }, one.text))));
    list.scrollTop = 0;
    count.textContent = words.say(found.length === 1 ? "studio.pick.one" : "studio.pick.count", { n: found.length });
  }

  /** @param {KeyboardEvent} event */
  function keys(event) {
    event.stopPropagation(); // the page's own shortcuts are inactive meanwhile
    const buttons = /** @type {HTMLElement[]} */ ([...list.children]);
    const at = buttons.indexOf(/** @type {HTMLElement} */ (document.activeElement));
    if (event.key === "Enter" && document.activeElement === search && search.value.trim() && buttons.length) buttons[0].click();
    else if (event.key === "ArrowDown" && document.activeElement !== own) buttons[Math.min(at + 1, buttons.length - 1)]?.focus();
    else if (event.key === "ArrowUp" && at >= 0) (at === 0 ? search : buttons[at - 1]).focus();
    else return;
    event.preventDefault();
  }

  fill();
  place.append(dialog);
  dialog.showModal();
  search.focus();
  list.querySelector('[aria-pressed="true"]')?.scrollIntoView({ block: "center" });
}
