/** A value beside the place that is read, within the window: the line below a figure may be out of sight. */

import { html } from "./dom.js";

const BESIDE = 8; // pixels between a place and its value
const MARGIN = 6; // pixels between a value and the window's edge

/**
 * @param {HTMLElement} plot a positioned element
 * @returns {{ show: (place: { x: number, y: number, width?: number, height?: number }, text: string) => void, hide: () => void }}
 *   show text at a place, in pixels of the plot. Screen readers get the line below instead.
 */
export function valueTip(plot) {
  const tip = html("div", { class: "tip value-tip", "aria-hidden": "true", hidden: true });
  plot.append(tip);
  return {
    show({ x, y, width = 0, height = 0 }, text) {
      tip.textContent = text;
      tip.hidden = false;
      const box = plot.getBoundingClientRect();
      const [wide, tall] = [tip.offsetWidth, tip.offsetHeight];
      const [right, below] = [x + width + BESIDE, y + height + BESIDE];
      const left = box.left + right + wide + MARGIN > document.documentElement.clientWidth ? x - wide - BESIDE : right;
      const top = box.top + below + tall + MARGIN > window.innerHeight ? y - tall - BESIDE : below;
      tip.style.left = `${Math.max(MARGIN - box.left, left)}px`;
      tip.style.top = `${Math.max(MARGIN - box.top, top)}px`;
    },
    hide: () => (tip.hidden = true),
  };
}
