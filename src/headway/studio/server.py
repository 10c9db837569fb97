"""The studio as a process: a port of this machine, the server on it, and an end at once on ctrl-C."""

from __future__ import annotations

import contextlib
import importlib
import os
import socket
import sys
import threading
import webbrowser
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from headway.shapes import HeadwayError
from headway.studio import fields
from headway.studio.guard import Guard
from headway.studio.library import Library
from headway.studio.routes import FIRST, Routes

PORT = 8765
"""Where the studio listens if that is free and nothing else is asked for."""
PATIENCE = 2.0
"""Seconds a computation may take to end when the studio does."""


class Studio:
    """The server, bound to its port but not yet running.

    Args:
        folders: what it shows, as :class:`headway.studio.library.Library` takes them.
        port: where to listen; None is :data:`PORT`, or any that is free.

    Raises:
        HeadwayError: on a folder that holds nothing to show, or a port that is taken.
    """

    def __init__(self, folders: Sequence[Path | str] = (), port: int | None = None) -> None:
        library = Library(folders)
        self._socket = _listening(port)
        self.port: int = self._socket.getsockname()[1]
        self.routes = Routes(library)
        self.guard = Guard(self.routes.application(), self.port)
        config = uvicorn.Config(
            self.guard,
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # nothing stands between the browser and this server
            timeout_graceful_shutdown=1,
        )
        self._server = _Server(config, self.routes.closing.set)

    @property
    def token(self) -> str:
        """Opens the studio once."""
        return self.guard.token

    @property
    def url(self) -> str:
        """The address to open."""
        return f"http://127.0.0.1:{self.port}/?token={self.token}"

    def run(self) -> None:
        """Serve until :meth:`stop` or a ctrl-C, and wait a little for what is being computed."""
        with contextlib.suppress(KeyboardInterrupt):
            self._server.run(sockets=[self._socket])
        self.routes.closing.set()
        training = threading.Thread(target=self.routes.stage.stop, daemon=True)
        training.start()
        self.routes.worker.close(PATIENCE)
        training.join(PATIENCE)

    def stop(self) -> None:
        """End :meth:`run`, from any thread."""
        self.routes.closing.set()
        self._server.should_exit = True

    def warm(self) -> None:
        """Compose what the page shows at first, while the browser starts; then import what a training will need."""
        first = fields.asked(FIRST)

        def prepare() -> None:
            self.routes.composed(first)
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
    count = len(studio.routes.library.entries())
    shown = f"{count} {'run' if count == 1 else 'runs'}" if count else "no runs yet, but with models made anew"
    print(f"headway studio, with {shown}:\n\n    {studio.url}\n", flush=True)
    print("The address opens once. Ctrl-C ends the studio.", flush=True)
    studio.warm()
    if browser and _has_screen():
        # its socket listens already: a browser that is faster than the server waits
        threading.Thread(target=webbrowser.open, args=(studio.url,), daemon=True).start()
    studio.run()
    print("\nThe studio has ended.", flush=True)


class _Server(uvicorn.Server):
    """Uvicorn, whose streams end when a signal arrives."""

    def __init__(self, config: uvicorn.Config, closing: Callable[[], Any]) -> None:
        super().__init__(config)
        self._closing = closing

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._closing()
        super().handle_exit(sig, frame)


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
