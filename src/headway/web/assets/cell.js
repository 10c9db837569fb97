/** Runs beside each frame in a notebook: makes frames as tall as their pages, and as dark as the notebook. */
(() => {
  const frames = () => [...document.querySelectorAll("iframe[data-headway]")];

  /** Whether the notebook is dark or light: JupyterLab, VS Code and Colab each indicate it differently. */
  function theme() {
    const { jpThemeLight, vscodeThemeKind } = document.body.dataset;
    if (jpThemeLight !== undefined) return jpThemeLight === "false" ? "dark" : "light";
    if (vscodeThemeKind !== undefined) return vscodeThemeKind.includes("light") ? "light" : "dark";
    return document.documentElement.getAttribute("theme");
  }

  const tell = (frame) => frame.contentWindow?.postMessage({ headway: { theme: theme() } }, "*");

  frames().forEach(tell); // those that are open already answer
  if (window.headwayFrames) return;
  window.headwayFrames = true;
  addEventListener("message", (event) => {
    const frame = frames().find((one) => one.contentWindow === event.source);
    const height = event.data?.headway?.height;
    if (!frame || !Number.isFinite(height)) return;
    if (!frame.style.minHeight) tell(frame); // the first word from a frame
    frame.style.minHeight = "1px";
    frame.style.height = `${Math.min(30000, Math.ceil(height))}px`;
  });
  new MutationObserver(() => frames().forEach(tell)).observe(document.body, { attributes: true });
})();
