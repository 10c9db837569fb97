/** The reader's state: view, text, model, layer and head, stored in the address after the "#". */

/**
 * @typedef {object} Place
 * @property {string} view
 * @property {string} text
 * @property {"fresh" | "run" | "live"} kind of model
 * @property {string} position of a fresh model, as are the next four
 * @property {number} dim
 * @property {number} heads
 * @property {number} layers
 * @property {number} seed
 * @property {Record<string, string | number | boolean>} more of a fresh model, by the name of the option
 * @property {string} run the id of a trained model
 * @property {number} layer
 * @property {number} head
 * @property {number} query
 * @property {number} column
 * @property {string[]} others further models: "fresh:" and a method, "run:" and an id, or "live"
 * @property {string} results the id of a comparison
 * @property {Record<string, string | number>} options what single views ask for besides
 */

const SIZES = /** @type {const} */ (["dim", "heads", "layers", "seed"]);
const NUMBERS = /** @type {const} */ ([...SIZES, "layer", "head", "query", "column"]);
const WORDS = /** @type {const} */ (["view", "text", "kind", "position", "run", "results"]);
/** A longer text is stored in the browser's history instead of the address. */
const LONGEST = 2000;

/**
 * @param {Place} place
 * @param {Place | null} home what is left out of the address; null: nothing, whatever opens first elsewhere
 * @returns {string} with "#"
 */
export function addressOf(place, home) {
  const found = new URLSearchParams({ view: place.view, kind: place.kind });
  for (const name of [...WORDS, ...NUMBERS]) {
    if (name === "view" || name === "kind" || place[name] === home?.[name] || (home && name === "text" && place.text.length > LONGEST)) continue;
    found.set(name, String(place[name]));
  }
  for (const other of place.others) found.append("other", other);
  for (const [name, value] of Object.entries(place.options)) found.set(`o.${name}`, String(value));
  for (const [name, value] of Object.entries(place.more)) found.set(`m.${name}`, String(value));
  return `#${found}`;
}

/**
 * @param {string} address with or without "#"
 * @param {Place} home what is not told
 * @param {string} [text] a long one, that the address does not hold
 * @returns {Place}
 */
export function placeOf(address, home, text) {
  const found = new URLSearchParams(address.replace(/^#/, ""));
  const place = { ...home, others: found.getAll("other").slice(0, 7), options: /** @type {Record<string, string | number>} */ ({}), more: /** @type {Place["more"]} */ ({}) };
  for (const name of WORDS) if (found.has(name)) place[/** @type {"text"} */ (name)] = String(found.get(name));
  for (const name of NUMBERS) {
    const value = Number(found.get(name));
    if (found.has(name) && Number.isInteger(value)) place[name] = value;
  }
  const named = (/** @type {string} */ name) => found.has(name) || (name === "more" && [...found.keys()].some((one) => one.startsWith("m.")));
  if (!["fresh", "run", "live"].includes(found.get("kind") ?? "")) place.kind = ["position", ...SIZES, "more"].some(named) ? "fresh" : home.kind;
  if (text !== undefined && !found.has("text")) place.text = text;
  for (const [name, value] of found) if (name.startsWith("o.") && value) place.options[name.slice(2)] = /^-?\d{1,9}(\.\d{1,9})?$/.test(value) ? Number(value) : value;
  for (const [name, value] of found) if (name.startsWith("m.") && value) place.more[name.slice(2)] = plain(value);
  return place;
}

/**
 * An option of a model as text.
 * @param {string} text
 * @returns {string | number | boolean}
 */
export function plain(text) {
  if (text === "true" || text === "false") return text === "true";
  return text.trim() !== "" && Number.isFinite(Number(text)) ? Number(text) : text;
}

/**
 * A model as the server expects it.
 * @param {Place} place
 * @param {string} [other] one of `place.others`; without it the model itself
 * @returns {Record<string, unknown>}
 */
export function modelOf(place, other) {
  const { dim, heads, layers, seed, more } = place;
  const chosen = other ?? { fresh: `fresh:${place.position}`, run: `run:${place.run}`, live: "live" }[place.kind];
  if (chosen === "live") return { live: true };
  if (chosen.startsWith("run:")) return { run: chosen.slice(4) };
  return { fresh: { position: chosen.replace(/^fresh:/, ""), dim, heads, layers, seed, ...more } };
}
