/** What the reader chooses for a single figure: linear or logarithmic axes, and the reach of a colour scale. */

import { html } from "./dom.js";

/** @typedef {import("./plots.js").Lines} Lines */

const WIDE = 8; // the largest x or y over the smallest: below that both axes look alike
const FEW = 4; // points of which nothing could be seen better

/**
 * Buttons, of which one is chosen.
 * @param {string} label
 * @param {[string, string][]} values each with its text
 * @param {string} now the chosen one
 * @param {(value: string) => void} choose
 */
export function buttons(label, values, now, choose) {
  /** @type {HTMLElement} */
  const element = html("div", { class: "choice small", role: "group", "aria-label": label }, values.map(([value, text]) =>
    html("button", { type: "button", "data-value": value, "aria-pressed": String(value === now), onclick: () => {
      for (const one of element.children) one.setAttribute("aria-pressed", String(one.getAttribute("data-value") === value));
      choose(value);
    } }, text)));
  return element;
}

/**
 * Linear or logarithmic, for each axis of a figure of curves where both make sense; at first as the figure says.
 * @param {import("./words.js").Words} words
 * @param {() => Lines} figure
 * @param {() => void} draw
 */
export function axisChoice(words, figure, draw) {
  /** @type {{ x?: boolean, y?: boolean }} */
  const chosen = {};
  const element = html("div", { class: "axis-choices" });
  const isLog = (/** @type {"x" | "y"} */ axis) => chosen[axis] ?? figure()[`log_${axis}`];
  let shown = "";

  function update() {
    const axes = /** @type {const} */ (["x", "y"]).filter((axis) => figure()[`log_${axis}`] || suits(figure(), axis));
    const key = JSON.stringify(axes.map((axis) => [axis, isLog(axis)]));
    if (key === shown) return;
    shown = key;
    element.hidden = !axes.length;
    element.replaceChildren(...axes.map((axis) => {
      const label = words.say(`axis.choice.${axis}`);
      const values = /** @type {[string, string][]} */ (["linear", "log"].map((value) => [value, words.say(`axis.choice.${value}`)]));
      return html("span", { class: "select", "data-axis": axis }, label, buttons(label, values, isLog(axis) ? "log" : "linear", (value) => {
        chosen[axis] = value === "log";
        draw();
      }));
    }));
  }

  update();
  return { element, update, isLog };
}

/**
 * Whether the colours of a map reach to its largest value or fit most of them.
 * @param {import("./words.js").Words} words
 * @param {(whole: boolean) => void} choose
 */
export function scaleChoice(words, choose) {
  const element = html("div", { class: "axis-choices", hidden: true });

  /** @param {boolean} fits whether there is a choice @param {boolean} whole */
  function update(fits, whole) {
    element.hidden = !fits;
    if (!fits || element.dataset.whole === String(whole)) return;
    element.dataset.whole = String(whole);
    const label = words.say("map.scale");
    const said = html("span", { class: "quiet" }, words.say(`map.scale.${whole ? "full" : "fit"}.said`));
    element.replaceChildren(html("span", { class: "select" }, label, buttons(label, [["fit", words.say("map.scale.fit")], ["full", words.say("map.scale.full")]], whole ? "full" : "fit", (value) => {
      element.dataset.whole = String(value === "full");
      said.textContent = words.say(`map.scale.${value}.said`);
      choose(value === "full");
    })), said);
  }

  return { element, update };
}

/** Whether an axis can be logarithmic too, and would show something else. @param {Lines} figure @param {"x" | "y"} axis */
function suits({ x, lines, range }, axis) {
  let [low, high, count] = [Infinity, -Infinity, 0];
  const take = (/** @type {number | null | undefined} */ value) => {
    if (typeof value !== "number" || !Number.isFinite(value)) return;
    count += 1;
    if (value < low) low = value;
    if (value > high) high = value;
  };
  if (axis === "x") {
    x.forEach((value) => value !== 0 && take(value)); // 0 has a place of its own
    return count >= FEW && low > 0 && high / low >= WIDE;
  }
  for (const line of lines) for (const values of [line.values, line.low ?? []]) values.forEach(take);
  return x.length >= FEW && low > 0 && high / low >= WIDE && !(range && range[0] <= 0);
}
