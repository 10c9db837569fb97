/** The likeliest next tokens after the text, in a strip beside it; a click appends one. */

import { html } from "./dom.js";
import { told } from "./parts.js";
import { modelOf } from "./place.js";

/** @typedef {{ label: string, added: string | null, p: number }} Token */
/** @typedef {{ tokens?: Token[], masked?: boolean, none?: Record<string, string> }} Found none says why there are none */
/** @typedef {import("./place.js").Place} Place */

const COUNT = 5;
const WITHOUT = ["long", "longer", "report"]; // views of other texts, or of very long ones

/**
 * @param {import("./words.js").Words} words
 * @param {object} options
 * @param {() => Place} options.place
 * @param {(change: Partial<Place>) => void} options.go
 * @param {ReturnType<typeof nextRequests>} options.requests
 * @returns {{ element: HTMLElement, update: () => void }}
 */
export function nextStrip(words, { place, go, requests }) {
  const line = html("p", { class: "quiet next-none", hidden: true });
  const tokens = Array.from({ length: COUNT }, (_, i) => {
    const [name, share] = [html("span", { class: "next-name" }), html("span", { class: "next-share" })];
    const button = /** @type {HTMLButtonElement} */ (html("button", { type: "button", class: "next-token", "data-keep": `next-${i}`, hidden: true, onclick: () => append(requests.found()?.tokens?.[i]) }, name, share));
    return { button, name, share };
  });
  const more = html("button", { type: "button", class: "plain", "data-keep": "next-more", onclick: () => go({ view: "prediction", query: -1 }) }, words.say("studio.next.more"));
  const caption = html("span", { class: "caption" }, words.say("studio.next"));
  const element = html("div", { class: "next-strip", role: "group", "aria-label": words.say("studio.next") },
    caption, tokens.map(({ button }) => button), line, more);

  /** @param {Token} [token] */
  function append(token) {
    if (token?.added === null || !token) return;
    const { text, kind } = place();
    // words bring the space before them; other tokens are appended exactly
    const added = kind === "fresh" && /\s$/.test(text) ? token.added.trimStart() : token.added;
    go({ text: text + added, query: -1 });
  }

  function update() {
    const found = requests.found();
    element.hidden = WITHOUT.includes(place().view) || !found;
    element.setAttribute("aria-busy", String(requests.waiting()));
    if (!found) return;
    caption.textContent = words.say(found.masked ? "studio.next.masked" : "studio.next");
    element.setAttribute("aria-label", caption.textContent);
    const none = found.none ? told(words, found.none) : "";
    line.hidden = !none;
    line.textContent = none;
    more.hidden = Boolean(none) || place().view === "prediction";
    tokens.forEach(({ button, name, share }, i) => {
      const token = found.tokens?.[i];
      button.hidden = !token;
      if (!token) return;
      const values = { token: token.label, share: percent(token.p) };
      const said = words.say(token.added === null ? "studio.next.part" : "studio.next.append", values);
      name.textContent = values.token;
      share.textContent = values.share;
      button.style.setProperty("--share", `${100 * token.p}%`);
      button.title = said;
      button.setAttribute("aria-label", said);
      button.setAttribute("aria-disabled", String(token.added === null));
    });
  }

  update();
  return { element, update };
}

/** @param {number} share */
function percent(share) {
  const size = 100 * share;
  return size > 0 && size < 0.1 ? "< 0.1 %" : `${size.toFixed(size >= 9.95 ? 0 : 1)} %`;
}

/**
 * What the strip asks for: one small request whenever text or model have changed, after the view has come.
 * @param {((asked: Record<string, unknown>) => Promise<Found>) | null} asked null where nobody answers: there is no strip
 * @param {() => Place} place
 * @param {() => void} changed
 */
export function nextRequests(asked, place, changed) {
  /** @type {Found | null} */
  let found = null;
  let waiting = false;
  let known = "";

  /** @param {boolean} [again] even if nothing has changed, as a model that trains */
  async function ask(again = false) {
    if (!asked || WITHOUT.includes(place().view)) return;
    const wanted = { text: place().text, model: modelOf(place()) };
    const key = JSON.stringify(wanted);
    if (key === known && !again) return;
    known = key;
    waiting = true;
    changed();
    try {
      found = await asked(wanted);
    } catch (error) {
      if (/** @type {Error} */ (error).name === "AbortError") return;
      const { message, said } = /** @type {Error & { said?: Record<string, string> }} */ (error);
      found = { none: said ?? { en: message } };
      known = "";
    }
    waiting = false;
    changed();
  }

  return { ask, found: () => found, waiting: () => waiting };
}
