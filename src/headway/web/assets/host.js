/** A page inside another one, as in a notebook's cell: as tall as what it holds, and in the other's theme. */

/**
 * Does nothing where the page stands by itself.
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
  new MutationObserver(watch).observe(element, { childList: true }); // another language is another page
  watch();
  tell(); // at once: what is out of sight is not observed
  window.addEventListener("message", (event) => {
    if (event.source !== window.parent || !event.data?.headway) return;
    const { theme } = event.data.headway;
    if (theme !== "light" && theme !== "dark") return tell();
    const button = element.querySelector(`[data-keep="theme-${theme}"]`);
    const auto = element.querySelector('[data-keep="theme-auto"]');
    // what the reader chose counts more
    if (auto?.getAttribute("aria-pressed") === "true") /** @type {HTMLElement} */ (button).click();
  });
}
