/** Tables of 256 colours, one for each kind of number and each theme; web/colours.py computes them. */

import { THEME } from "./theme.js";

const COUNT = 256;

/** @typedef {"sequential" | "diverging" | "cyclic"} Scale */
/** @type {Map<string, Uint8ClampedArray>} */
const made = new Map();

/**
 * Red, green and blue of 256 colours, one after the other.
 * @param {Scale} scale
 * @param {boolean} dark
 * @returns {Uint8ClampedArray}
 */
export function colourTable(scale, dark) {
  const key = `${scale}/${dark}`;
  const known = made.get(key);
  if (known) return known;
  const table = new Uint8ClampedArray(3 * COUNT).map((_, i) => parseInt(THEME.maps[dark ? "dark" : "light"][scale].slice(2 * i, 2 * i + 2), 16));
  made.set(key, table);
  return table;
}

/**
 * The colour of a cell without a number: the page's background, --paper in style.css.
 * @param {boolean} dark
 */
export function groundOf(dark) {
  return dark ? [21, 23, 26] : [253, 253, 251];
}

/**
 * Whether an element is on a dark background now: by theme, system or print.
 * @param {Element} element
 */
export function isDark(element) {
  return getComputedStyle(element).colorScheme === "dark";
}

/**
 * Which of the 256 colours represents a number.
 * @param {number} value
 * @param {number} low
 * @param {number} high
 */
export function colourIndex(value, low, high) {
  if (!(high > low)) return 0;
  return Math.max(0, Math.min(COUNT - 1, Math.floor(((value - low) / (high - low)) * COUNT)));
}
