/** Limits and ticks of axes. */

/**
 * An upper limit, if a gap separates at most a third of the values far above the rest; otherwise null.
 * @param {number[]} sorted
 * @returns {number | null}
 */
export function outlierLimit(sorted) {
  const low = sorted[0];
  for (let i = Math.ceil((sorted.length * 2) / 3); i < sorted.length; i += 1) {
    const below = sorted[i - 1] - low;
    if (below > 0 && sorted[i] - low > 2.5 * below) return low + 1.15 * below;
  }
  return null;
}

/**
 * An upper limit for curves that fall steeply at the start and differ little afterwards, or null.
 * @param {number[]} sorted
 * @returns {number | null}
 */
export function startLimit(sorted) {
  const low = sorted[0];
  const most = sorted[Math.floor((sorted.length - 1) * 0.75)] - low;
  return most > 0 && sorted[sorted.length - 1] - low > 4 * most ? low + 2.6 * most : null;
}

/**
 * Limits slightly beyond the values, but not below 0 if no value is.
 * @param {number} low
 * @param {number} high
 * @param {boolean} log
 * @returns {[number, number]}
 */
export function roomAround(low, high, log) {
  if (log) return [low / 1.15, high * 1.15];
  const room = (high - low || Math.abs(high) || 1) * 0.06;
  return [Math.max(low - 2 * room, low >= 0 ? 0 : -Infinity), high + room];
}

/**
 * @param {number} low
 * @param {number} high
 * @param {number} count
 * @returns {number[]}
 */
export function niceTicks(low, high, count) {
  if (!(high > low)) return [low];
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const size = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((one) => one >= rough) ?? 10 * power;
  const ticks = [];
  for (let i = Math.ceil(low / size - 1e-9); i * size <= high * (1 + 1e-9); i += 1) ticks.push(Number((i * size).toPrecision(12)));
  return ticks;
}

/**
 * Powers of 2, or of 10 if those would be too many; and 0 if it is a value.
 * @param {number[]} values
 * @param {number} count at most
 * @returns {number[]}
 */
export function logTicks(values, count) {
  const [low, high] = [Math.min(...values.filter((value) => value > 0)), Math.max(...values)];
  const zero = values.some((value) => value === 0) ? [0] : [];
  for (const base of [2, 4, 10, 100, 1000]) {
    const [from, to] = [Math.ceil(Math.log(low) / Math.log(base) - 1e-9), Math.floor(Math.log(high) / Math.log(base) + 1e-9)];
    if (to - from < count) return [...zero, ...(to < from ? [low] : Array.from({ length: to - from + 1 }, (_, i) => Number((base ** (from + i)).toPrecision(12))))];
  }
  return [...zero, low, high];
}

/**
 * 1, 2 and 5 times powers of 10; only the powers if those are too many, and even steps if too few.
 * @param {number} low
 * @param {number} high
 * @param {number} count at most
 * @returns {number[]}
 */
export function decimalTicks(low, high, count) {
  const [from, to] = [Math.floor(Math.log10(low)), Math.ceil(Math.log10(high))];
  const powers = Array.from({ length: to - from + 1 }, (_, i) => from + i);
  const every = Math.max(1, Math.ceil((to - from) / count));
  const fine = powers.flatMap((power) => [1, 2, 5].map((digit) => Number(`${digit}e${power}`))).filter((tick) => tick >= low && tick <= high);
  if (fine.length < 3) return niceTicks(low, high, 4);
  return fine.length <= count ? fine : powers.filter((power) => power % every === 0).map((power) => Number(`1e${power}`));
}
