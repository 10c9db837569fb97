"""A studio that runs in this process, and a client that sends arbitrary requests, as a hostile one would."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Client:
    """Speaks to a studio on 127.0.0.1; after ``enter`` with its cookie."""

    port: int
    token: str
    cookie: str = ""
    timeout: float = 30.0
    own: dict[str, str] = field(default_factory=dict)

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str | None) -> Reply:
        """One request. Headers are given as ``sec_fetch_site="none"``; None leaves out what is sent by default."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=self.timeout)
        given = {"Host": f"127.0.0.1:{self.port}", "Cookie": self.cookie or None}
        if method not in ("GET", "HEAD"):
            given |= {"Origin": f"http://127.0.0.1:{self.port}", "Content-Type": "application/json"}
        given |= {name.replace("_", "-").title(): value for name, value in headers.items()}
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in given.items():
            if value is not None:
                connection.putheader(name, value)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        response = connection.getresponse()
        reply = Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        connection.close()
        return reply

    def get(self, path: str, **headers: str | None) -> Reply:
        return self.ask("GET", path, **headers)

    def post(self, path: str, body: Any = None, **headers: str | None) -> Reply:
        return self.ask("POST", path, json.dumps({} if body is None else body).encode(), **headers)

    def view(self, view: str, text: str = "the cat sat on the mat", **more: Any) -> Reply:
        return self.post("/api/view", {"view": view, "text": text, "model": {"fresh": {"dim": 24, "heads": 3}}, **more})

    def raw(self, data: bytes) -> bytes:
        """Send bytes as they are, and read until the server closes or is silent."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=2) as connection:
            connection.sendall(data)
            found = b""
            with contextlib.suppress(TimeoutError, ConnectionError):
                while piece := connection.recv(65536):
                    found += piece
            return found

    def enter(self) -> Reply:
        reply = self.get(f"/?token={self.token}")
        self.cookie = reply.headers.get("set-cookie", "").partition(";")[0]
        return reply


@contextlib.contextmanager
def studio(folders: Sequence[Path] = ()) -> Iterator[Client]:
    """A studio over some folders, and a client that has not entered yet."""
    from headway.studio.server import Studio

    opened = Studio(folders)
    thread = threading.Thread(target=opened.run, daemon=True)
    thread.start()
    try:
        yield Client(opened.port, opened.token)
    finally:
        opened.stop()
        thread.join(10)
        assert not thread.is_alive(), "the studio did not end within ten seconds"
