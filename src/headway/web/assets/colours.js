/**
 * Tables of 256 colours from a few control points, one for each kind of number and each theme.
 * Interpolated in OKLab (Ottosson 2020) and spaced by distance there, so that equal steps of a number look equal.
 */

import { THEME } from "./theme.js";

const COUNT = 256;
const FINE = 128; // points between two control points while measuring distances

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
  const points = THEME.maps[dark ? "dark" : "light"][scale].map(fromHex);
  const halves = scale === "diverging" ? [points.slice(0, 4), points.slice(3)] : [points];
  const each = COUNT / halves.length;
  // 0 stands between the two middle colours, each half a step away from it
  const colours = halves.flatMap((half, turn) =>
    evenly(half, Array.from({ length: each }, (_, i) => (halves.length === 1 ? i / (each - 1) : (turn ? i + 0.5 : i) / (each - 0.5)))),
  );
  const table = new Uint8ClampedArray(colours.flatMap(toRgb));
  made.set(key, table);
  return table;
}

/**
 * What a cell without a number gets: the page's own ground, --paper in style.css.
 * @param {boolean} dark
 */
export function groundOf(dark) {
  return dark ? [21, 23, 26] : [253, 253, 251];
}

/**
 * Whether an element stands on a dark ground now: by theme, system or print.
 * @param {Element} element
 */
export function isDark(element) {
  return getComputedStyle(element).colorScheme === "dark";
}

/**
 * Which of the 256 colours a number gets.
 * @param {number} value
 * @param {number} low
 * @param {number} high
 */
export function colourIndex(value, low, high) {
  if (!(high > low)) return 0;
  return Math.max(0, Math.min(COUNT - 1, Math.floor(((value - low) / (high - low)) * COUNT)));
}

/**
 * Points along a path through OKLab at the given shares of its length.
 * @param {number[][]} points
 * @param {number[]} shares rising
 */
function evenly(points, shares) {
  const path = points.slice(1).flatMap((to, i) =>
    Array.from({ length: FINE }, (_, k) => points[i].map((from, axis) => from + ((to[axis] - from) * k) / FINE)),
  );
  path.push(points[points.length - 1]);
  const along = [0];
  for (let i = 1; i < path.length; i += 1) along.push(along[i - 1] + Math.hypot(...path[i].map((one, axis) => one - path[i - 1][axis])));
  let at = 0;
  return shares.map((share) => {
    while (at < path.length - 2 && along[at + 1] < share * along[path.length - 1]) at += 1;
    const part = (share * along[path.length - 1] - along[at]) / (along[at + 1] - along[at] || 1);
    return path[at].map((from, axis) => from + (path[at + 1][axis] - from) * part);
  });
}

/** @param {string} hex @returns {number[]} OKLab */
function fromHex(hex) {
  const [r, g, b] = [0, 2, 4].map((start) => {
    const part = parseInt(hex.slice(start, start + 2), 16) / 255;
    return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  });
  const l = Math.cbrt(0.4122214708 * r + 0.5363325363 * g + 0.0514459929 * b);
  const m = Math.cbrt(0.2119034982 * r + 0.6806995451 * g + 0.1073969566 * b);
  const s = Math.cbrt(0.0883024619 * r + 0.2817188376 * g + 0.6299787005 * b);
  return [
    0.2104542553 * l + 0.793617785 * m - 0.0040720468 * s,
    1.9779984951 * l - 2.428592205 * m + 0.4505937099 * s,
    0.0259040371 * l + 0.7827717662 * m - 0.808675766 * s,
  ];
}

/** @param {number[]} lab OKLab @returns {number[]} of 255 */
function toRgb([lightness, a, b]) {
  const l = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3;
  const m = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3;
  const s = (lightness - 0.0894841775 * a - 1.291485548 * b) ** 3;
  return [
    4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
    -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
    -0.0041960863 * l - 0.7034186147 * m + 1.707614701 * s,
  ].map((part) => 255 * (part <= 0.0031308 ? 12.92 * part : 1.055 * part ** (1 / 2.4) - 0.055));
}
