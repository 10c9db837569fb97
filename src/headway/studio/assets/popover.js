/** A panel that a button opens above the page; Escape, or a click elsewhere, closes it. */

import { html } from "./dom.js";

const MARGIN = 8; // pixels to the button, and to the window's edge

/**
 * @param {string} name
 * @param {import("./dom.js").Child} label of the button
 * @param {...import("./dom.js").Child} content
 * @returns {{ element: HTMLElement, panel: HTMLElement, button: HTMLElement, close: () => void }} `element` holds both
 */
export function popover(name, label, ...content) {
  const panel = html("div", { class: "popover", popover: "auto", id: `popover-${name}` }, ...content);
  const button = html("button", { type: "button", class: "save", "data-keep": `open-${name}`, popovertarget: panel.id }, label);
  panel.addEventListener("toggle", (event) => {
    if (/** @type {ToggleEvent} */ (event).newState !== "open") return;
    const box = button.getBoundingClientRect();
    const left = Math.min(box.left, document.documentElement.clientWidth - panel.offsetWidth - MARGIN);
    panel.style.left = `${Math.max(MARGIN, left)}px`;
    panel.style.top = `${box.bottom + MARGIN}px`;
    panel.style.maxHeight = `${window.innerHeight - box.bottom - 2 * MARGIN}px`;
  });
  return { element: html("span", { class: "opens" }, button, panel), panel, button, close: () => panel.hidePopover() };
}
