/** The panel of live training: start, play, pause, single step, and the loss curve. */

import { ask, reason } from "./asking.js";
import { html, svg } from "./dom.js";
import { grouped } from "./words.js";

/** @typedef {{ step: number, loss: number, validation_loss: number | null }} Point */
/**
 * @typedef {object} Told
 * @property {number} session
 * @property {"none" | "paused" | "playing" | "done" | "failed"} state
 * @property {number} [finished]
 * @property {number} [steps]
 * @property {{ position: string, dim: number, heads: number, layers: number }} [model]
 * @property {({ number: number, kind: string, message?: string } & Partial<Point>)[]} events
 */

const MOST = 400; // points of the drawn curve
/** Milliseconds between two requests: while training, while paused, and from a hidden page. */
const [OFTEN, RARELY, HIDDEN] = [200, 1000, 10_000];
const LARGEST = 10; // learning rate
const EXPECTED = 3000; // milliseconds within which an action shows its effect
const OPTIMIZERS = ["adamw", "adam", "sgd"];

/**
 * Follow the training while the page is open, by requesting news repeatedly: often while it trains
 * and the page is visible, rarely otherwise. A browser has six connections to a host for all its tabs, so none is kept open.
 * @returns {{ told: () => Told, points: () => Point[], message: () => string, listen: (hear: (told: Told) => void) => void, soon: () => void }}
 */
export function followTraining() {
  /** @type {Told} */
  let told = { session: 0, state: "none", events: [] };
  /** @type {Point[]} */
  let points = [];
  let message = "";
  let since = 0;
  let lively = 0; // the time until which news is expected
  let timer = 0;
  let asking = false;
  /** @type {(told: Told) => void} */
  let hear = () => {};

  /** @param {Told} next */
  function take(next) {
    const news = next.events.length > 0 || next.session !== told.session || next.state !== told.state;
    if (next.session !== told.session) {
      points = [];
      message = "";
      since = 0;
    }
    told = next;
    for (const event of next.events) {
      since = event.number;
      if (event.kind === "step") points.push(/** @type {Point} */ (event));
      if (event.kind === "error") message = String(event.message);
    }
    if (!news) return;
    lively = performance.now() + EXPECTED;
    hear(told);
  }

  async function look() {
    if (asking) return;
    asking = true;
    clearTimeout(timer);
    try {
      take(await ask(`/api/live/events?since=${told.session}-${since}`));
    } catch {
      // the server may be back later: try again
    }
    asking = false;
    const often = told.state === "playing" || performance.now() < lively;
    timer = window.setTimeout(look, document.hidden ? HIDDEN : often ? OFTEN : RARELY);
  }

  const soon = () => {
    lively = performance.now() + EXPECTED;
    look();
  };
  document.addEventListener("visibilitychange", () => document.hidden || look());
  window.addEventListener("pageshow", look);
  window.setTimeout(look);
  return { told: () => told, points: () => points, message: () => message, listen: (listener) => (hear = listener), soon };
}

/**
 * @param {import("./words.js").Words} words
 * @param {ReturnType<typeof followTraining>} training
 * @param {object} options
 * @param {() => import("./place.js").Place} options.place
 * @param {Record<string, number>} options.limits
 * @param {Record<string, string | number>} options.wishes optimizer, rate, steps and source, kept between builds
 * @param {() => void} options.started after a training was started
 * @param {(view: string) => void} options.look open a view of the training
 * @returns {{ element: HTMLElement, update: () => void }}
 */
export function trainingPanel(words, training, { place, limits, wishes, started, look }) {
  const state = html("span", { class: "live-state", role: "status" });
  const chart = html("div", { class: "live-chart" });
  const error = html("p", { class: "warning", role: "alert", hidden: true });
  const about = html("p", { class: "quiet" });
  const button = (/** @type {string} */ key, /** @type {() => void} */ act, kind = "save") =>
    html("button", { type: "button", class: kind, "data-keep": `live-${key}`, "data-live": key, onclick: act }, words.say(`studio.live.${key}`));
  const start = button("start", () => run(async () => (await begin(), await ask("/api/live/play", {}))), "save primary");
  const play = button("play", () => run(() => ask("/api/live/play", {})), "save primary");
  const pause = button("pause", () => run(() => ask("/api/live/pause", {})), "save primary");
  const step = button("step", () => run(async () => {
    if (["none", "done", "failed"].includes(training.told().state)) await begin();
    await ask("/api/live/step", { steps: 1 });
  }));
  const stop = button("stop", () => run(() => ask("/api/live/stop", {})));
  const looks = ["step", "film", "board"].map((view) => button(`look.${view}`, () => look(view)));

  const select = (/** @type {string} */ name, /** @type {string[]} */ values, /** @type {(value: string) => string} */ label) =>
    html("label", { class: "select" }, html("span", {}, words.say(`studio.live.${name}`)),
      html("select", { "data-keep": `live-${name}`, onchange: (/** @type {Event} */ event) => (wishes[name] = /** @type {HTMLSelectElement} */ (event.target).value) },
        values.map((value) => html("option", { value, selected: wishes[name] === value }, label(value)))));
  /** A field that says beside it what is wrong with its value. @param {string} name @param {Record<string, unknown>} more @param {(given: string) => string} problem */
  const field = (name, more, problem) => {
    const wrong = html("span", { class: "field-wrong", id: `live-${name}-wrong`, role: "alert", hidden: true });
    const input = /** @type {HTMLInputElement} */ (html("input", { class: "field short", "data-keep": `live-${name}`, value: wishes[name], "aria-describedby": wrong.id, "aria-invalid": "false", oninput: () => {
      wishes[name] = input.value;
      wrong.textContent = problem(input.value.trim());
      wrong.hidden = !wrong.textContent;
      input.setAttribute("aria-invalid", String(!wrong.hidden));
    }, ...more }));
    return html("label", { class: "select" }, html("span", {}, words.say(`studio.live.${name}`)), input, wrong);
  };
  const noRate = (/** @type {string} */ given) => (given && !(Number(given) > 0 && Number(given) <= LARGEST) ? words.say("studio.live.lr.wrong", { given }) : "");
  const noSteps = (/** @type {string} */ given) => (Number.isInteger(Number(given)) && Number(given) >= 1 && Number(given) <= limits.steps ? "" : words.say("studio.live.steps.wrong", { most: words.count(limits.steps) }));
  const settings = html("div", { class: "row" },
    select("source", ["typed", "built-in"], (value) => words.say(`studio.live.source.${value}`)),
    select("optimizer", OPTIMIZERS, (value) => ({ adamw: "AdamW", adam: "Adam", sgd: "SGD" })[value] ?? value),
    field("lr", { inputmode: "decimal", placeholder: words.say("studio.live.usual") }, noRate),
    field("steps", { type: "number", min: 1, max: limits.steps }, noSteps));

  async function begin() {
    const { position, dim, heads, layers, seed, more, text } = place();
    const rate = String(wishes.lr).trim();
    const wrong = noRate(rate) || noSteps(String(wishes.steps).trim());
    if (wrong) throw new Error(wrong);
    await ask("/api/live", {
      text: wishes.source === "typed" ? text : "",
      position, dim, heads, layers, seed, ...more,
      optimizer: wishes.optimizer,
      lr: rate ? Number(rate) : null,
      steps: Number(wishes.steps),
    });
    started();
  }

  /** @param {() => Promise<unknown>} act */
  async function run(act) {
    error.hidden = true;
    try {
      await act();
      training.soon();
    } catch (problem) {
      show(reason(words, problem));
    }
  }

  /** @param {string} text */
  function show(text) {
    error.hidden = !text;
    error.textContent = text;
  }

  function update() {
    const told = training.told();
    const points = training.points();
    const running = told.state === "playing" || told.state === "paused";
    const before = document.activeElement;
    settings.hidden = running;
    start.hidden = running;
    play.hidden = told.state !== "paused";
    pause.hidden = told.state !== "playing";
    stop.hidden = !running;
    // after play, the focus moves to pause
    if (before instanceof HTMLElement && before.hidden && before.dataset.live) (running ? (play.hidden ? pause : play) : start).focus();
    for (const one of looks) one.hidden = points.length === 0;
    const last = points[points.length - 1];
    const said = words.say(`studio.live.state.${told.state}`);
    state.textContent = told.state === "none" ? said : words.say("studio.live.at", { state: said, step: words.count(last?.step ?? 0), steps: words.count(told.steps ?? 0), loss: last ? grouped(last.loss, 3) : "–" });
    state.dataset.step = String(last?.step ?? 0);
    about.textContent = told.model && told.state !== "none" ? words.say("studio.live.about", { ...told.model }) : words.say("studio.live.invite");
    if (training.message()) show(training.message());
    chart.replaceChildren(...(points.length > 1 ? [curve(words, points)] : []));
  }

  update();
  const element = html("section", { class: "live-panel", "aria-label": words.say("studio.live.title") },
    html("div", { class: "row" }, html("h2", {}, words.say("studio.live.title")), state, about),
    html("div", { class: "row" }, settings, start, play, pause, step, stop, looks), error, chart);
  return { element, update };
}

/**
 * The loss so far, as a small curve.
 * @param {import("./words.js").Words} words
 * @param {Point[]} points
 */
function curve(words, points) {
  const [wide, tall, left, right, top, bottom] = [600, 120, 40, 12, 8, 20];
  const every = Math.ceil(points.length / MOST);
  /** @type {[number, number][]} each point stands for the mean of `every` */
  const thin = [];
  for (let at = 0; at < points.length; at += every) {
    const some = points.slice(at, at + every);
    thin.push([some[some.length - 1].step, some.reduce((sum, one) => sum + one.loss, 0) / some.length]);
  }
  const losses = thin.map(([, loss]) => loss);
  const [low, high] = [Math.min(0, ...losses), Math.max(...losses)];
  const [first, last] = [thin[0][0], thin[thin.length - 1][0]];
  const x = (/** @type {number} */ step) => left + ((wide - left - right) * (step - first)) / Math.max(1, last - first);
  const y = (/** @type {number} */ loss) => top + ((tall - top - bottom) * (high - loss)) / (high - low || 1);
  const path = thin.map(([step, loss], i) => `${i ? "L" : "M"}${x(step).toFixed(1)} ${y(loss).toFixed(1)}`).join("");
  const text = (/** @type {number} */ tx, /** @type {number} */ ty, /** @type {string} */ anchor, /** @type {string} */ said) => svg("text", { class: "tick", x: tx, y: ty, "text-anchor": anchor }, said);
  const label = words.say("studio.live.curve", { step: words.count(last), loss: grouped(points[points.length - 1].loss, 3) });
  return svg("svg", { viewBox: `0 0 ${wide} ${tall}`, role: "img", "aria-label": label, class: "hue-0", "data-points": points.length },
    svg("g", { class: "grid" }, svg("line", { class: "base", x1: left, x2: wide - right, y1: y(low), y2: y(low) }), svg("line", { x1: left, x2: wide - right, y1: y(high), y2: y(high) })),
    text(left - 6, y(high) + 4, "end", grouped(high, 1)), text(left - 6, y(low) + 4, "end", grouped(low, 1)),
    text(left, tall - 5, "start", words.count(first)), text(wide - right, tall - 5, "end", words.say("studio.live.steps.axis", { n: words.count(last) })),
    svg("path", { class: "line", d: path }));
}
