"""One thread in which all models run, so that the server stays responsive; newer requests replace older ones."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

ROOM = 32
"""Maximum waiting jobs."""


class Superseded(Exception):
    """A newer request has replaced this one."""


class Busy(Exception):
    """Too many jobs are waiting."""


class Worker:
    """Runs jobs one after the other in a thread of its own.

    A job belongs to a slot, such as the view a page shows; when a newer job of the same slot arrives, the older one is
    not started any more, or its result is thrown away.
    """

    def __init__(self) -> None:
        self._waiting: OrderedDict[str, tuple[Callable[[], Any], _Reply | None]] = OrderedDict()
        self._latest: dict[str, _Reply] = {}
        self._change = threading.Condition()
        self._closed = False
        # a daemon: a long computation must not keep the process alive
        self._thread = threading.Thread(target=self._run, name="headway-studio", daemon=True)
        self._thread.start()

    async def run(self, slot: str, job: Callable[[], Any]) -> Any:
        """Run a job and return its result.

        Raises:
            Superseded: when a newer job of this slot has arrived.
            Busy: when :data:`ROOM` jobs wait already.
        """
        reply = _Reply(asyncio.get_running_loop())
        with self._change:
            if self._closed or (len(self._waiting) >= ROOM and slot not in self._waiting):
                raise Busy
            if (older := self._latest.get(slot)) is not None:
                older.fail(Superseded())
            self._waiting[slot] = job, reply
            self._latest[slot] = reply
            self._change.notify()
        try:
            return await reply.future
        finally:
            with self._change:
                if self._latest.get(slot) is reply:
                    del self._latest[slot]
                    self._waiting.pop(slot, None)  # where nobody listens any more

    def forget(self, slot: str) -> None:
        """Drop the waiting job of a slot, because a newer one was requested elsewhere."""
        with self._change:
            self._waiting.pop(slot, None)
            if (older := self._latest.pop(slot, None)) is not None:
                older.fail(Superseded())

    def start(self, slot: str, job: Callable[[], Any]) -> None:
        """Run a job without waiting for its result."""
        with self._change:
            self._waiting[slot] = job, None
            self._change.notify()

    def close(self, timeout: float) -> None:
        """Accept no more jobs, and wait this many seconds for the running one."""
        with self._change:
            self._closed = True
            self._waiting.clear()
            self._change.notify()
        self._thread.join(timeout)

    def _run(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
                _, (job, reply) = self._waiting.popitem(last=False)
            try:
                result = job()
            except BaseException as error:  # the thread outlives whatever a job does
                if reply is not None:
                    reply.fail(error)
            else:
                if reply is not None:
                    reply.give(result)


class _Reply:
    """A future of the server's loop that another thread fulfils."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.future: asyncio.Future[Any] = loop.create_future()

    def give(self, value: Any) -> None:
        self._settle(lambda: self.future.set_result(value))

    def fail(self, error: BaseException) -> None:
        self._settle(lambda: self.future.set_exception(error))

    def _settle(self, act: Callable[[], None]) -> None:
        def settle() -> None:
            if not self.future.done():
                act()

        with contextlib.suppress(RuntimeError):  # the loop has ended, and the request with it
            self.loop.call_soon_threadsafe(settle)
