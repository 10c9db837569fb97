/** Requests to the studio's server, newest first. */

/**
 * Send a request and wait for the answer; an error's message is one sentence for the reader, or "" if the server is gone.
 * @param {string} path
 * @param {unknown} [body] sent as JSON if there is one
 * @param {AbortSignal} [signal]
 * @returns {Promise<any>}
 */
export async function ask(path, body, signal) {
  const options = body === undefined ? {} : { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  let response;
  try {
    response = await fetch(path, { ...options, signal, credentials: "same-origin", redirect: "error" });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Error("");
  }
  if (response.status === 409) throw new DOMException("superseded", "AbortError");
  const kind = response.headers.get("content-type") ?? "";
  const answer = kind.startsWith("application/json") ? await response.json() : { error: await response.text() };
  if (!response.ok) throw failed(answer, response.status);
  return answer;
}

/**
 * A view drawn for print, as a file.
 * @param {Record<string, unknown>} body
 * @returns {Promise<Blob>}
 */
export async function picture(body) {
  const response = await fetch("/api/picture", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), credentials: "same-origin", redirect: "error" });
  if (!response.ok) throw failed(await response.json(), response.status);
  return response.blob();
}

/**
 * What went wrong, in the reader's language where there are words for it; "" message is a server that does not answer.
 * @param {import("./words.js").Words} words
 * @param {any} error
 * @returns {string}
 */
export function reason(words, error) {
  return error.said?.[words.language] ?? (error.message || words.say("studio.gone"));
}

/** @param {{ error?: string, said?: Record<string, string> }} answer @param {number} status */
function failed({ error, said }, status) {
  return Object.assign(new Error(String(error ?? status)), { said });
}

/**
 * One request at a time: a newer request cancels the older one, here and on the server.
 * @param {string} slot what on the page it is for
 * @param {string} [path]
 * @returns {((body: Record<string, unknown>) => Promise<any>) & { end: () => void }}
 */
export function newest(slot, path = "/api/view") {
  const own = `${slot}-${crypto.getRandomValues(new Uint32Array(2)).join("-")}`; // windows do not cancel each other's requests
  /** @type {AbortController | undefined} */
  let before;
  const end = () => before?.abort();
  const next = (/** @type {Record<string, unknown>} */ body) => {
    end();
    before = new AbortController();
    return ask(path, { slot: own, ...body }, before.signal);
  };
  return Object.assign(next, { end });
}

/**
 * Waits until the last call is `wait` milliseconds old.
 * @param {() => void} act
 * @param {number} wait
 * @returns {{ soon: () => void, now: () => void }}
 */
export function calmly(act, wait) {
  let timer = 0;
  return {
    soon: () => {
      clearTimeout(timer);
      timer = window.setTimeout(act, wait);
    },
    now: () => {
      clearTimeout(timer);
      act();
    },
  };
}
