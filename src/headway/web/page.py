"""A page as one HTML file with data, words, style and program; it fetches nothing."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Mapping
from html import escape
from importlib.resources import files
from typing import Any

from headway.figures.words import LANGUAGES, part_of, strings
from headway.web.colours import tables, theme

MODULES = (
    *("theme", "dom", "words", "frame", "host", "styles", "labels", "data", "scales", "tip", "chart", "choices"),
    *("colours", "blocks", "parts", "heatmap", "links", "plots", "product", "many", "flow", "worked", "turns"),
    *("tiles", "figures", "around"),
)  # each imports only those before it
PAGES = ("render", "bench", "methods", "views")  # each one page, and imports only modules
_IMPORT = re.compile(r'^import (\{[^}]*\}) from "\./(\w+)\.js";$', re.MULTILINE)
_COMMENT = re.compile(r"/\*\*.*?\*/ ?|^ *// [^\n]*\n", re.MULTILINE | re.DOTALL)


def document(title: str, data: Mapping[str, Any], module: str) -> str:
    """A whole page as HTML text, drawn by ``render(element, data)`` of a module.

    Args:
        title: the title, after "headway: ".
        data: the data; values that are not finite become null.
        module: one of :data:`PAGES`.
    """
    style = asset("style.css") + "body{margin:0}"
    program = bundle(module)
    allowed = f"script-src {_digest(program)}; style-src {_digest(style)}"
    policy = f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'"
    noscript = " ".join(strings(language)["page.noscript"] for language in LANGUAGES)
    parts = f"<style>{style}</style>", f"<script>{program}</script>"
    return skeleton(f"headway: {title}", policy, *parts, data, root="report", noscript=noscript)


def skeleton(title: str, policy: str, head: str, script: str, data: Any, *, root: str, noscript: str) -> str:
    """A page that carries its own data.

    Args:
        title: its title.
        policy: its content-security policy.
        head: how it is styled, as HTML.
        script: the script, as HTML.
        data: what the script reads from the element ``data``; values that are not finite become null.
        root: the id of the element in which the script draws.
        noscript: what is said where it does not run.
    """
    # "<" as an escape keeps "</script>" and "<!--" inside a file name from ending the block.
    text = compact(plain(data)).replace("<", "\\u003c")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="generator" content="headway">
<title>{escape(title)}</title>
{head}
</head>
<body>
<main id="{root}"></main>
<noscript><p>{escape(noscript)}</p></noscript>
<script type="application/json" id="data">{text}</script>
{script}
</body>
</html>
"""


def compact(values: Any) -> str:
    """Values as JSON without spaces; those that are not finite are refused."""
    return json.dumps(values, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def bundle(page: str) -> str:
    """Join the modules of a page into one script, each in its own function, so that it runs from ``file://``.

    A module may only import by ``import { a, b } from "./other.js";`` and export functions and constants by name. The
    script contains only what the page imports, directly or indirectly, without comments.
    """
    data = 'const data = JSON.parse(document.getElementById("data").textContent);'
    return f'{joined(sources_of(page))}\n{data}\nmodule_{page}.render(document.getElementById("report"), data);'


def joined(sources: Mapping[str, str]) -> str:
    """Modules as one script, each as ``module_<name>``; each imports only those before it."""
    parts = ['"use strict";']
    for name, source in sources.items():
        source = _IMPORT.sub(r"const \1 = module_\2;", _COMMENT.sub("", source))
        exported = re.findall(r"^export (?:async )?(?:function|const) (\w+)", source, flags=re.MULTILINE)
        source = re.sub(r"^export ", "", source, flags=re.MULTILINE)
        parts.append(f"const module_{name} = (() => {{\n{source}\nreturn {{ {', '.join(exported)} }};\n}})();")
    return "\n".join(parts)


def sources_of(page: str) -> dict[str, str]:
    """The source of a page and of every module that it needs, in an order in which they can run."""
    return needed_by(page, {name: asset(f"{name}.js") for name in (*MODULES, page)})


def needed_by(page: str, sources: Mapping[str, str]) -> dict[str, str]:
    """Those sources that one of them imports, directly or indirectly, and itself."""
    needed = {page}
    for name in reversed(list(sources)):  # a module precedes all that import it
        if name in needed:
            needed |= {other for _, other in _IMPORT.findall(sources[name])}
    return {name: source for name, source in sources.items() if name in needed}


def strings_of(page: str) -> dict[str, dict[str, str]]:
    """The strings of a page in every language: the common ones, and its own."""
    parts = ("page", "page.flow", f"page.{page}") if "flow" in sources_of(page) else ("page", f"page.{page}")
    return {
        language: {key: text for part in parts for key, text in part_of(part, language).items()}
        for language in LANGUAGES
    }


def asset(name: str) -> str:
    """A file of the assets as text; theme.js, and the beginning of style.css, are generated from theme.json."""
    if name == "theme.js":
        return f"export const THEME = {json.dumps({**theme(), 'maps': tables()})};\n"
    text = files("headway.web").joinpath("assets", name).read_text(encoding="utf-8")
    return _colours() + text if name == "style.css" else text


def _colours() -> str:
    """The theme as CSS: light, dark by system setting, dark by choice, and print."""
    named = {**theme()["colours"], **{f"hue-{n}": (*hue, hue[0]) for n, hue in enumerate(theme()["hues"])}}
    light, dark, paper = (
        "".join(f"--{name}:{colours[n]};" for name, colours in named.items()) + f"color-scheme:{scheme}"
        for n, scheme in enumerate(("light", "dark", "light"))
    )
    hues = "".join(f".headway .hue-{n}{{--c:var(--hue-{n})}}\n" for n in range(len(theme()["hues"])))
    by_system = f'@media (prefers-color-scheme:dark){{.headway:not([data-theme="light"]){{{dark}}}}}'
    by_choice = f'.headway[data-theme="dark"]{{{dark}}}'
    printed = f'@media print{{.headway,.headway[data-theme],.headway:not([data-theme="light"]){{{paper}}}}}'
    return f".headway{{{light}}}\n{by_system}\n{by_choice}\n{printed}\n{hues}"


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def plain(value: Any) -> Any:
    """A copy with tuples as lists, and None for numbers that JSON cannot represent."""
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
