"""A training in the studio: it starts, steps, pauses; pages are sent only what is new; the process ends at once."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from served import Client, studio

import headway
from headway.compare.cells import CELL
from headway.training.files import read_json, write_json_atomic

TEXT = "to be or not to be, that is the question. " * 4
SMALL = {"text": TEXT, "dim": 12, "heads": 3, "layers": 1, "steps": 500}


@pytest.fixture
def alone() -> Iterator[Client]:
    """A studio in which nothing trains yet."""
    with studio() as found:
        found.enter()
        yield found


class Following:
    """A page that repeatedly requests news, continuing where it was."""

    def __init__(self, client: Client, since: str = "0-0") -> None:
        self.client, self.since = client, since

    def until(self, steps: int) -> list[int]:
        """All steps told until this one is."""
        told: list[int] = []
        late = time.monotonic() + 10
        while steps not in told:
            assert time.monotonic() < late, f"expected step {steps} within ten seconds, got {told}"
            reply = self.client.get(f"/api/live/events?since={self.since}").json()
            told += [event["step"] for event in reply["events"] if event["kind"] == "step"]
            last = reply["events"][-1]["number"] if reply["events"] else self.since.partition("-")[2]
            self.since = f"{reply['session']}-{last}"
            time.sleep(0.02)
        return told


def told_until(client: Client, steps: int, since: str = "0-0") -> list[int]:
    return Following(client, since).until(steps)


def test_it_starts_paused_steps_and_pauses(alone: Client) -> None:
    assert alone.get("/api/state").json()["live"]["state"] == "none"
    assert alone.post("/api/live/play").status == 400
    assert alone.post("/api/live", SMALL).json()["state"] == "paused"
    following = Following(alone)
    alone.post("/api/live/step", {"steps": 3})
    assert following.until(3) == [1, 2, 3]
    alone.post("/api/live/play")
    following.until(10)
    assert alone.post("/api/live/pause").json()["state"] == "paused"
    finished = alone.get("/api/state").json()["live"]["finished"]
    time.sleep(0.1)
    assert alone.get("/api/state").json()["live"]["finished"] <= finished + 1
    assert alone.post("/api/live/stop").json()["state"] == "done"
    assert alone.post("/api/live/dance").status == 404


def test_a_step_is_told_as_it_is_taken_and_only_once(alone: Client) -> None:
    alone.post("/api/live", SMALL)
    following = Following(alone)
    alone.post("/api/live/step", {"steps": 2})
    following.until(2)
    alone.post("/api/live/step")
    assert following.until(3) == [3]  # not the points that it had already
    alone.post("/api/live/step", {"steps": 2})
    assert following.until(5) == [4, 5]
    # and a reader of an older training gets the new one from its beginning
    alone.post("/api/live", SMALL)
    alone.post("/api/live/step", {"steps": 2})
    assert following.until(2) == [1, 2]
    for wrong in ("x", "1", "1-", "1-2-3", "-1-2"):
        assert alone.get(f"/api/live/events?since={wrong}").status == 400


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_views_look_at_the_model_that_trains(alone: Client, optimizer: str) -> None:
    alone.post("/api/live", {**SMALL, "optimizer": optimizer})
    alone.post("/api/live/step", {"steps": 6})
    told_until(alone, 6)
    for name in ("head", "film", "step", "board"):
        reply = alone.view(name, "to be", model={"live": True}, head=2)
        assert reply.status == 200, (name, reply.body[:300])
        assert reply.json()["meta"]["tokens"] == ["t", "o", "␣", "b", "e"]
        assert reply.json()["meta"]["head"] == 2
    before = alone.view("head", "to be", model={"live": True}).json()["view"]
    alone.post("/api/live/step", {"steps": 4})
    told_until(alone, 10)
    assert alone.view("head", "to be", model={"live": True}).json()["view"] != before


def test_a_short_text_is_learned_to_its_end() -> None:
    from torch.nn.functional import cross_entropy

    from headway.config import TransformerConfig
    from headway.studio.fields import Fresh, Training
    from headway.studio.live_session import Stage

    stage = Stage()
    sentence = "to be or not to be, that is it"
    stage.start(Training(sentence, Fresh(TransformerConfig(1, dim=24, heads=3, layers=1)), steps=80, lr=0.01))
    stage.live.play()
    while stage.live.state == "playing":
        stage.live.wait(since=len(stage.live.events(0)), timeout=30)
    asked = stage.question(sentence, "head")
    logits = asked.model(asked.ids)[0, :-1]
    # the half that would be held out of a single sentence too
    assert cross_entropy(logits[15:], asked.ids[0, 16:]).item() < 1
    stage.start(Training("a", Fresh(TransformerConfig(1, dim=8, heads=1, layers=1))))  # however short
    stage.stop()


def test_newer_requests_replace_older_ones_of_their_slot(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    from concurrent.futures import ThreadPoolExecutor

    from headway.studio import routes

    real = routes.view

    def slow(*asked: Any) -> Any:
        time.sleep(0.4)
        return real(*asked)

    monkeypatch.setattr(routes, "view", slow)
    with ThreadPoolExecutor(4) as pool:
        replies = []
        for n in range(4):
            replies.append(pool.submit(client.view, "softmax", f"text number {n}", slot="typing"))
            time.sleep(0.05)
        assert [reply.result().status for reply in replies] == [409, 409, 409, 200]
        assert replies[-1].result().json()["meta"]["tokens"][-1] == "3"
        both = [pool.submit(client.view, "softmax", "two slots", slot=slot) for slot in ("one", "two")]
        assert [reply.result().status for reply in both] == [200, 200]


def test_what_takes_long_holds_up_nobody_else(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    from concurrent.futures import ThreadPoolExecutor

    from headway.studio import routes

    real, going, done = routes.view, threading.Event(), threading.Event()

    def slow(name: str, question: Any) -> Any:
        if len(question.labels) > 500:
            going.set()
            assert done.wait(20)
        return real(name, question)

    monkeypatch.setattr(routes, "view", slow)
    large = {"fresh": {"dim": 64, "heads": 16, "layers": 2}}
    with ThreadPoolExecutor(3) as pool:
        first, second = (
            pool.submit(client.view, "softmax", f"{n} " + "again " * 600, model=large, slot=f"tab-{n}") for n in (1, 2)
        )
        assert going.wait(20)
        for text in ("another page", "and one more"):
            assert client.view("softmax", text, slot="other").status == 200
        assert client.post("/api/live", {**SMALL, "steps": 2}).status == 200
        assert not first.done()
        assert not second.done()
        # whoever asks for something else meanwhile need not wait for what was asked for before
        assert client.view("softmax", "a short text", slot="tab-1").status == 200
        assert first.result(5).status == 409
        done.set()
        assert second.result(20).status == 200
    assert (
        client.view("head", "x " * 1000, model={"fresh": {"position": "swin(height=4096, width=4096)"}}).status == 400
    )


def test_a_saved_model_of_another_size_than_its_settings_is_refused(folders: list[Path], tmp_path: Path) -> None:
    shutil.copytree(folders[1], tmp_path / "compared")
    for cell in (tmp_path / "compared" / "cells").iterdir():
        known = read_json(cell / "cell.json", CELL)  # whose seal is whole again below
        known["identity"]["model"] = [200_000, 2, 2]
        write_json_atomic(cell / "cell.json", known)
    with studio([tmp_path / "compared"]) as client:
        client.enter()
        runs = [one for one in client.get("/api/state").json()["runs"] if one["kind"] != "shipped"]
        assert runs
        for one in runs:
            begun = time.perf_counter()
            reply = client.view("head", "to be", model={"run": one["id"]})
            assert reply.status == 400, reply.body
            assert time.perf_counter() - begun < 5


COMMAND = [sys.executable, "-m", "headway", "studio", "--no-browser"]
SOURCE = str(Path(headway.__file__).parents[1])


def environment(*before: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([*map(str, before), SOURCE])}


@contextlib.contextmanager
def started(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A studio in its own process, and the token it printed."""
    with subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.PIPE, text=True, env=environment()) as process:
        try:
            assert process.stdout is not None
            found = (re.search(r"http://127\.0\.0\.1:\d+/\?token=(\S+)", line) for line in process.stdout)
            yield process, next(one[1] for one in found if one)
        finally:
            process.kill()


def test_ctrl_c_ends_it_at_once_even_while_it_trains_and_a_browser_is_connected() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    with started("--port", str(port)) as (process, token):
        client = Client(port, token)
        assert client.enter().status == 200
        client.post("/api/live", {**SMALL, "steps": 100_000})
        client.post("/api/live/play")
        told_until(client, 2)
        with socket.create_connection(("127.0.0.1", port)) as idle:
            begun = time.perf_counter()
            process.send_signal(signal.SIGINT)
            rest, _ = process.communicate(timeout=10)
            assert time.perf_counter() - begun < 3
            assert process.returncode == 0
            assert "stopped" in rest
            with contextlib.suppress(ConnectionResetError):  # what the system says of one that was not accepted yet
                assert idle.recv(1) == b""


def test_a_used_port_is_one_sentence_and_no_port_means_any(client: Client) -> None:
    command = [*COMMAND, "--port", str(client.port)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment())
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: expected a free port, got {client.port}, which cannot be used")
    with studio() as another:
        assert another.port != client.port


def test_missing_libraries_and_folders_say_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "uvicorn.py").write_text("raise ImportError('no uvicorn here', name='uvicorn')")
    done = subprocess.run(COMMAND, capture_output=True, text=True, timeout=60, env=environment(tmp_path), cwd=tmp_path)
    assert done.returncode == 2
    assert "got no uvicorn: pip install 'headway[studio]'" in done.stderr
    command = [*COMMAND, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment())
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "expected a folder of `headway train` or `headway compare`" in done.stderr
