"""Access to the studio: only this machine, the browser that opened the printed link, and the studio's own page.

Another web page can make a browser send requests to 127.0.0.1, and can point its own domain there. So every
request must name the studio's own address as its Host, carry a cookie that only the printed address hands out, and,
where it changes something, come from the studio's own page.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import threading
from collections import deque
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
"""Sent with every response; a response with its own policy, e.g. a report, keeps it."""


_LEADING = 'location.replace("/" + location.hash)'
ENTRY = f"""<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>headway studio</title><script>{_LEADING}</script>
<noscript><meta http-equiv="refresh" content="0; url=/"></noscript></head>
<body><p><a href="/">headway studio</a></p></body>
</html>
"""
_DIGEST = base64.b64encode(hashlib.sha256(_LEADING.encode()).digest()).decode()
ENTRY_POLICY = f"default-src 'none'; script-src 'sha256-{_DIGEST}'; base-uri 'none'; frame-ancestors 'none'"
"""Leads to the studio's page, with what stands after the "#" of a link. A redirect would not do: to a browser that came
by a link from another site, in a terminal or a notebook, it counts as a part of that link, with which a strict cookie
is not sent."""
_ENTRY_HEADER = (b"content-security-policy", ENTRY_POLICY.encode())
_PENDING = 16
"""Maximum sessions that wait for their first request."""


class Guard:
    """An ASGI application that accepts only requests from the studio's own page.

    Args:
        app: the application behind it.
        port: where the studio listens.

    ``token`` is for the printed address: ``/?token=…`` sets a cookie and leads to ``/``. The token is spent when the
    first browser comes back with its cookie, and not before: a preview of the link, which keeps no cookies, or an
    answer that was lost locks nobody out.
    """

    def __init__(self, app: App, port: int) -> None:
        self.app = app
        self.hosts = frozenset(f"{name}:{port}" for name in NAMES)
        self.cookie = f"headway-studio-{port}"  # cookies know no ports: two studios would overwrite each other's
        self.token = secrets.token_urlsafe(32)
        self.entered = threading.Event()
        """Set when a browser is in, and the token is spent."""
        self._session = ""
        self._pending: deque[str] = deque(maxlen=_PENDING)

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

        known = self.knows(headers)
        if not known and self.leads_in(scope, headers):
            await _answer(guarded, 200, ENTRY, b"text/html; charset=utf-8", _ENTRY_HEADER, *self._invitation(scope))
        elif refusal := self.refusal(scope, headers, known=known):
            await _answer(guarded, 403, refusal)
        elif scope["path"] == "/" and scope["query_string"]:
            await _answer(guarded, 303, "", _PLAIN, (b"location", b"/"))  # an old address in a browser that is in
        else:
            await self.app(scope, receive, guarded)

    def knows(self, headers: _Headers) -> bool:
        """Whether a request carries the session's cookie; the first that does decides which session it is."""
        if headers.one("host") not in self.hosts:
            return False
        given = headers.cookies(self.cookie)
        if not self.entered.is_set():
            found = [one for one in self._pending if any(_same(value, one) for value in given)]
            if found:
                self._session = found[0]
                self._pending.clear()
                self.entered.set()
        return self.entered.is_set() and any(_same(value, self._session) for value in given)

    def leads_in(self, scope: Message, headers: _Headers) -> bool:
        """Whether to answer with :data:`ENTRY`: to the token, and to whoever follows a link to the page itself.

        The cookie of a browser that is in does not come along with a link from another site; it does one page later.
        """
        if scope["method"] != "GET" or scope["path"] != "/" or headers.one("host") not in self.hosts:
            return False
        linked = headers.one("sec-fetch-site") in ("cross-site", "same-site")
        return self._has_token(scope) or (self.entered.is_set() and linked)

    def _has_token(self, scope: Message) -> bool:
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [])
        return len(given) == 1 and _same(given[0], self.token)

    def _invitation(self, scope: Message) -> list[tuple[bytes, bytes]]:
        """A cookie for whoever has the token, while it is not spent."""
        if self.entered.is_set() or not self._has_token(scope):
            return []
        self._pending.append(session := secrets.token_urlsafe(32))
        return [(b"set-cookie", f"{self.cookie}={session}; Path=/; HttpOnly; SameSite=Strict".encode())]

    def refusal(self, scope: Message, headers: _Headers, *, known: bool) -> str | None:
        """Why a request may not come through, in a sentence; None if it may."""
        host, site = headers.one("host"), headers.one("sec-fetch-site")
        if host not in self.hosts:
            return "The studio answers only at the address that it printed."
        if not known:
            return (
                "This browser has no access to the studio. Open the link that headway studio printed. It works in one "
                "browser: for another, stop the studio and start it again.\n"
                "此浏览器尚未获准访问。请打开 headway studio 打印的链接。"
                "该链接只对一个浏览器有效，更换浏览器请重新启动工作台。"
            )
        # a navigation to the page itself may start anywhere; it shows nothing to whoever started it
        if scope["path"] != "/" and site not in (None, "same-origin", "none"):
            return "The studio answers only its own page."
        if scope["method"] not in ("GET", "HEAD") and (
            headers.one("origin") != f"http://{host}" or site not in (None, "same-origin")
        ):
            return "The studio accepts changes only from its own page."
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


_PLAIN = b"text/plain; charset=utf-8"


async def _answer(send: Send, status: int, text: str, kind: bytes = _PLAIN, *headers: tuple[bytes, bytes]) -> None:
    body = text.encode()
    fixed = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*fixed, *headers]})
    await send({"type": "http.response.body", "body": body})
