/**
 * One fixed colour, dash and marker per method, by its name, in every figure of every report.
 * Hues follow families: rotary and its scalings blue, other rotations pink and ochre, fixed biases orange, learned ones
 * green, vectors for distances violet, token-dependent ones teal; see theme.json.
 */

import { THEME } from "./theme.js";

/** @typedef {{ hue: number, dash: number }} Style */

/** The index of a dash is also the marker's: circle, square, triangle, diamond; from there hollow: ring, square, diamond. */
export const DASHES = THEME.dashes;
const HOLLOW = 4;
const HUES = THEME.hues.length;

/** @type {Record<string, [number, number]>} a method's hue and dash: each family has a row of the theme */
const KNOWN = Object.fromEntries(THEME.methods.flatMap((family, hue) => family.flatMap((name, dash) => (name ? [[name, [hue, dash]]] : []))));

/**
 * @param {{ spec: string, name: string }[]} methods
 * @returns {Map<string, Style>} by spec; all different while there are at most 56 methods
 */
export function methodStyles(methods) {
  /** @type {Map<string, Style>} */
  const styles = new Map();
  const taken = new Set();
  const take = (/** @type {string} */ spec, /** @type {number} */ hue, /** @type {number} */ dash) => {
    if (taken.has(hue * DASHES.length + dash)) return false;
    taken.add(hue * DASHES.length + dash);
    styles.set(spec, { hue, dash });
    return true;
  };
  // The plain form of each known method first, so that a variant never takes another method's style.
  const plainFirst = [...methods].sort((a, b) => Number(a.spec !== a.name) - Number(b.spec !== b.name));
  const later = plainFirst.filter(({ spec, name }) => {
    const known = KNOWN[keyOf(name)];
    return !(known && take(spec, ...known));
  });
  const reserved = new Set(Object.values(KNOWN).map(([hue, dash]) => hue * DASHES.length + dash));
  for (const { spec, name } of later) {
    const start = hash(keyOf(name));
    const hue = KNOWN[keyOf(name)]?.[0] ?? start % HUES;
    /** @type {[number, number][]} */
    const slots = [];
    for (let turn = 0; turn < HUES; turn += 1)
      for (let dash = DASHES.length - 1; dash >= 0; dash -= 1) slots.push([(hue + turn) % HUES, dash]);
    const free = ([h, d]) => !taken.has(h * DASHES.length + d);
    const family = keyOf(name) in KNOWN; // a variant keeps its family's hue if possible
    const slot =
      slots.find((s) => free(s) && (family ? s[0] === hue : !reserved.has(s[0] * DASHES.length + s[1]))) ?? slots.find(free);
    if (slot) take(spec, slot[0], slot[1]);
    else styles.set(spec, { hue, dash: start % DASHES.length });
  }
  return styles;
}

/**
 * Whether a method has its own style.
 * @param {string} name
 */
export function isKnown(name) {
  return keyOf(name) in KNOWN;
}

/**
 * The style of the n-th line of a figure; the first 56 differ, because 8 and 7 have no common factor.
 * @param {number} n
 * @returns {Style}
 */
export function styleOf(n) {
  return { hue: n % HUES, dash: n % DASHES.length };
}

/**
 * The outline of a marker.
 * @param {number} dash
 * @param {number} x
 * @param {number} y
 * @param {number} r
 * @returns {string}
 */
export function markerPath(dash, x, y, r) {
  const n = (/** @type {number} */ value) => value.toFixed(2);
  const polygon = (/** @type {number[][]} */ points) =>
    `M${points.map(([dx, dy]) => `${n(x + dx * r)} ${n(y + dy * r)}`).join("L")}Z`;
  if (dash === 1 || dash === 5) return polygon([[-0.9, -0.9], [0.9, -0.9], [0.9, 0.9], [-0.9, 0.9]]);
  if (dash === 2) return polygon([[0, -1.2], [1.15, 0.85], [-1.15, 0.85]]);
  if (dash === 3 || dash === 6) return polygon([[0, -1.35], [1.35, 0], [0, 1.35], [-1.35, 0]]);
  return `M${n(x - r)} ${n(y)}a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0Z`;
}

/**
 * Whether a marker is hollow.
 * @param {number} dash
 */
export function isHollow(dash) {
  return dash >= HOLLOW;
}

/** @param {string} name */
function keyOf(name) {
  return name.toLowerCase().replace(/[^a-z0-9]/g, "");
}

/** @param {string} text */
function hash(text) {
  let value = 7;
  for (const character of text) value = (value * 31 + character.charCodeAt(0)) % 65521;
  return value;
}
