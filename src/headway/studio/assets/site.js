/** The studio without a server: its views were composed beforehand, and are files beside the page. */

import { html } from "./dom.js";
import { open } from "./studio.js";

/** @typedef {{ meta: any, views: Record<string, import("./studio.js").Answer> }} Part views of one kind, model and text, by layer, head and query */

/** @param {HTMLElement} element emptied and filled */
export function render(element) {
  const { offers, strings, page } = JSON.parse(document.getElementById("data")?.textContent ?? "{}");
  element.classList.add("headway", "studio");
  /** @type {Map<string, Part>} */
  const parts = new Map();
  /** @type {any} */ (window).headwayPart = (/** @type {string} */ name, /** @type {Part} */ part) => parts.set(name, part);
  let newest = 0;

  /** Files are loaded as scripts, because a page on disk may not fetch them. @param {string} name @returns {Promise<Part>} */
  function load(name) {
    const said = Object.fromEntries(Object.entries(strings).map(([language, words]) => [language, /** @type {any} */ (words)["studio.site.missing"]]));
    const problem = Object.assign(new Error(said.en), { said });
    return new Promise((done, fail) => {
      const found = () => {
        const part = parts.get(name);
        if (part) done(part);
        else fail(problem);
      };
      if (parts.has(name)) return found();
      document.head.append(html("script", { src: `views/${name}.js`, onload: found, onerror: () => fail(problem) }));
    });
  }

  /** @param {any} asked */
  async function views(asked) {
    newest += 1;
    const own = newest;
    const { models, texts, look } = offers.site;
    const { model, view, text } = asked;
    const wish = model.live ? "live" : model.run ? `run:${model.run}` : `fresh:${model.fresh.position}`;
    const name = nearest(view, Math.max(0, models.indexOf(wish)), Math.max(0, texts.indexOf(text)));
    const part = await load(name);
    if (own !== newest) throw new DOMException("superseded", "AbortError");
    const found = part.views[keyOf(asked, part, look[view])] ?? Object.values(part.views)[0];
    const [, m, t] = name.split("-").map(Number);
    const [kind, own_] = models[m].split(/:(.*)/s);
    const shown = ["film", "board", "longer"].includes(view) ? {} : { kind, text: texts[t], [kind === "run" ? "run" : "position"]: own_ };
    return { ...found, place: shown };
  }

  /** The file of a view: for this model and text if it is there, else for others. @param {string} view @param {number} m @param {number} t */
  function nearest(view, m, t) {
    const all = /** @type {string[]} */ (offers.site.parts).filter((name) => name.startsWith(`${view}-`));
    return [`${view}-${m}-${t}`, `${view}-${m}-0`].find((name) => all.includes(name)) ?? all.find((name) => name.endsWith(`-${t}`)) ?? all[0] ?? `${view}-0-0`;
  }

  const nothing = () => {};
  const training = { told: () => ({ session: 0, state: /** @type {const} */ ("none"), events: [] }), points: () => [], message: () => "", listen: nothing, soon: nothing };
  open(element, offers, strings, { views: Object.assign(views, { end: () => (newest += 1) }), training, page: async () => page, picture: null });
}

/** Which of a file's views is asked for; layer, head and query that it lacks become the nearest it has. @param {any} asked @param {Part} part @param {string[]} look */
function keyOf(asked, { meta }, look) {
  const counts = /** @type {Record<string, number>} */ ({ layer: meta.layers, head: meta.heads, query: meta.tokens.length });
  return look.map((name) => Math.max(0, Math.min(counts[name] - 1, asked[name] < 0 ? asked[name] + counts[name] : asked[name]))).join("-");
}
