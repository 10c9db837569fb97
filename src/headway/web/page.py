"""One HTML file that holds a page: data, words, style and program, and nothing fetched from anywhere."""

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

from headway.figures.words import LANGUAGES, strings

MODULES = (
    *("dom", "words", "frame", "host", "styles", "labels", "data", "scales", "chart"),
    *("colours", "blocks", "parts", "heatmap", "plots", "product", "many", "tiles", "figures", "around"),
)  # each imports only those before it
PAGES = ("render", "bench", "methods", "views")  # each one page, and imports only modules
_IMPORT = re.compile(r'^import (\{[^}]*\}) from "\./(\w+)\.js";$', re.MULTILINE)
_COMMENT = re.compile(r"/\*\*.*?\*/ ?|^ *// [^\n]*\n", re.MULTILINE | re.DOTALL)


def document(title: str, data: Mapping[str, Any], module: str) -> str:
    """A whole page as HTML text: what ``module``'s ``render(element, data)`` draws.

    Args:
        title: after "headway: ".
        data: what is drawn; numbers that are not finite become null.
        module: one of :data:`PAGES`.
    """
    # "<" as an escape keeps "</script>" and "<!--" inside a file name from ending the block.
    text = json.dumps(plain(data), ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    style = asset("style.css") + "body{margin:0}"
    program = bundle(module)
    allowed = f"script-src {_digest(program)}; style-src {_digest(style)}"
    policy = f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'"
    noscript = " ".join(strings(language)["page.noscript"] for language in LANGUAGES)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="generator" content="headway">
<title>headway: {escape(title)}</title>
<style>{style}</style>
</head>
<body>
<main id="report"></main>
<noscript><p>{escape(noscript)}</p></noscript>
<script type="application/json" id="data">{text}</script>
<script>{program}</script>
</body>
</html>
"""


def bundle(page: str) -> str:
    """Join the modules of a page into one script, each in its own function, so that it runs from ``file://``.

    A module imports with ``import { a, b } from "./other.js";`` and exports functions and constants by name, no more.
    Only what the page imports, and what that imports, is in it, without comments.
    """
    parts = ['"use strict";']
    for name, source in sources_of(page).items():
        source = _IMPORT.sub(r"const \1 = module_\2;", _COMMENT.sub("", source))
        exported = re.findall(r"^export (?:function|const) (\w+)", source, flags=re.MULTILINE)
        source = re.sub(r"^export ", "", source, flags=re.MULTILINE)
        parts.append(f"const module_{name} = (() => {{\n{source}\nreturn {{ {', '.join(exported)} }};\n}})();")
    parts.append('const data = JSON.parse(document.getElementById("data").textContent);')
    parts.append(f'module_{page}.render(document.getElementById("report"), data);')
    return "\n".join(parts)


def sources_of(page: str) -> dict[str, str]:
    """The source of a page and of every module that it needs, in the order in which they can be run."""
    sources = {name: asset(f"{name}.js") for name in (*MODULES, page)}
    needed = {page}
    for name in reversed(sources):  # a module stands before all that import it
        if name in needed:
            needed |= {other for _, other in _IMPORT.findall(sources[name])}
    return {name: source for name, source in sources.items() if name in needed}


def strings_of(page: str) -> dict[str, dict[str, str]]:
    """The words that a page can say, in every language: keys that its program names, whole or by how they begin.

    Each page would weigh as much as all of them together otherwise.
    """
    program = "\n".join(sources_of(page).values())
    named = set(re.findall(r'"([\w.]+)"', program))
    begun = tuple(re.findall(r"`(\w+\.[\w.]*)\$\{", program))
    return {
        language: {
            key: text
            for key, text in strings(language).items()
            if {key, key.rpartition(".")[0]} & named or key.startswith(begun)
        }
        for language in LANGUAGES
    }


def asset(name: str) -> str:
    """A file of the assets as text."""
    return files("headway.web").joinpath("assets", name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def plain(value: Any) -> Any:
    """A copy with tuples as lists and numbers that JSON cannot hold as None."""
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
