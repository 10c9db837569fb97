/** A query and a key in the planes that position rotates: move one position, and its hands rotate; move both, and q·k stays. */

import { numbersOf, spoken } from "./blocks.js";
import { swatch } from "./chart.js";
import { html, svg } from "./dom.js";
import { still } from "./flow.js";
import { frameOf, keptOf, told } from "./parts.js";
import { styleOf } from "./styles.js";

/** @typedef {import("./parts.js").Said} Said */
/** @typedef {{ kind: "turns", title: Said, labels: string[], rates: number[], q: import("./blocks.js").Block, k: import("./blocks.js").Block, names: [Said, Said], positions: [number, number], still: number, most: number }} Turns */

const DIALS = 8;
const SIZE = 104; // pixels
const REACH = 43;
const MOVING = 260; // milliseconds of a move

/**
 * @param {Turns} given
 * @param {import("./parts.js").Setting} setting
 * @returns {import("./parts.js").Drawn}
 */
export function turns(given, setting) {
  const { words } = setting;
  let figure = given;
  /** @type {[number, number]} */
  let at = [...(keptOf(given).at ?? figure.positions)];
  /** @type {[number, number]} what is drawn, on its way to `at` */
  let seen = [...at];
  let frame = 0;
  let playing = 0;
  let longest = [1, 1]; // of q and of k in any plane
  /** @type {{ element: HTMLElement, plane: number, hands: SVGElement[] }[]} */
  let dials = [];
  const row = html("div", { class: "dials turning" });
  const line = html("p", { class: "readout", "aria-live": "polite" });
  const sum = html("p", { class: "equation", "aria-live": "polite" });
  const moved = html("p", { class: "quiet" });
  const keys = html("div", { class: "turn-controls" });
  const names = () => figure.names.map((name) => told(words, name));
  const { element, refresh } = frameOf(setting, () => figure, [keys, row, sum, moved, line], { table: () => ({ head: head(), rows: table(spoken) }), csv: () => [head(), ...table((value) => value)] });

  const slider = (/** @type {number} */ which) => {
    const input = /** @type {HTMLInputElement} */ (html("input", { type: "range", min: "0", step: "1", "data-turn": ["q", "k", "both"][which], oninput: () => {
      stop();
      const value = Number(input.value);
      if (which < 2) go(which === 0 ? [value, at[1]] : [at[0], value]);
      else together(value);
    } }));
    return input;
  };
  const inputs = [0, 1, 2].map(slider);
  const play = html("button", { type: "button", class: "save play", onclick: () => (playing ? stop() : start()) });
  const home = html("button", { type: "button", class: "save", onclick: () => { stop(); go([...figure.positions]); } }, words.say("turns.home"));
  const outputs = [0, 1, 2].map(() => html("output", { class: "turn-value" }));
  const labels = [0, 1, 2].map(() => html("span"));

  /** Move both so that the earlier one stands at a position. @param {number} value */
  const together = (value) => {
    const by = value - Math.min(...at);
    go([at[0] + by, at[1] + by]);
  };

  const limit = () => figure.most - Math.abs(at[0] - at[1]);

  /** @param {[number, number]} next */
  function go(next) {
    at = /** @type {[number, number]} */ (next.map((value) => Math.max(0, Math.min(figure.most, Math.round(value)))));
    tell();
    const [from, begun] = [[...seen], performance.now()];
    cancelAnimationFrame(frame);
    if (still()) {
      seen = [...at];
      return paint();
    }
    const step = (/** @type {number} */ now) => {
      const share = Math.max(0, Math.min(1, (now - begun) / MOVING));
      seen = [0, 1].map((i) => from[i] + (at[i] - from[i]) * share * (2 - share));
      paint();
      if (share < 1 && element.isConnected) frame = requestAnimationFrame(step);
    };
    frame = requestAnimationFrame(step);
  }

  function start() {
    const tick = () => {
      if (!element.isConnected) return stop();
      together(Math.min(...at) >= limit() ? 0 : Math.min(...at) + 1);
      if (!still()) playing = window.setTimeout(tick, 2 * MOVING);
    };
    tick();
    name();
  }

  function stop() {
    window.clearTimeout(playing);
    playing = 0;
    name();
  }

  const name = () => (play.textContent = words.say(playing ? "flow.pause" : still() ? "flow.next" : "flow.play"));

  /** Length and angle of both in a plane at some positions, and what the plane gives to q·k. @param {number} plane @param {number[]} where */
  function inPlane(plane, where) {
    const parts = [figure.q, figure.k].map((block) => numbersOf(block).slice(2 * plane, 2 * plane + 2));
    const size = parts.map(([x, y]) => Math.hypot(x, y));
    const angle = parts.map(([x, y], i) => Math.atan2(y, x) + where[i] * figure.rates[plane]);
    return { size, angle, part: size[0] * size[1] * Math.cos(angle[0] - angle[1]) };
  }

  const total = (/** @type {number[]} */ where) => figure.still + figure.rates.reduce((all, _, plane) => all + inPlane(plane, where).part, 0);

  function build() {
    longest = [figure.q, figure.k].map((block) => {
      const values = numbersOf(block);
      return figure.rates.reduce((most, _, plane) => Math.max(most, Math.hypot(values[2 * plane], values[2 * plane + 1])), 1e-12);
    });
    const count = figure.rates.length;
    const shown = Array.from({ length: Math.min(DIALS, count) }, (_, i) => Math.round((i * (count - 1)) / Math.max(1, Math.min(DIALS, count) - 1)));
    dials = shown.map((plane) => {
      const hands = [0, 1].map((i) => svg("g", { class: `hue-${styleOf(i).hue}` }, svg("line", { class: "line", x1: 0, y1: 0, "stroke-dasharray": i ? "5 3" : null }), svg("circle", { class: "marker", r: 4.5 })));
      const dial = html("div", { class: "dial", role: "img", "data-plane": plane },
        svg("svg", { viewBox: `${-SIZE / 2} ${-SIZE / 2} ${SIZE} ${SIZE}`, width: SIZE, height: SIZE, "aria-hidden": "true" }, svg("circle", { class: "face", r: SIZE / 2 - 3 }), svg("path", { class: "turn-arc" }), ...hands),
        html("span", { class: "dial-name" }, figure.labels[plane]), html("span", { class: "dial-part quiet" }));
      dial.addEventListener("pointerenter", () => read(plane));
      drag(dial, plane);
      return { element: dial, plane, hands };
    });
    row.replaceChildren(...dials.map(({ element: one }) => one));
    keys.replaceChildren(play, ...inputs.map((input, i) => html("label", { class: "select" }, i < 2 ? swatch(styleOf(i)) : "", labels[i], input, outputs[i])), home);
    name();
  }

  /** Drag the hand that is nearer to the pointer: it follows by its plane's angle, in whole positions. @param {HTMLElement} dial @param {number} plane */
  function drag(dial, plane) {
    const angleAt = (/** @type {PointerEvent} */ event) => {
      const { left, top, width } = /** @type {Element} */ (dial.firstElementChild).getBoundingClientRect();
      return Math.atan2(top + width / 2 - event.clientY, event.clientX - left - width / 2);
    };
    const apart = (/** @type {number} */ a, /** @type {number} */ b) => Math.atan2(Math.sin(a - b), Math.cos(a - b));
    let held = -1;
    let last = 0;
    let free = 0; // position, before rounding
    dial.addEventListener("pointerdown", (event) => {
      stop();
      const { angle } = inPlane(plane, at);
      last = angleAt(event);
      held = Math.abs(apart(last, angle[0])) <= Math.abs(apart(last, angle[1])) ? 0 : 1;
      free = at[held];
      dial.setPointerCapture(event.pointerId);
      event.preventDefault();
    });
    dial.addEventListener("pointermove", (event) => {
      if (held < 0) return;
      const now = angleAt(event);
      const rate = figure.rates[plane];
      // a slow plane would take many turns of the hand to reach a far position: there the hand leads by at most 1/4 a turn a position
      free = Math.max(0, Math.min(figure.most, free + apart(now, last) / (Math.sign(rate || 1) * Math.max(Math.abs(rate), Math.PI / 24))));
      last = now;
      if (Math.round(free) !== at[held]) go(held === 0 ? [free, at[1]] : [at[0], free]);
    });
    for (const kind of ["pointerup", "pointercancel"]) dial.addEventListener(kind, () => (held = -1));
  }

  /** @param {number} plane */
  function read(plane) {
    const { size, angle, part } = inPlane(plane, at);
    const turn = (((angle[0] - angle[1]) % (2 * Math.PI)) + 2 * Math.PI) % (2 * Math.PI);
    line.textContent = words.say("turns.plane", { f: plane, q: spoken(size[0]), k: spoken(size[1]), angle: `${((turn * 180) / Math.PI).toFixed(1)}°`, part: spoken(part) });
  }

  function paint() {
    for (const { element: dial, plane, hands } of dials) {
      const { size, angle, part } = inPlane(plane, seen);
      hands.forEach((hand, i) => {
        const reach = 12 + (REACH - 12) * (size[i] / longest[i]);
        const [x, y] = [Math.cos(angle[i]) * reach, -Math.sin(angle[i]) * reach].map((value) => value.toFixed(2));
        hand.firstElementChild?.setAttribute("x2", x);
        hand.firstElementChild?.setAttribute("y2", y);
        hand.lastElementChild?.setAttribute("cx", x);
        hand.lastElementChild?.setAttribute("cy", y);
      });
      const between = Math.atan2(Math.sin(angle[1] - angle[0]), Math.cos(angle[1] - angle[0]));
      const tip = (/** @type {number} */ to) => `${(10 * Math.cos(to)).toFixed(2)} ${(-10 * Math.sin(to)).toFixed(2)}`;
      dial.querySelector(".turn-arc")?.setAttribute("d", `M${tip(angle[0])}A10 10 0 0 ${between > 0 ? 0 : 1} ${tip(angle[0] + between)}`);
      /** @type {Element} */ (dial.lastElementChild).textContent = spoken(part);
    }
  }

  function tell() {
    keptOf(figure).at = at;
    const found = total(at);
    const [q, k] = names();
    const home_ = { q: figure.positions[0], k: figure.positions[1], home: spoken(total(figure.positions)) };
    sum.textContent = words.say("turns.sum", { still: Math.abs(figure.still) > 1e-9 ? words.say("turns.still", { value: spoken(figure.still) }) : "", total: found.toFixed(4).replace("-", "−"), distance: at[0] - at[1] });
    sum.setAttribute("data-total", String(found));
    const by = at[0] - figure.positions[0];
    const same = by === at[1] - figure.positions[1];
    moved.textContent = same && by ? words.say("turns.same", { by }) : by || !same ? words.say("turns.moved", home_) : words.say("turns.hint");
    [q, k].forEach((text, i) => {
      labels[i].textContent = words.say("turns.position", { name: text });
      inputs[i].max = String(figure.most);
      inputs[i].value = String(at[i]);
      outputs[i].textContent = String(at[i]);
    });
    labels[2].textContent = words.say("turns.both");
    inputs[2].max = String(limit());
    inputs[2].value = String(Math.min(...at));
    outputs[2].textContent = String(Math.min(...at));
    for (const { element: dial, plane } of dials) {
      const { angle, part } = inPlane(plane, at);
      dial.setAttribute("aria-label", `${figure.labels[plane]}${words.say("join.colon")}${words.say("turns.part")} ${spoken(part)}, ${angle.map((one) => `${((((one * 180) / Math.PI) % 360) + 360).toFixed(0) % 360}°`).join(" / ")}`);
    }
  }

  const head = () => [words.say("dials.angle"), ...names(), words.say("turns.part")];
  const table = (/** @type {(value: number) => unknown} */ write) => figure.labels.map((label, plane) => {
    const { angle, part } = inPlane(plane, at);
    return [label, ...angle.map(write), write(part)];
  });

  function draw() {
    build();
    tell();
    paint();
  }

  /** @param {Turns} next */
  function set(next) {
    stop();
    figure = next;
    at = [...figure.positions];
    seen = [...at];
    refresh();
    draw();
  }

  return { element, draw, set };
}
