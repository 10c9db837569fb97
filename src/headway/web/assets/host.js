/** A page embedded in another one, as in a notebook's cell: as tall as its content, and in the other's theme. */

/**
 * Does nothing if the page is not embedded.
 * @param {HTMLElement} element the page
 */
export function followHost(element) {
  if (window.parent === window) return;
  const tell = () => {
    const height = element.querySelector(".page")?.getBoundingClientRect().height;
    if (height) window.parent.postMessage({ headway: { height } }, "*");
  };
  const observer = new ResizeObserver(tell);
  const watch = () => {
    observer.disconnect();
    const page = element.querySelector(".page");
    if (page) observer.observe(page);
  };
  new MutationObserver(watch).observe(element, { childList: true }); // the page is replaced when the language changes
  watch();
  tell(); // immediately, because elements out of view are not observed
  window.addEventListener("message", (event) => {
    if (event.source !== window.parent || !event.data?.headway) return;
    const { theme } = event.data.headway;
    if (theme !== "light" && theme !== "dark") return tell();
    const button = element.querySelector(`[data-keep="theme-${theme}"]`);
    const auto = element.querySelector('[data-keep="theme-auto"]');
    // the reader's choice takes precedence
    if (auto?.getAttribute("aria-pressed") === "true") /** @type {HTMLElement} */ (button).click();
  });
}
