/** Convert saved results to the data of figures, without touching elements. */

/**
 * @typedef {object} Test
 * @property {number} length
 * @property {string} status
 * @property {string | null} [message]
 * @property {number | null} [loss]
 * @property {number | null} [bits_per_byte]
 * @property {number | null} [accuracy]
 * @property {number} [tokens]
 */
/** @typedef {{ steps: number[], loss: (number | null)[] }} Curve */
/**
 * @typedef {object} Cell
 * @property {string} method
 * @property {number} seed
 * @property {string} status
 * @property {string | null} [message]
 * @property {Curve} [train]
 * @property {Curve} [validation]
 * @property {Test[]} [tests]
 * @property {{ length: number, distance: number, accuracy: number, count: number }[]} [by_distance]
 * @property {number} [parameters]
 * @property {number} [position_parameters]
 * @property {number} [seconds]
 * @property {number} [tokens_per_second]
 * @property {number} [peak_memory_bytes]
 */
/** @typedef {{ spec: string, name: string, title?: string, summary?: string, summary_zh?: string, paper?: string }} Method */
/**
 * @typedef {object} Results
 * @property {string} task
 * @property {string} [created]
 * @property {string} [command]
 * @property {boolean} [complete]
 * @property {Record<string, any>} settings
 * @property {Record<string, any>} environment
 * @property {Method[]} methods
 * @property {Cell[]} cells
 */
/** @typedef {{ x: number, mean: number, low: number, high: number, seeds: number }} Point */
/** @typedef {{ kind: "cannot" | "diverged" | "failed" | "missing", x: number | null, message: string | null }} Stop */
/** @typedef {{ spec: string, points: Point[], stop: Stop | null, planned: number }} Series */
/** @typedef {{ id: string, better: "low" | "high", of: (test: Test) => number | null }} Unit */

/**
 * @param {unknown} value
 * @returns {number | null}
 */
export function finite(value) {
  return typeof value === "number" && Number.isFinite(value) ? value : null;
}

/**
 * The units a report can show, the task's main one first.
 * @param {Results} results
 * @returns {Unit[]}
 */
export function unitsOf(results) {
  /** @type {Unit} */
  const bits = { id: "bits_per_byte", better: "low", of: (test) => finite(test.bits_per_byte) };
  /** @type {Unit} */
  const loss = { id: "loss", better: "low", of: (test) => finite(test.loss) };
  /** @type {Unit} */
  const perplexity = { id: "perplexity", better: "low", of: (test) => finite(Math.exp(finite(test.loss) ?? NaN)) };
  /** @type {Unit} */
  const accuracy = { id: "accuracy", better: "high", of: (test) => finite(test.accuracy) };
  const tests = results.cells.flatMap((cell) => cell.tests ?? []);
  const done = tests.filter((test) => finite(test.loss) !== null);
  const inBits = done.length > 0 && done.every((test) => finite(test.bits_per_byte) !== null);
  const known = tests.some((test) => finite(test.accuracy) !== null);
  if (results.task !== "text") return done.length ? [accuracy, loss] : [accuracy];
  return [...(inBits ? [bits] : []), loss, perplexity, ...(known ? [accuracy] : [])];
}

/**
 * @param {Results} results
 * @returns {number[]}
 */
export function lengthsOf(results) {
  const tested = results.cells.flatMap((cell) => (cell.tests ?? []).map((test) => test.length));
  return sortedSet([...(results.settings.test_lengths ?? []), ...tested]);
}

/**
 * @param {Results} results
 * @returns {number[]}
 */
export function seedsOf(results) {
  return [...new Set([...(results.settings.seeds ?? []), ...results.cells.map((cell) => cell.seed)])];
}

/**
 * One series per method: the mean and range over seeds at each test length, and why it ends early, if it does.
 * @param {Results} results
 * @param {Unit} unit
 * @returns {Series[]}
 */
export function lengthSeries(results, unit) {
  const lengths = lengthsOf(results);
  return results.methods.map(({ spec }) => {
    const cells = cellsOf(results, spec);
    const planned = Math.max(seedsOf(results).length, cells.length);
    /** @type {Point[]} */
    const points = [];
    /** @type {Stop | null} */
    let stop = null;
    for (const x of lengths) {
      const tests = cells.map((cell) => testAt(cell, x));
      const values = tests.flatMap((test) => (test.status === "ok" ? unit.of(test) ?? [] : []));
      if (values.length) points.push(pointAt(x, values));
      else if (!stop || points[points.length - 1]?.x > (stop.x ?? 0)) stop = stopAt(tests, x);
    }
    if (stop && points.length && /** @type {number} */ (stop.x) < points[points.length - 1].x) stop = null;
    return { spec, points, stop, planned };
  });
}

/**
 * The best methods at the longest length; those that reach further come first.
 * @param {Results} results
 * @param {Unit} unit
 * @param {number} count
 * @returns {string[]} their specs
 */
export function bestMethods(results, unit, count) {
  const last = lengthSeries(results, unit).map(({ spec, points }) => ({ spec, point: points[points.length - 1] }));
  const sign = unit.better === "low" ? 1 : -1;
  return last
    .filter(({ point }) => point)
    .sort((a, b) => b.point.x - a.point.x || sign * (a.point.mean - b.point.mean))
    .slice(0, count)
    .map(({ spec }) => spec);
}

/**
 * What happened to one training at one length, also where no test was run.
 * @param {Cell} cell
 * @param {number} length
 * @returns {Test}
 */
export function testAt(cell, length) {
  const test = (cell.tests ?? []).find((one) => one.length === length);
  if (test && test.status === "ok" && finite(test.loss) === null && finite(test.accuracy) === null)
    return { ...test, status: "diverged" };
  return test ?? { length, status: cell.status === "ok" ? "missing" : cell.status, message: cell.message ?? null };
}

/**
 * The training loss of each method: a running mean over `window` recorded steps, then mean and range over seeds.
 * @param {Results} results
 * @param {number} factor from nats to the unit shown
 * @returns {{ series: Series[], dots: Map<string, Point[]>, window: number }}
 */
export function trainingSeries(results, factor) {
  const longest = Math.max(0, ...results.cells.map((cell) => cell.train?.steps.length ?? 0));
  const window = Math.max(1, Math.round(longest / 14));
  const dots = new Map();
  const series = results.methods.map(({ spec }) => {
    const cells = cellsOf(results, spec);
    const points = overSeeds(cells.map((cell) => smooth(scaled(cell.train, factor), window)));
    dots.set(spec, overSeeds(cells.map((cell) => scaled(cell.validation, factor))));
    const broken = cells.length > 0 && cells.every((cell) => cell.status !== "ok") ? cells[0] : null;
    /** @type {Stop | null} */
    const stop = broken && {
      kind: /** @type {Stop["kind"]} */ (broken.status),
      x: points[points.length - 1]?.x ?? null,
      message: broken.message ?? null,
    };
    return { spec, points, stop, planned: seedsOf(results).length };
  });
  return { series, dots, window };
}

/**
 * @param {Results} results
 * @param {number} length
 * @returns {Series[]}
 */
export function distanceSeries(results, length) {
  return results.methods.map(({ spec }) => {
    const curves = cellsOf(results, spec).map((cell) =>
      (cell.by_distance ?? [])
        .filter((row) => row.length === length && finite(row.accuracy) !== null)
        .map((row) => /** @type {[number, number]} */ ([row.distance, row.accuracy])),
    );
    return { spec, points: overSeeds(curves), stop: null, planned: seedsOf(results).length };
  });
}

/**
 * @param {Results} results
 * @returns {number[]}
 */
export function distanceLengths(results) {
  return sortedSet(results.cells.flatMap((cell) => (cell.by_distance ?? []).map((row) => row.length)));
}

/**
 * One number per finished training, as mean and range per method.
 * @param {Results} results
 * @param {"tokens_per_second" | "peak_memory_bytes" | "parameters" | "position_parameters"} key
 * @returns {{ spec: string, point: Point | null }[]}
 */
export function costOf(results, key) {
  return results.methods.map(({ spec }) => {
    const values = cellsOf(results, spec).flatMap((cell) => (cell.status === "ok" ? finite(cell[key]) ?? [] : []));
    return { spec, point: values.length ? pointAt(0, values) : null };
  });
}

/**
 * @param {Results} results
 * @param {string} spec
 */
export function cellsOf(results, spec) {
  return results.cells.filter((cell) => cell.method === spec);
}

/**
 * The same tables as `headway.results.to_csv` writes.
 * @param {Results} results
 * @param {"lengths" | "training" | "cost" | "distance"} sheet
 * @returns {string}
 */
export function csvOf(results, sheet) {
  const cost = ["parameters", "position_parameters", "seconds", "tokens_per_second", "peak_memory_bytes"];
  /** @type {unknown[][]} */
  let rows = [];
  if (sheet === "lengths") {
    rows.push(["method", "seed", "length", "status", "loss", "bits_per_byte", "accuracy", "tokens", "message"]);
    for (const cell of results.cells)
      for (const length of lengthsOf(results)) {
        const found = (cell.tests ?? []).find((one) => one.length === length);
        const test = found ?? testAt(cell, length);
        const numbers = [test.loss, test.bits_per_byte, test.accuracy, test.tokens];
        rows.push([cell.method, cell.seed, length, test.status, ...numbers, test.message]);
      }
  } else if (sheet === "training") {
    rows.push(["method", "seed", "kind", "step", "loss"]);
    for (const cell of results.cells)
      for (const kind of /** @type {const} */ (["train", "validation"]))
        cell[kind]?.steps.forEach((step, i) => rows.push([cell.method, cell.seed, kind, step, cell[kind]?.loss[i]]));
  } else if (sheet === "cost") {
    rows.push(["method", "seed", "status", ...cost, "message"]);
    for (const cell of results.cells)
      rows.push([cell.method, cell.seed, cell.status, ...cost.map((key) => cell[/** @type {"seconds"} */ (key)]), cell.message]);
  } else {
    rows.push(["method", "seed", "length", "distance", "accuracy", "count"]);
    for (const cell of results.cells)
      for (const row of cell.by_distance ?? [])
        rows.push([cell.method, cell.seed, row.length, row.distance, row.accuracy, row.count]);
  }
  return csvText(rows);
}

/**
 * @param {unknown[][]} rows
 * @returns {string}
 */
export function csvText(rows) {
  return rows.map((row) => row.map(csvField).join(",") + "\r\n").join("");
}

/** @param {unknown} value */
function csvField(value) {
  if (value === null || value === undefined) return "";
  let text = String(value);
  // A spreadsheet runs text that starts with one of these as a formula.
  if (typeof value === "string" && /^[=+\-@\t\r]/.test(text)) text = `'${text}`;
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

/**
 * @param {number} x
 * @param {number[]} values
 * @returns {Point}
 */
function pointAt(x, values) {
  const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
  return { x, mean, low: Math.min(...values), high: Math.max(...values), seeds: values.length };
}

/**
 * @param {Test[]} tests
 * @param {number} x
 * @returns {Stop}
 */
function stopAt(tests, x) {
  const first = tests.find((test) => test.status !== "ok") ?? tests[0];
  const kind = first ? (first.status === "ok" ? "diverged" : first.status) : "missing";
  return { kind: /** @type {Stop["kind"]} */ (kind), x, message: first?.message ?? null };
}

/**
 * @param {Curve | undefined} curve
 * @param {number} factor
 * @returns {[number, number][]}
 */
function scaled(curve, factor) {
  if (!curve) return [];
  return curve.steps.flatMap((step, i) => {
    const loss = finite(curve.loss[i]);
    return loss === null ? [] : [/** @type {[number, number]} */ ([step, loss * factor])];
  });
}

/**
 * A centred running mean; at both ends it has the steps of one side only.
 * @param {[number, number][]} curve
 * @param {number} window
 * @returns {[number, number][]}
 */
function smooth(curve, window) {
  const half = Math.floor(window / 2);
  return curve.map(([x], i) => {
    const part = curve.slice(Math.max(0, i - half), i + half + 1);
    return [x, part.reduce((sum, [, y]) => sum + y, 0) / part.length];
  });
}

/**
 * @param {[number, number][][]} curves
 * @returns {Point[]}
 */
function overSeeds(curves) {
  /** @type {Map<number, number[]>} */
  const at = new Map();
  for (const curve of curves) for (const [x, y] of curve) at.set(x, [...(at.get(x) ?? []), y]);
  return [...at].sort(([a], [b]) => a - b).map(([x, values]) => pointAt(x, values));
}

/** @param {number[]} values */
function sortedSet(values) {
  return [...new Set(values)].sort((a, b) => a - b);
}
