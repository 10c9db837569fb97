/** Words and numbers in the reader's language. */

/**
 * @typedef {object} Words
 * @property {string} language
 * @property {(key: string, values?: Record<string, string | number>) => string} say fill a template
 * @property {(key: string) => boolean} has
 * @property {(value: number) => string} count a whole number with separators
 */

/**
 * @param {Record<string, Record<string, string>>} strings
 * @param {string} language
 * @returns {Words}
 */
export function wordsIn(strings, language) {
  const words = strings[language];
  return {
    language,
    has: (key) => key in words,
    say: (key, values = {}) => (words[key] ?? key).replace(/\{(\w+)\}/g, (_, name) => String(values[name] ?? "")),
    count: (value) => grouped(value, 0),
  };
}

/**
 * About three significant digits, as in the terminal: 0.123, 2.31, 23.1, 1,234.
 * @param {number} value
 * @returns {string}
 */
export function threeDigits(value) {
  return grouped(value, decimals(value));
}

/**
 * @param {number} value
 * @returns {number} decimals that make about three digits
 */
export function decimals(value) {
  const size = Math.abs(value);
  return size < 1 ? 3 : size < 10 ? 2 : size < 100 ? 1 : 0;
}

/**
 * @param {number} value
 * @param {number} digits
 * @returns {string}
 */
export function grouped(value, digits) {
  return value.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

/**
 * @param {number} bytes
 * @returns {string}
 */
export function byteSize(bytes) {
  const steps = ["B", "KiB", "MiB", "GiB", "TiB"];
  let value = bytes;
  let step = 0;
  while (value >= 1024 && step < steps.length - 1) {
    value /= 1024;
    step += 1;
  }
  return `${step === 0 ? value : threeDigits(value)} ${steps[step]}`;
}

/**
 * The initial language: 中文 if the browser prefers any Chinese over English.
 * @param {readonly string[]} preferred
 * @returns {"en" | "zh"}
 */
export function firstLanguage(preferred) {
  for (const tag of preferred) {
    if (/^zh\b/i.test(tag)) return "zh";
    if (/^en\b/i.test(tag)) return "en";
  }
  return "en";
}
