"""Claims: one worker per cell, dead ones are succeeded, and one that was cut off cannot write over its successor."""

from __future__ import annotations

import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from headway.compare.claims import Claim, Claims, current_folder, superseded
from headway.training.files import read_json, write_json_atomic

CELL = "rotary-seed0-0a1b2c"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "cells" / CELL).mkdir(parents=True)
    (tmp_path / "cells" / CELL / "cell.json").write_text("first")
    return tmp_path


def taken(claims: Claims) -> Claim:
    claim = claims.take(CELL)
    assert claim is not None
    return claim


def rewrite_owner(claim: Claim, **changes: Any) -> None:
    owner = read_json(claim.path / "owner.json")
    write_json_atomic(claim.path / "owner.json", {**owner, **changes})


def test_of_many_that_want_a_cell_one_gets_it(tmp_path: Path) -> None:
    names, won = [f"cell{n}" for n in range(10)], list[str]()

    def want() -> None:
        claims = Claims(tmp_path)
        won.extend(name for name in names if claims.take(name) is not None)

    threads = [threading.Thread(target=want) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == names
    assert all(os.listdir(tmp_path / "claims" / name) == ["1"] for name in names)  # losers leave nothing


def test_what_a_killed_worker_began_is_removed_by_the_next(tmp_path: Path) -> None:
    half = tmp_path / "claims" / CELL / "1.tmp-4484-4f44ec0b"
    half.mkdir(parents=True)
    (half / "owner.json.tmp-4484-cb82fdea").write_text("{")
    with taken(Claims(tmp_path)):
        assert os.listdir(half.parent) == ["1"]


def test_a_live_worker_keeps_its_cell_and_tells_what_it_does(out: Path) -> None:
    with taken(Claims(out, lease=0.6)) as claim:
        claim.doing = {"what": "train"}
        other = Claims(out, lease=0.6)
        for _ in range(12):  # two leases
            assert other.take(CELL) is None
            time.sleep(0.1)
        assert (other.held(CELL) or {})["what"] == "train"
        claim.outcome = "done"
    assert other.held(CELL) is None
    assert (other.end(CELL, 1) or {})["outcome"] == "done"
    again = taken(other)
    assert (again.path.name, again.folder.name) == ("2", CELL)  # nobody else can write there: no copy


def test_a_process_that_is_gone_is_succeeded_at_once_in_the_same_folder(out: Path) -> None:
    first = taken(Claims(out))
    assert Claims(out).take(CELL) is None
    rewrite_owner(first, started="0")  # an earlier process of the same number
    second = taken(Claims(out))
    assert second.folder == first.folder
    assert Claims(out).ends(CELL, 0) == [None, None]
    rewrite_owner(second, started="0", host="elsewhere")  # of another machine nothing is known
    assert Claims(out).take(CELL) is None


def test_one_that_was_cut_off_cannot_write_over_its_successor(out: Path) -> None:
    first = taken(Claims(out, lease=0.2))  # shows no sign of life: not entered
    other = Claims(out)
    assert other.take(CELL) is None
    time.sleep(0.3)
    second = taken(other)
    assert second.folder.name == f"{CELL}.2"
    assert (second.folder / "cell.json").read_text() == "first"
    with first:  # it comes back
        (first.folder / "cell.json").write_text("late")
        time.sleep(0.2)
        assert first.lost
    assert current_folder(out / "cells", CELL) == second.folder
    assert (second.folder / "cell.json").read_text() == "first"
    assert superseded(out / "cells") == [first.folder]


def test_a_successor_that_dies_before_it_has_copied_does_not_hand_on_the_folder_of_the_lost(out: Path) -> None:
    taken(Claims(out, lease=0.05))
    other = Claims(out)
    other.take(CELL)
    time.sleep(0.1)
    second = taken(other)
    shutil.rmtree(second.folder)
    rewrite_owner(second, started="0")
    third = taken(Claims(out))  # the second is gone, but the first may still write
    assert third.folder.name == f"{CELL}.3"


def test_a_checkpoint_removed_while_it_is_copied_is_left_out(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = out / "cells" / CELL / "checkpoints"
    for step in ("step-00000100", "step-00000200"):
        (folder / step).mkdir(parents=True)
        for name in ("manifest.json", "state.json"):
            (folder / step / name).write_text("whole")
    copyfile = shutil.copyfile

    def removing(source: Path, to: Path) -> None:
        copyfile(source, to)
        if source.parent.name == "step-00000100":  # after one of its files
            shutil.rmtree(source.parent)

    taken(Claims(out, lease=0.05))
    other = Claims(out)
    other.take(CELL)
    time.sleep(0.1)
    monkeypatch.setattr(shutil, "copyfile", removing)
    copy = taken(other).folder / "checkpoints"
    assert [path.name for path in copy.iterdir()] == ["step-00000200"]
    assert len(list((copy / "step-00000200").iterdir())) == 2
