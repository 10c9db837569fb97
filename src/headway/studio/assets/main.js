/** The studio's page in a browser that has entered the studio. */

import { ask, newest, picture } from "./asking.js";
import { html } from "./dom.js";
import { open } from "./studio.js";
import { followTraining } from "./training.js";

const main = /** @type {HTMLElement} */ (document.getElementById("studio"));
main.classList.add("headway", "studio");
Promise.all([ask("/api/state"), ask("/assets/words.json")]).then(
  ([offers, strings]) => open(main, offers, strings, { views: newest("view"), next: newest("next", "/api/next"), training: followTraining(), page: () => ask("/api/page"), picture: offers.pictures ? picture : null }),
  (error) => main.append(html("p", { class: "warning", role: "alert" }, error.message || "The studio does not respond: is it still running?")),
);
