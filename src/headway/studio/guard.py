"""Who may talk to the studio: this machine, the browser that was given the address, and the studio's own page.

A web page elsewhere can make a browser send requests to 127.0.0.1, and can point a name of its own there. So every
request must name the studio's own address as its Host, carry a cookie that only the printed address hands out, and,
where it changes something, come from the studio's own page.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qs

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

NAMES = ("127.0.0.1", "localhost", "[::1]")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    b"content-security-policy": POLICY.encode(),
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"cache-control": b"no-store",
    b"cross-origin-opener-policy": b"same-origin",
    b"cross-origin-resource-policy": b"same-origin",
}
"""On every answer; a policy of its own, as a report has, is kept."""


class Guard:
    """An ASGI application that lets through only what comes from the studio's own page.

    Args:
        app: what answers the requests that may come through.
        port: where the studio listens.

    ``token`` is for the printed address: ``/?token=…`` sets a cookie, redirects to ``/``, and is useless from then on.
    """

    def __init__(self, app: App, port: int) -> None:
        self.app = app
        self.hosts = frozenset(f"{name}:{port}" for name in NAMES)
        self.cookie = f"headway-studio-{port}"  # cookies know no ports: two studios would overwrite each other's
        self.token = secrets.token_urlsafe(32)
        self._spent = False
        self._session = secrets.token_urlsafe(32)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a request or hand it on."""
        if scope["type"] != "http":  # no websocket and no lifespan is ever offered
            return
        headers = _Headers(scope["headers"])

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = {name.lower() for name, _ in message.get("headers", ())}
                more = [(name, value) for name, value in HEADERS.items() if name not in own]
                message = {**message, "headers": [*message.get("headers", ()), *more]}
            await send(message)

        if self.may_enter(scope, headers):
            cookie = f"{self.cookie}={self._session}; Path=/; HttpOnly; SameSite=Strict"
            await _answer(guarded, 303, "", (b"location", b"/"), (b"set-cookie", cookie.encode()))
        elif refusal := self.refusal(scope, headers):
            await _answer(guarded, 403, refusal)
        elif scope["path"] == "/" and scope["query_string"]:
            await _answer(guarded, 303, "", (b"location", b"/"))  # an old address in a browser that is in already
        else:
            await self.app(scope, receive, guarded)

    def may_enter(self, scope: Message, headers: _Headers) -> bool:
        """Whether this is the first request with the token; it is spent by that."""
        if self._spent or scope["method"] != "GET" or scope["path"] != "/" or headers.one("host") not in self.hosts:
            return False
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])
        self._spent = len(given) == 1 and _same(given[0], self.token)
        return self._spent

    def refusal(self, scope: Message, headers: _Headers) -> str | None:
        """Why a request may not come through, in a sentence; None if it may."""
        host, site = headers.one("host"), headers.one("sec-fetch-site")
        if host not in self.hosts:
            return "The studio answers only at the address that it printed."
        if not any(_same(value, self._session) for value in headers.cookies(self.cookie)):
            return (
                "This browser does not know the studio. Open the address that headway studio printed; it opens once: "
                "for another browser, end the studio and start it again.\n"
                "此浏览器尚未获准访问。请打开 headway studio 打印的地址；该地址只能用一次，换浏览器请重新启动。"
            )
        # a navigation to the page itself may start anywhere; it shows nothing to whoever started it
        if scope["path"] != "/" and site not in (None, "same-origin", "none"):
            return "The studio answers only its own page."
        if scope["method"] not in ("GET", "HEAD") and (
            headers.one("origin") != f"http://{host}" or site not in (None, "same-origin")
        ):
            return "The studio takes changes only from its own page."
        return None


class _Headers:
    """Headers of a request by name; one that is there twice counts as wrong."""

    def __init__(self, raw: list[tuple[bytes, bytes]]) -> None:
        self._values: dict[str, list[str]] = {}
        for name, value in raw:
            self._values.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))

    def one(self, name: str) -> str | None:
        values = self._values.get(name, [])
        return values[0] if len(values) == 1 else "" if values else None

    def cookies(self, name: str) -> list[str]:
        pairs = (pair.strip().partition("=") for line in self._values.get("cookie", []) for pair in line.split(";"))
        return [value for key, _, value in pairs if key == name]


def _same(given: str, secret: str) -> bool:
    return hmac.compare_digest(given.encode(), secret.encode())  # takes as long for any wrong guess


async def _answer(send: Send, status: int, text: str, *headers: tuple[bytes, bytes]) -> None:
    body = text.encode()
    fixed = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*fixed, *headers]})
    await send({"type": "http.response.body", "body": body})
