"""The studio as a process: a local port, its server, and a prompt stop on ctrl-C."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import html
import importlib
import os
import socket
import sys
import tempfile
import threading
import webbrowser
from collections.abc import Iterator, Sequence
from pathlib import Path

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from headway.shapes import HeadwayError
from headway.shipped import FOLDER
from headway.studio import fields
from headway.studio.guard import Guard
from headway.studio.library import Library
from headway.studio.routes import Routes, opening_of

PORT = 8765
"""Default port of the studio, if it is free."""
PATIENCE = 2.0
"""Seconds that a running computation gets to finish when the studio stops."""
CONNECTIONS = 128
"""Maximum simultaneous connections; more are closed immediately."""
ARRIVAL = 10.0
"""Seconds in which a request must arrive, once a connection is open or its first byte is there."""
IDLE = 5
"""Seconds a connection may be idle between two requests."""
HEAD = 2**14
"""Maximum bytes of a request's header."""
HANDED = 60.0
"""Seconds that the file with the address is kept for a browser that is slow to start."""


class Studio:
    """The server, bound to its port but not yet running.

    Args:
        folders: what it shows, as :class:`headway.studio.library.Library` takes them, the first one first; the models
            that ship with headway come last, unless their folder is among them.
        port: where to listen; None is :data:`PORT`, or any that is free.

    Raises:
        HeadwayError: on a folder that holds nothing to show, or a port that is taken.
    """

    def __init__(self, folders: Sequence[Path | str] = (), port: int | None = None) -> None:
        library = Library(folders if FOLDER in folders else [*folders, FOLDER])
        self._socket = _listening(port)
        self.port: int = self._socket.getsockname()[1]
        self.routes = Routes(library)
        self.guard = Guard(self.routes.application(), self.port)
        config = uvicorn.Config(
            self.guard,
            http=_Patient,
            h11_max_incomplete_event_size=HEAD,
            timeout_keep_alive=IDLE,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # nothing stands between the browser and this server
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)

    @property
    def token(self) -> str:
        """Opens the studio once."""
        return self.guard.token

    @property
    def url(self) -> str:
        """The address to open; it is for people who may read this terminal."""
        return f"http://127.0.0.1:{self.port}/?token={self.token}"

    def run(self) -> None:
        """Serve until :meth:`stop` or a ctrl-C, and wait a little for what is being computed."""
        with contextlib.suppress(KeyboardInterrupt):
            self._server.run(sockets=[self._socket])
        training = threading.Thread(target=self.routes.stage.stop, daemon=True)
        training.start()
        self.routes.close(PATIENCE)
        training.join(PATIENCE)

    def close(self) -> None:
        """Give the port back, of a studio that never ran."""
        self._socket.close()

    def open_browser(self) -> None:
        """Open the user's browser, and wait until it is there or does not come.

        Everybody on a machine can read the arguments of all its processes. So the browser is given a file that only
        its user can read, and that leads to the address.
        """
        with handed_over(self.url) as page:
            webbrowser.open(page.as_uri())
            self.guard.entered.wait(HANDED)

    def stop(self) -> None:
        """End :meth:`run`, from any thread."""
        self._server.should_exit = True

    def warm(self) -> None:
        """Compose what the page shows at first, while the browser starts; then import what a training will need."""

        def prepare() -> None:
            opening = opening_of(self.routes.library.plain()["runs"])
            assert opening is not None  # models that ship are always there
            self.routes.composed(fields.asked(opening["asked"]))
            threading.Thread(target=importlib.import_module, args=("headway.backends.native",), daemon=True).start()

        self.routes.worker.start("warm", prepare)


def serve(folders: Sequence[Path | str] = (), port: int | None = None, browser: bool = True) -> None:
    """Open the studio and serve it until ctrl-C.

    Args:
        folders: run folders, comparison folders, or folders that hold some.
        port: where to listen on 127.0.0.1; None is 8765, or any that is free.
        browser: open it there.
    """
    studio = Studio(folders, port)
    entries = studio.routes.library.entries().values()
    models = sum(entry.kind in ("checkpoint", "shipped") for entry in entries)
    counts = {"run": len(entries) - models, "model": models}
    shown = " and ".join(f"{n} {what}{'' if n == 1 else 's'}" for what, n in counts.items() if n)
    print(f"headway studio, with {shown}:\n\n    {studio.url}\n", flush=True)
    print("The link works in one browser. Ctrl-C stops the studio.", flush=True)
    studio.warm()
    if browser and _has_screen():
        # its socket listens already: a browser that is faster than the server waits
        threading.Thread(target=studio.open_browser, daemon=True).start()
    studio.run()
    print("\nThe studio has stopped.", flush=True)


@contextlib.contextmanager
def handed_over(url: str) -> Iterator[Path]:
    """A page in a file of mode 0600 that leads to an address, as long as it is needed.

    >>> with handed_over("http://127.0.0.1:1/?token=x") as page:
    ...     oct(page.stat().st_mode & 0o777), "token=x" in page.read_text()
    ('0o600', True)
    >>> page.exists()
    False
    """
    handle, name = tempfile.mkstemp(prefix="headway-studio-", suffix=".html")
    page = Path(name)
    _HANDED.append(page)
    try:
        with open(handle, "w", encoding="utf-8") as file:
            file.write(_LEADING.format(url=html.escape(url)))
        yield page
    finally:
        page.unlink(missing_ok=True)
        _HANDED.remove(page)


_HANDED: list[Path] = []
"""Files that are there now; a process that ends takes them along, whichever thread still waits."""
_LEADING = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="referrer" content="no-referrer"><title>headway studio</title>
<meta http-equiv="refresh" content="0; url={url}"></head>
<body><p><a href="{url}">headway studio</a></p></body>
</html>
"""


@atexit.register
def _forget() -> None:
    for page in _HANDED:
        page.unlink(missing_ok=True)


class _Patient(H11Protocol):
    """Uvicorn's connection, which waits only so long for a request to arrive: uvicorn itself would wait for ever."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > CONNECTIONS:
            transport.abort()
        else:
            self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def _watch(self) -> None:
        """One timer for each request from its first byte to its last, however the bytes drip in."""
        if self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
            self._stop()
        elif self._timer is None:
            self._timer = self.loop.call_later(ARRIVAL, self._late)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        self._timer = None
        self.transport.abort()


def _listening(port: int | None) -> socket.socket:
    """A socket of 127.0.0.1, which no other machine reaches."""
    for wanted in (PORT, 0) if port is None else (port,):
        found = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        if os.name == "posix":  # elsewhere the option would let two programs share a port
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            found.bind(("127.0.0.1", wanted))
            found.listen(128)
        except OSError as error:
            found.close()
            failed = error
        else:
            return found
    raise HeadwayError(
        f"expected a free port, got {port}, which cannot be used ({os.strerror(failed.errno or 0)}): "
        f"choose another with --port, or leave --port out"
    )


def _has_screen() -> bool:
    """Whether a browser would open in a window; otherwise one for terminals could take this terminal over."""
    return sys.platform in ("win32", "darwin") or any(os.environ.get(n) for n in ("DISPLAY", "WAYLAND_DISPLAY"))
