"""Kills, full disks and damaged files, in forks of one process; run by test_faults.py in a process of its own.

The parent never computes with torch, so that forking it is safe.

Usage: python fault_runs.py kills FOLDER COUNT train|compare, or disks FOLDER COUNT, or damage[SEED] FOLDER COUNT
"""

# ruff: noqa: B023
from __future__ import annotations

import errno
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

torch.set_num_threads(1)
import torch._dynamo  # noqa: E402

from headway.compare.run import Comparison, compare  # noqa: E402
from headway.shapes import HeadwayError  # noqa: E402
from headway.training import TrainSettings, load_model, load_watch, train  # noqa: E402
from headway.training.generation import generate, prompt_ids  # noqa: E402

SECONDS, MEMORY = 20, 2 * 10**9
MODEL = {"dim": 16, "layers": 1, "heads": 2, "position": "rotary(base=500.0)"}
SETTINGS = TrainSettings(steps=6, batch=2, length=8, checkpoint_every=2, validate_every=3)
COMPARISON = {"positions": ("rotary", "alibi"), "train_length": 8, "test_lengths": (8, 16), "seeds": (0,), "steps": 3}
COMPARISON |= {"batch": 2, "dim": 16, "layers": 1, "heads": 2}


def text(root: Path) -> str:
    path = root / "text.txt"
    if not path.exists():
        path.write_bytes(b"to be or not to be, that is the question: " * 60)
    return str(path)


def run_train(root: Path, out: Path) -> Any:
    done = train(
        text(root), out=out, model_config=MODEL, settings=SETTINGS, vocabulary="bpe", vocabulary_size=270, watch=2
    )
    assert done.history.status == "done"
    return done.history.loss, done.history.validation_loss, list(done.notes)


def run_compare(root: Path, out: Path) -> Any:
    found = compare(Comparison(text=text(root), **COMPARISON), out)  # type: ignore[arg-type]
    cells = [{k: v for k, v in one.items() if k not in ("seconds", "tokens_per_second")} for one in found["cells"]]
    return [cells, found["methods"], found["complete"]], found["notes"]


def run_read(root: Path, out: Path) -> Any:
    model, words, run = load_model(out)
    ids = list(generate(model, prompt_ids(words, "to be"), tokens=5, temperature=0.0))
    weights = [round(float(p.detach().double().sum()), 9) for p in model.parameters()]
    known = [run.history.loss, run.config, run.settings.plain()]
    return [ids, words.decode(ids).hex(), weights, *known], list(run.notes)


def run_watched(root: Path, out: Path) -> Any:
    watched = load_watch(out)
    sums = [round(float(one.weight.double().sum()), 9) for step in watched.steps for one in watched[step].values()]
    return [sums, watched.every, [[step, vars(one)] for step, one in sorted(watched.readings.items())]], []


def run_results(root: Path, out: Path) -> Any:
    from headway.compare.cells import RESULTS
    from headway.compare.page import page
    from headway.training.files import read_json

    notes: list[str] = []
    found = read_json(out / "results.json", RESULTS, notes)
    page(found)
    del found["created"], found["notes"]  # the time, and what the comparison itself said
    return [found], notes


def forked(action: Callable[[], Any], limit: bool = True) -> tuple[str, Any]:
    """What an action gives in a fork: ("value", …), ("refused", sentence), ("traceback", …), ("killed", status)."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(reader)
        if limit:
            signal.alarm(SECONDS)
        try:
            said: list[Any] = ["value", action()]
        except HeadwayError as error:
            said = ["refused", str(error)]
        except BaseException:
            said = ["traceback", traceback.format_exc()]
        if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 > MEMORY:
            said = ["traceback", "more than 2 GB of memory"]
        with os.fdopen(writer, "w") as file:
            json.dump(said, file)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        answer = file.read()
    status = os.waitpid(pid, 0)[1]
    if not answer:
        return "killed", status
    kind, value = json.loads(answer)
    return kind, value


def kills(root: Path, count: int, *what: str) -> None:
    """kill −9 at random times in train or compare; the resumed run ends with the same values."""
    dice, killed, inside = random.Random(0), 0, 0
    for name in what:
        run = {"train": run_train, "compare": run_compare}[name]
        begin = time.monotonic()
        kind, expected = forked(lambda: run(root, root / f"{name}-whole")[:-1], limit=False)
        took = time.monotonic() - begin
        assert kind == "value", expected
        target, number = killed + count, 0
        while killed < target:
            number += 1
            folder = root / f"{name}-{number}"
            for life in range(100):
                pid = os.fork()
                if not pid:
                    try:
                        run(root, folder)
                    finally:
                        os._exit(0)
                time.sleep(dice.random() * took * (1 if life < 8 else 3))
                os.kill(pid, signal.SIGKILL)
                if not os.WIFSIGNALED(os.waitpid(pid, 0)[1]):
                    break
                killed += 1
                inside += any(".tmp-" in path.name for path in folder.rglob("*")) if folder.exists() else 0
            kind, found = forked(lambda folder=folder: run(root, folder)[:-1], limit=False)
            assert kind == "value", found
            assert found == expected, (name, number)
            leftovers = [str(path) for path in folder.rglob("*.tmp-*") if path.parent.name != "checkpoints"]
            assert not leftovers, leftovers
            shutil.rmtree(folder)
    print(f"kills {killed} inside {inside}")


def disks(root: Path, count: int) -> None:
    """The disk is full from the n-th write on; one sentence, and the resumed run ends with the same values."""
    dice, full = random.Random(1), 0
    for name, run in (("train", run_train), ("compare", run_compare)):
        kind, expected = forked(lambda: run(root, root / f"{name}-whole")[:-1], limit=False)
        assert kind == "value", expected
        for number in range(count // 2):
            folder, after = root / f"{name}-{number}", dice.randrange(40)

            def filling(folder: Path = folder, after: int = after, run: Any = run) -> Any:
                real, left = os.write, [after]

                def write(handle: int, data: Any) -> int:
                    left[0] -= 1
                    if left[0] < 0:
                        real(handle, data[: len(data) // 2])
                        raise OSError(errno.ENOSPC, "No space left on device")
                    return real(handle, data)

                os.write = write
                return run(root, folder)[:-1]

            kind, found = forked(filling, limit=False)
            if kind == "refused":
                full += 1
                assert "No space left on device" in found, found
            else:
                assert (kind, found) == ("value", expected), (kind, found)
            kind, found = forked(lambda folder=folder, run=run: run(root, folder)[:-1], limit=False)
            assert (kind, found) == ("value", expected), (name, number, after, kind, found)
            shutil.rmtree(folder)
    print(f"full {full}")


HOSTILE = [0, -1, 1e308, 10**18, True, None, "", "x" * 1000, [], {}, [[[]]], 5, ["a"], {"a": 1}]


def spoiled(dice: random.Random, data: bytes) -> bytes:
    """A file with one fault: a flipped bit, a cut, nothing, rubbish, or a value of its JSON replaced or exchanged."""
    how = dice.choice(
        ["bit", "bit", "cut", "empty", "rubbish", "nested", "digits", "nan", "value", "value", "swap", "twice"]
    )
    if how == "bit":
        at = dice.randrange(len(data))
        return data[:at] + bytes([data[at] ^ 1 << dice.randrange(8)]) + data[at + 1 :]
    if how == "cut":
        return data[: dice.randrange(len(data))]
    if how in ("value", "swap", "twice", "digits", "nan") and data[:1] in b"{[":
        keep = dice.random() < 0.5  # half of them as a stranger would write them: without a seal
        value = json.loads(data)
        if isinstance(value, dict) and not keep:
            value.pop("sha256", None)
        places = []

        def walk(one: Any) -> None:
            for key, inner in one.items() if isinstance(one, dict) else enumerate(one):
                places.append((one, key))
                if isinstance(inner, dict | list):
                    walk(inner)

        walk(value)
        if not places:  # there is nothing in it
            return data[:-1]
        one, key = dice.choice(places)
        if how == "value":
            one[key] = dice.choice(HOSTILE)
        elif how == "swap":
            other, name = dice.choice(places)
            one[key], other[name] = json.loads(json.dumps([other[name], one[key]]))
        else:
            one[key] = "HERE"
            put = {"digits": "9" * 400, "nan": "NaN", "twice": '1, "format": 1, "format": 1'}[how]
            return json.dumps(value, separators=(",", ":")).replace('"HERE"', put, 1).encode()
        return json.dumps(value, separators=(",", ":")).encode()
    return {"nested": b"[" * 50_000, "empty": b""}.get(how, dice.randbytes(len(data)))


def damage(root: Path, count: int, seed: int = 2) -> None:
    """Every kind of file we write is damaged; who reads it refuses in one sentence, says so, or is right."""
    dice = random.Random(seed)
    run, compared = root / "run", root / "compared"
    readers = {run: (run_read, run_watched, run_train), compared: (run_results, run_compare)}
    assert forked(lambda: run_train(root, run), limit=False)[0] == "value"
    assert forked(lambda: run_compare(root, compared), limit=False)[0] == "value"
    expected = {}
    for folder, actions in readers.items():
        for action in actions:
            kind, expected[action] = forked(lambda action=action, folder=folder: action(root, folder)[:-1], limit=False)
            assert kind == "value", expected[action]
    outcomes = {"refused": 0, "said": 0, "right": 0}
    for number in range(count):
        folder = dice.choice((run, compared))
        copy = root / "copy"
        shutil.copytree(folder, copy)
        files = sorted(
            path for path in copy.rglob("*") if path.is_file() and path.name != ".lock" and path.stat().st_size
        )
        path = files[number % len(files)]
        path.write_bytes(spoiled(dice, path.read_bytes()))
        written = path.read_bytes()
        for action in readers[folder]:
            kind, found = forked(lambda action=action: action(root, copy))
            where = str((number, str(path.relative_to(copy)), action.__name__, written[:300], kind, str(found)[:900]))
            assert kind in ("value", "refused"), where
            if kind == "refused":
                assert "\n" not in found, where
                outcomes["refused"] += 1
            elif found[:-1] == expected[action]:
                outcomes["right"] += 1
            else:
                # what has no seal is taken for what 0.1.0 wrote, and it is said; of readings, which decide nothing, not
                unsealed = not written.startswith(b'{"sha256"')
                assert found[-1] or (action is run_watched and unsealed), where
                assert action not in ((run_train,) if unsealed else (run_train, run_compare)), where
                outcomes["said"] += 1
        shutil.rmtree(copy)
    print(f"damaged {count} {outcomes}")


if __name__ == "__main__":
    what, folder, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    if what.startswith("damage"):
        damage(folder, count, int(what.removeprefix("damage") or 2))
    else:
        {"kills": kills, "disks": disks}[what](folder, count, *sys.argv[4:])
