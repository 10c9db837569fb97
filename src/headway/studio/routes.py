"""Routes of the studio: the page, views as JSON, and the live training.

GET  /                        the page
GET  /assets/<name>           its program, style and words
GET  /api/page                an empty page of views, in which the studio's page saves what it shows
GET  /api/state               runs, comparisons, methods, views, limits
POST /api/view                a view, with the shapes of its model
POST /api/picture             a view drawn for print: SVG, PNG or PDF
POST /api/next                the likeliest next tokens of a text
POST /api/live                start a training; /api/live/play, pause, step and stop go on with it
GET  /api/live/events         new events: ?since=…; pages poll, and hold no connection in between
GET  /api/tiles               a tile of the map of a long text: ?source=…&level=…&row=…&column=…&how=…
GET  /report/<id>             the report of a comparison
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import importlib.util
import itertools
import json
import re
import secrets
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from headway._version import __version__
from headway.figures.values import both
from headway.figures.words import LANGUAGES, strings
from headway.inspect.tiles import REACH, TileSource
from headway.plot import picture
from headway.positions import methods
from headway.shapes import HeadwayError
from headway.shipped import OPENING, measured
from headway.studio import fields
from headway.studio.library import Heavy, Library, Recent
from headway.studio.live_session import Stage
from headway.studio.program import program, style
from headway.studio.said import said
from headway.studio.worker import Busy, Superseded, Worker
from headway.views import NAMES, Question, View, view
from headway.views.predicting import next_tokens
from headway.views.view_helpers import Unsuited
from headway.web.page import compact
from headway.web.views_page import empty_page

_KINDS = {".js": "text/javascript", ".css": "text/css"}
_ACTS = ("play", "pause", "step", "stop")

Endpoint = Callable[[Request], Awaitable[Response]]


class Refused(Exception):
    """A refused request: a status and a sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


@dataclass
class Routes:
    """The application, and what it answers from.

    Args:
        library: runs and models.
        stage: the live training.
        worker: where models run.
    """

    library: Library
    stage: Stage = field(default_factory=Stage)
    worker: Worker = field(default_factory=Worker)

    def __post_init__(self) -> None:
        self._answers, self._maps = Recent(24), Recent(3)
        self._patient, self._slow = self.library.patient(), Worker()
        self.library.quick = True
        self._tiles = itertools.count()
        self._assets = {"studio.js": program("main"), "studio.css": style()}

    def application(self) -> Starlette:
        """As ASGI; who may ask is the :class:`headway.studio.guard.Guard`'s business."""
        gets: dict[str, Endpoint] = {
            "/": self.page,
            "/assets/{name}": self.asset,
            "/api/page": self.template,
            "/api/state": self.state,
            "/api/live/events": self.events,
            "/api/tiles": self.tile,
            "/report/{identity}": self.report,
        }
        posts: dict[str, Endpoint] = {
            "/api/view": self.view,
            "/api/picture": self.picture,
            "/api/next": self.next,
            "/api/live": self.start,
            "/api/live/{act}": self.act,
        }
        routes = [Route(path, self._said(answer), methods=["GET"]) for path, answer in gets.items()]
        routes += [Route(path, self._said(answer), methods=["POST"]) for path, answer in posts.items()]
        return Starlette(routes=routes, exception_handlers={HTTPException: _refused})

    async def page(self, _: Request) -> Response:
        """The page itself, which holds nothing."""
        return Response(_PAGE, media_type="text/html")

    async def asset(self, request: Request) -> Response:
        """The program, the style or the words."""
        name = request.path_params["name"]
        if name == "words.json":
            return _json({language: dict(strings(language)) for language in LANGUAGES})
        if name not in self._assets:
            raise Refused(404, "There is no such asset.")
        kind = _KINDS[name[name.rindex(".") :]]
        return Response(self._assets[name], media_type=kind)

    async def template(self, _: Request) -> Response:
        """A page that shows nothing yet."""
        return _json(empty_page())

    async def state(self, _: Request) -> Response:
        """Everything the page offers a choice of."""
        kept = await asyncio.to_thread(self.library.plain)  # reads folders
        return _json({**kept, **offers(), "opening": opening_of(kept["runs"]), "live": self.stage.plain(since=2**62)})

    async def view(self, request: Request) -> Response:
        """Compose a view; a newer request of the same slot takes this one's place.

        What takes long is done in a thread of its own, one after the other, so that other pages need not wait for it.
        """
        asked = fields.asked(await _body(request))
        return await self._computed(asked, functools.partial(self.composed, asked))

    async def next(self, request: Request) -> Response:
        """The likeliest next tokens of a text; the body is that of a view, without the view."""
        body = await _body(request)
        asked = fields.asked({**body, "view": "prediction"} if isinstance(body, dict) else body)
        return await self._computed(asked, functools.partial(self.predicted, asked))

    async def _computed(self, asked: fields.Asked, make: Callable[[Library], bytes]) -> Response:
        """Do something in the thread of quick jobs, or in that of slow ones."""
        self._slow.forget(asked.slot)
        try:
            made = await self.worker.run(asked.slot, lambda: make(self.library))
        except Heavy:
            made = await self._slow.run(asked.slot, lambda: make(self._patient))
        return Response(made, media_type="application/json")

    async def picture(self, request: Request) -> Response:
        """A view drawn for print by matplotlib."""
        asked, kind, language = fields.picture(await _body(request))

        def drawn() -> bytes:
            with self.stage.still():
                shown = self._viewed(asked, self._asked(asked, self._patient), self._patient)[1]
                return picture(shown, language=language, width="double").data(kind)

        made = await self._slow.run(f"picture-{asked.slot}", drawn)
        return Response(made, media_type=fields.PICTURES[kind])

    def close(self, timeout: float) -> None:
        """Take no more questions, and wait so many seconds for those that are being answered."""
        self._slow.close(0)
        self.worker.close(timeout)

    def composed(self, asked: fields.Asked, library: Library | None = None) -> bytes:
        """A view as JSON, computed in a worker thread while no training step runs.

        Args:
            asked: by the page.
            library: whose models to use; None is the quick one, which raises Heavy for what takes long.
        """
        library = library or self.library
        with self.stage.still():
            models = (asked.model, *asked.others)
            if any(isinstance(model, fields.OfLive) for model in models):
                return self._compose(asked, secrets.token_hex(), library)
            key = repr((replace(asked, slot=""), [library.version(model) for model in models]))
            if asked.view == "long":  # its tiles may be forgotten before its answer is
                return self._compose(asked, key, library)
            return self._answers.make(key, lambda: self._compose(asked, key, library))

    def predicted(self, asked: fields.Asked, library: Library) -> bytes:
        """The likeliest next tokens as JSON, computed in a worker thread while no training step runs."""
        with self.stage.still():
            question = library.question(asked, live=lambda text: self.stage.question(text, asked.view))
            return compact(next_tokens(question)).encode()

    def _compose(self, asked: fields.Asked, key: str, library: Library) -> bytes:
        begun = time.perf_counter()
        question = self._asked(asked, library)
        if asked.view == "long":
            question = self._with_tiles(question, key)
        question, made, lacks = self._viewed(asked, question, library)
        shown = made.plain()
        library.keep(question)
        meta = {
            "layers": len(question.attentions),
            "heads": question.attentions[0].shape.heads,
            "head_dim": question.attentions[0].shape.head_dim,
            "position": question.position.spec(),
            "name": question.name,
            "tokens": list(question.labels[: fields.LIMITS["tokens"]]),
            "count": len(question.labels),
            "layer": question.layer,
            "head": question.head,
            "query": question.row,
            "column": question.column,
            "keys": _keys(question) if asked.view == "split" else None,
            "seconds": round(time.perf_counter() - begun, 3),
            **lacks,
        }
        return compact({"view": shown, "meta": meta}).encode()

    def _asked(self, asked: fields.Asked, library: Library) -> Question:
        return library.question(asked, live=lambda text: self.stage.question(text, asked.view))

    def _viewed(
        self, asked: fields.Asked, question: Question, library: Library
    ) -> tuple[Question, View, dict[str, Any]]:
        """A view; of another model where the method has nothing to show, and what to say then."""
        try:
            return question, view(asked.view, question), {}
        except Unsuited as error:
            lacks = {"instead": {"of": question.position.spec(), "suits": error.suits}}
            question = self._asked(library.suited(asked, error.suits), library)
            return question, view(asked.view, question), lacks

    def _with_tiles(self, question: Question, key: str) -> Question:
        """The same question, with the map's tiles kept under a name by which the page can ask for more of them."""
        name = hashlib.blake2b(key.encode(), digest_size=16).hexdigest()
        reach = question.options.get("reach", REACH)
        tiles = self._maps.make(name, lambda: TileSource(question.seen, question.head, reach=reach))
        return replace(question, options={**question.options, "tiles": tiles, "source": name})

    async def tile(self, request: Request) -> Response:
        """One tile of a map that a page shows: its rows and columns, and its numbers, as bytes."""
        query = request.query_params
        level, row, column = (fields.number(name, query.get(name), 0, 10**6, 0) for name in ("level", "row", "column"))
        source, how = query.get("source", ""), query.get("how", "max")
        tiles = self._maps.get(source)
        if tiles is None:
            raise Refused(404, "This map is no longer cached: request the view again.")

        def body() -> bytes:
            with self.stage.still():
                found: bytes = tiles.body(level, row, column, how)
                return found

        made = await self.worker.run(f"tile-{next(self._tiles)}", body)  # tiles do not replace each other
        return Response(made, media_type="application/octet-stream")

    async def start(self, request: Request) -> Response:
        """Start a training, paused."""
        wanted = fields.training(await _body(request))

        def begin() -> None:
            with self.stage.still():
                self.stage.start(wanted)

        await self.worker.run("start", begin)
        return _json(self.stage.plain(since=2**62))

    async def act(self, request: Request) -> Response:
        """Play, pause, step or stop the training."""
        act, body = request.path_params["act"], await _body(request)
        if act not in _ACTS:
            raise Refused(404, "There is no such action.")
        steps = fields.count(body)
        live = self.stage.live
        if act == "step":
            live.step(steps)
        elif act == "stop":
            await asyncio.to_thread(live.stop)  # waits for the step that runs
        else:
            getattr(live, act)()
        return _json(self.stage.plain(since=2**62))

    async def events(self, request: Request) -> Response:
        """What the training did since an event, told as "session-number"; all of it where that was another training.

        Pages ask instead of listening: a browser has six connections to a host for all its tabs, and a stream of each
        tab would use them up.
        """
        last = request.query_params.get("since", "0-0")
        found = re.fullmatch(r"([0-9]{1,9})-([0-9]{1,12})", last)
        if found is None:
            raise HeadwayError(f"expected since as session-number, got {last[:60]!r}")
        return _json(self.stage.plain(int(found[2]) if int(found[1]) == self.stage.number else 0))

    async def report(self, request: Request) -> Response:
        """The report of a comparison, under the policy that it carries itself."""
        identity = request.path_params["identity"]
        if identity not in {one["id"] for one in (await asyncio.to_thread(self.library.plain))["comparisons"]}:
            raise Refused(404, "There is no such report.")
        page = await self.worker.run("report", lambda: self.library.report(identity))
        policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', page)
        assert policy is not None
        headers = {"content-security-policy": f"{policy[1]}; frame-ancestors 'none'"}
        return Response(page, media_type="text/html", headers=headers)

    def _said(self, answer: Endpoint) -> Endpoint:
        """The same endpoint, with whatever goes wrong as one sentence."""

        @functools.wraps(answer)
        async def answered(request: Request) -> Response:
            try:
                return await answer(request)
            except Refused as refused:
                return _json({"error": str(refused)}, refused.status)
            except HeadwayError as error:
                message = self.library.said(" ".join(str(error).split()))
                return _json({"error": message, "said": said(message)}, 400)
            except Superseded:
                return _json({"error": "A newer request has replaced this one."}, 409)
            except Busy:
                return _json(
                    {"error": "The studio is busy: try again in a moment.", "said": both("studio.error.busy")}, 503
                )
            except Exception:
                traceback.print_exc(file=sys.stderr)
                text = "An internal error of headway occurred; see the terminal."
                return _json({"error": text, "said": both("studio.error.internal")}, 500)

        return answered


FIRST: dict[str, Any] = {
    "view": "stepper",
    "slot": "first",
    "text": "The cat sat on the mat because it was tired",
    "model": {"fresh": {"position": "rotary", **fields.SIZES, "seed": 0}},
    "layer": 0,
    "head": 0,
    "query": -1,
    "column": 0,
    "others": [],
    "options": {},
}
"""What an address leaves out; it is told, so that both mean the same."""


def opening_of(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """What the page shows at first: a trained model, and of one that ships its head that finds repetitions.

    Args:
        runs: the trained models, as the library lists them.

    Returns:
        The request, ``asked``, and its text in each language, ``texts``; None where there is no trained model.
    """
    if not runs:
        return None
    first, texts = runs[0], dict.fromkeys(LANGUAGES, FIRST["text"])
    where: dict[str, Any] = {}
    if first["kind"] == "shipped":
        layer, head = measured(first["title"])["strongest"]["induction"]
        where, texts = {"view": "head", "layer": layer, "head": head}, OPENING
    else:
        first = next((one for one in runs if one["kind"] == "checkpoint"), first)
    return {"asked": {**FIRST, **where, "model": {"run": first["id"]}, "text": texts["en"]}, "texts": texts}


@functools.cache
def offers() -> dict[str, Any]:
    """What a page has to choose from, whatever folders are open."""
    words = {language: strings(language) for language in LANGUAGES}

    def said(key: str) -> dict[str, str]:
        return {language: known.get(key, key) for language, known in words.items()}

    return {
        "version": __version__,
        "limits": fields.LIMITS,
        "glossary": json.loads(files("headway.studio").joinpath("glossary.json").read_text(encoding="utf-8")),
        "first": FIRST,
        "pictures": importlib.util.find_spec("matplotlib") is not None,
        "views": [
            {"key": key, "title": said(f"view.{key}.title"), "question": said(f"view.{key}.question")} for key in NAMES
        ],
        "methods": [
            {
                "name": name,
                "spec": method().spec(),
                "title": method.title,
                "summary": {"en": method.summary, "zh": method.summary_zh or method.summary},
            }
            for name, method in methods().items()
        ],
        "options": [
            {
                "name": one.name,
                "kind": one.kind.__name__,
                "choices": getattr(one.schema, "choices", ()),
                "default": one.default,
                "title": said(f"setting.{one.name}"),
            }
            for one in fields.FORM
            if one.name not in FIRST["model"]["fresh"]
        ],
    }


def _keys(question: Question) -> list[int] | None:
    """The keys that the query may see; None where no mask hides any."""
    seen = question.seen.seen(slice(question.row, question.row + 1))
    if seen is None:
        return None
    heads = seen.expand(1, question.seen.heads, 1, -1)
    found: list[int] = heads[0, question.head, 0].nonzero()[:, 0].tolist()
    return found


async def _body(request: Request) -> Any:
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refused(415, "expected a body of JSON with the content type application/json.")
    large = Refused(413, f"expected a body of at most {fields.BODY:,} bytes, got more.")
    told = request.headers.get("content-length", "0")
    if not told.isdecimal() or int(told[:20]) > fields.BODY:
        raise large
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > fields.BODY:
            raise large
    try:
        return json.loads(bytes(body).decode(), parse_constant=_not_json)
    except (ValueError, RecursionError):
        raise Refused(400, "expected a body of JSON, got something else.") from None


def _not_json(name: str) -> None:
    raise ValueError(name)


def _json(values: Any, status: int = 200) -> Response:
    return Response(compact(values), status, media_type="application/json")


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    response = _json({"error": f"{error.detail}."}, error.status_code)
    response.headers.update(error.headers or {})
    return response


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>headway studio</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="/assets/studio.css">
<link rel="preload" as="fetch" crossorigin href="/api/state">
<link rel="preload" as="fetch" crossorigin href="/assets/words.json">
<script defer src="/assets/studio.js"></script>
</head>
<body>
<main id="studio"></main>
<noscript><p>headway studio needs JavaScript. headway studio 需要 JavaScript。</p></noscript>
</body>
</html>
"""
