/** Numbers of a figure: blocks of base64 as typed arrays, decoded once, and how they are written. */

/** @typedef {{ shape: number[], kind: "float32" | "uint8" | "bits", span?: [number, number], data: string }} Block */
/** @typedef {Float32Array | Uint8Array} Numbers */

/** @type {WeakMap<Block, Numbers>} */
const decoded = new WeakMap();

/**
 * The numbers of a block, row by row.
 * @param {Block} block
 * @returns {Numbers}
 */
export function numbersOf(block) {
  const known = decoded.get(block);
  if (known) return known;
  const text = atob(block.data);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i += 1) bytes[i] = text.charCodeAt(i);
  const numbers = unpacked(block, bytes);
  decoded.set(block, numbers);
  return numbers;
}

/**
 * Bytes as the numbers they encode, as packed by figures/values.py.
 * @param {Block} block
 * @param {Uint8Array} bytes
 * @returns {Numbers}
 */
function unpacked({ kind, shape, span }, bytes) {
  if (kind === "bits") {
    const count = shape.reduce((product, size) => product * size, 1);
    return Uint8Array.from({ length: count }, (_, i) => (bytes[i >> 3] >> (7 - (i & 7))) & 1);
  }
  if (kind === "uint8" && span) {
    const [low, high] = span;
    return Float32Array.from(bytes, (byte) => (byte === 255 ? NaN : low + ((high - low) * byte) / 254));
  }
  return kind === "uint8" ? bytes : new Float32Array(bytes.buffer);
}

/** @type {Record<string, string>} */
const RAISED = { "+": "", "-": "⁻", ...Object.fromEntries([..."⁰¹²³⁴⁵⁶⁷⁸⁹"].map((one, i) => [i, one])) };

/**
 * A number for display: three digits, a minus sign as wide as a digit, powers of ten where digits would be lost.
 * @param {number | null | undefined} value
 * @returns {string}
 */
export function spoken(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  const size = Math.abs(value);
  if (size === Infinity) return value < 0 ? "−∞" : "∞";
  if (size === 0) return "0";
  let text;
  if (size < 9.995e-4 || size >= 999_500) {
    const [digits, power] = size.toExponential(2).split("e");
    text = `${digits}·10${[...power].map((one) => RAISED[one]).join("")}`; // as figures/words.py writes them
  } else {
    const places = size < 0.9995 ? 3 : size < 9.995 ? 2 : size < 99.95 ? 1 : 0;
    // below 0.01 three decimals would leave one digit
    text = size < 0.00995 ? size.toPrecision(2) : size.toLocaleString("en-US", { minimumFractionDigits: places, maximumFractionDigits: places });
  }
  return value < 0 ? `−${text}` : text;
}

/**
 * A number for an axis or a limit: as few digits as it needs, at most three.
 * @param {number} value
 * @returns {string}
 */
export function onAxis(value) {
  const size = Math.abs(value);
  if (value === 0) return "0";
  if (size < 1e-3 || size >= 1e6) return spoken(value).replace(/\.?0+(?=·)/, "");
  return value.toLocaleString("en-US", { maximumSignificantDigits: size >= 1000 && Number.isInteger(value) ? 6 : 3 }).replace("-", "−");
}

/**
 * A float32 for a file: the fewest digits that give it back exactly.
 * @param {number | null | undefined} value
 * @returns {number | null}
 */
export function exact(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return null;
  if (Number.isInteger(value) || Math.fround(value) !== value) return value;
  for (let digits = 6; digits < 9; digits += 1) {
    const short = Number(value.toPrecision(digits));
    if (Math.fround(short) === value) return short;
  }
  return Number(value.toPrecision(9));
}
