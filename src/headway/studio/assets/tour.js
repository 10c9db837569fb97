/** A tour of five minutes: from the scale of scores to positions beyond the training length, each step a state of the page. */

import { html } from "./dom.js";

/** @typedef {import("./place.js").Place} Place */
/** @typedef {{ name: string, place: Partial<Place> }} Step its words are studio.tour.<name>.title and .text */

const ONE = { layer: 0, head: 0, query: -1 };
const fresh = (/** @type {string} */ position) => ({ kind: /** @type {const} */ ("fresh"), position, ...ONE });

/** @type {Step[]} */
const STEPS = [
  { name: "scores", place: { view: "softmax", ...fresh("none"), options: {} } },
  { name: "wide", place: { view: "scaling", ...fresh("none"), options: { dim: 256 } } },
  { name: "order", place: { view: "whatif", ...fresh("none"), options: { change: "shuffle" } } },
  { name: "vectors", place: { view: "vectors", ...fresh("sinusoidal"), options: {} } },
  { name: "absolute", place: { view: "whatif", ...fresh("sinusoidal"), options: { change: "shift", by: 20 } } },
  { name: "rotate", place: { view: "rotation", ...fresh("rotary"), options: {} } },
  { name: "relative", place: { view: "whatif", ...fresh("rotary"), options: { change: "shift", by: 20 } } },
  { name: "distance", place: { view: "bias", ...fresh("alibi"), options: {} } },
  { name: "beyond", place: { view: "longer", ...ONE, options: {} } },
];

/**
 * @param {import("./words.js").Words} words
 * @param {object} options
 * @param {(change: Partial<Place>) => void} options.go
 * @param {{ at: number }} options.state which step is shown, −1 for none; kept while the language changes
 * @param {(view: string) => boolean} options.has whether the page has a view
 * @returns {{ element: HTMLElement, button: HTMLElement }}
 */
export function tour(words, { go, state, has }) {
  const steps = STEPS.filter(({ place }) => has(place.view ?? ""));
  const [count, title, text] = [html("span", { class: "quiet" }), html("h2"), html("p")];
  const button = html("button", { type: "button", class: "save", "data-keep": "tour", onclick: () => to(0) }, words.say("studio.tour"));
  const tool = (/** @type {string} */ name, /** @type {() => void} */ act, kind = "save") => html("button", { type: "button", class: kind, "data-keep": `tour-${name}`, onclick: act }, words.say(`studio.tour.${name}`));
  const back = tool("back", () => to(state.at - 1));
  const next = tool("next", () => (state.at === steps.length - 1 ? end() : to(state.at + 1)), "save primary");
  const element = html("section", { class: "tour", "aria-label": words.say("studio.tour"), hidden: true, onkeydown: (/** @type {KeyboardEvent} */ event) => event.key === "Escape" && end() },
    html("div", { class: "row between" }, title, count), html("div", { role: "status" }, text), html("div", { class: "row between" }, tool("end", end), html("div", { class: "row" }, back, next)));

  /** @param {number} at */
  function to(at) {
    state.at = at;
    show();
    go(steps[at].place);
    next.focus();
  }

  function end() {
    state.at = -1;
    show();
    button.focus();
  }

  function show() {
    element.hidden = state.at < 0;
    if (state.at < 0) return;
    const { name } = steps[state.at];
    title.textContent = words.say(`studio.tour.${name}.title`);
    text.textContent = words.say(`studio.tour.${name}.text`);
    count.textContent = `${state.at + 1} / ${steps.length}`;
    /** @type {HTMLButtonElement} */ (back).disabled = state.at === 0;
    next.textContent = words.say(state.at === steps.length - 1 ? "studio.tour.end" : "studio.tour.next");
  }

  show();
  return { element, button };
}
