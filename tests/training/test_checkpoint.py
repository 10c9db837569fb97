from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from tiny_model import Tiny, tiny, tiny_batches, tiny_settings
from torch import nn

from headway.shapes import HeadwayError
from headway.training.checkpoint import Checkpoints, model_tensors, read_checkpoint
from headway.training.files import FolderLock, dump_json, read_json, write_json_atomic
from headway.training.loop import Trainer
from headway.training.optimizer import build_optimizer
from headway.training.settings import OPTIMIZERS

FILES = ("manifest.json", "model.safetensors", "optimizer.safetensors", "state.json")


def trained(name: str = "adamw") -> tuple[Tiny, torch.optim.Optimizer]:
    settings = tiny_settings(optimizer=name, steps=3)
    trainer = Trainer(tiny(), tiny_batches(settings), settings)
    trainer.run()
    return trainer.model, trainer.optimizer


def saved(folder: Path, step: int = 3) -> Path:
    model, optimizer = trained()
    return Checkpoints(folder).save(step, model, optimizer, {"a": [1, 2.5, None, "x"]})


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_roundtrip_of_model_and_optimizer(tmp_path: Path, name: str) -> None:
    model, optimizer = trained(name)
    Checkpoints(tmp_path).save(3, model, optimizer, {"a": 1})
    other = tiny(seed=9)
    fresh = build_optimizer(other, tiny_settings(optimizer=name))
    checkpoint, skipped = Checkpoints(tmp_path).latest()
    assert checkpoint is not None
    assert (checkpoint.step, checkpoint.values, skipped) == (3, {"a": 1}, [])
    checkpoint.restore(other, fresh)
    assert other.calls == 3
    for key, tensor in model_tensors(model).items():
        assert torch.equal(tensor, model_tensors(other)[key])
    expected, got = optimizer.state_dict()["state"], fresh.state_dict()["state"]
    assert expected.keys() == got.keys()
    for i in expected:
        assert expected[i].keys() == got[i].keys()
        for what in expected[i]:
            assert torch.equal(expected[i][what], got[i][what])


def test_shared_and_overlapping_and_odd_tensors(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            base = torch.arange(6.0)
            self.register_buffer("a", base[:4])
            self.register_buffer("b", base[2:])
            self.register_buffer("wide", torch.ones(1).expand(5))
            self.register_buffer("none", None)
            self.register_buffer("empty", torch.zeros(0, 3))
            self.bf16 = nn.Parameter(torch.ones(2, 3, dtype=torch.bfloat16).T)

    Checkpoints(tmp_path).save(1, Odd())
    checkpoint, _ = Checkpoints(tmp_path).latest()
    assert checkpoint is not None
    assert checkpoint.model["wide"].tolist() == [1.0] * 5
    assert checkpoint.model["bf16"].dtype == torch.bfloat16
    assert set(checkpoint.model) == {"a", "b", "wide", "empty", "bf16"}


def test_no_pickle_and_modes_follow_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        path = saved(tmp_path / "c")
        write_json_atomic(tmp_path / "a.json", {})
    finally:
        os.umask(old)
    assert sorted(p.name for p in path.iterdir()) == sorted(FILES)
    assert stat.S_IMODE(path.stat().st_mode) == 0o750
    for file in [*path.iterdir(), tmp_path / "a.json"]:
        assert stat.S_IMODE(file.stat().st_mode) == 0o640
        assert b"pickle" not in file.read_bytes()


def test_every_file_is_flushed_before_the_rename_and_the_parent_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[tuple[str, str]] = []
    fsync, rename = os.fsync, os.rename

    def spy_fsync(handle: int) -> None:
        events.append(("fsync", os.path.basename(os.readlink(f"/proc/self/fd/{handle}"))))
        fsync(handle)

    def spy_rename(a: Path, b: Path) -> None:
        events.append(("rename", os.path.basename(b)))
        rename(a, b)

    checkpoints = Checkpoints(tmp_path / "c")
    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(os, "rename", spy_rename)
    checkpoints.save(7, tiny())
    names = [what if what == "rename" else name.split(".tmp-")[0] for what, name in events]
    assert sorted(names[:4]) == sorted(FILES)
    assert names[4:] == ["step-00000007", "rename", "c"]


def test_keeps_the_newest_and_cleans_leftovers_but_nothing_else(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=3)
    model = tiny()
    for step in range(1, 7):
        checkpoints.save(step, model)
    assert checkpoints.steps() == [4, 5, 6]
    (tmp_path / "step-00000009.tmp-1-ab").mkdir()
    (tmp_path / "step-00000009.tmp-1-ab" / "model.safetensors").write_bytes(b"half")
    (tmp_path / "notes").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "precious").write_bytes(b"x")
    (tmp_path / "step-00000001.tmp-2-cd").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "step-00000002").symlink_to(tmp_path / "elsewhere")
    checkpoints.clean()
    checkpoints.save(7, model)
    assert checkpoints.steps() == [5, 6, 7]
    assert sorted(p.name for p in tmp_path.iterdir() if not p.name.startswith("step")) == ["elsewhere", "notes"]
    assert (tmp_path / "elsewhere" / "precious").exists()
    assert not (tmp_path / "step-00000009.tmp-1-ab").exists()


def test_old_ones_stay_until_two_are_known_to_be_whole(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, tiny())
    again = Checkpoints(tmp_path)
    again.save(3, tiny())
    assert again.steps() == [1, 2, 3]
    again.save(4, tiny())
    assert again.steps() == [3, 4]


def test_damaged_newest_is_skipped_named_and_put_aside(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, tiny())
    (tmp_path / "step-00000002" / "model.safetensors").write_bytes(b"damaged")
    again = Checkpoints(tmp_path)
    latest, skipped = again.latest()
    assert latest is not None
    assert latest.step == 1
    assert len(skipped) == 1
    assert "skipped checkpoint step-00000002" in skipped[0]
    assert "model.safetensors to match its manifest" in skipped[0]
    again.save(2, tiny())
    assert read_checkpoint(tmp_path / "step-00000002").step == 2
    (aside,) = [p for p in tmp_path.iterdir() if ".damaged-" in p.name]
    assert (aside / "model.safetensors").read_bytes() == b"damaged"


@pytest.mark.parametrize("name", FILES)
def test_truncated_and_flipped_bytes_are_found_at_every_offset(tmp_path: Path, name: str) -> None:
    path = saved(tmp_path)
    whole = (path / name).read_bytes()
    # Every byte of the small files, a hundred offsets of the large ones.
    offsets = sorted({*range(0, len(whole), max(1, len(whole) // 100)), len(whole) - 1})
    if name == "manifest.json":
        offsets = list(range(len(whole)))
    for at in offsets:
        for bit in (0, 3, 5, 7):
            (path / name).write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
            with pytest.raises(HeadwayError):
                read_checkpoint(path)
        (path / name).write_bytes(whole[:at])
        with pytest.raises(HeadwayError):
            read_checkpoint(path)
    (path / name).write_bytes(whole + b"x")
    with pytest.raises(HeadwayError):
        read_checkpoint(path)
    (path / name).unlink()
    with pytest.raises(HeadwayError, match=r"could not finish reading .*: No such file or directory"):
        read_checkpoint(path)
    (path / name).write_bytes(whole)
    assert read_checkpoint(path).step == 3


def forge(path: Path, name: str, data: bytes) -> None:
    """Replace a file and make the manifest fit, as an attacker would."""
    (path / name).write_bytes(data)
    manifest = json.loads((path / "manifest.json").read_bytes())
    manifest["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (path / "manifest.json").write_bytes(dump_json(manifest))


def spoil_manifest(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def act(path: Path) -> None:
        manifest = json.loads((path / "manifest.json").read_bytes())
        (path / "manifest.json").write_bytes(dump_json(change(manifest)))

    return act


def spoil_state(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def act(path: Path) -> None:
        forge(path, "state.json", json.dumps(change(json.loads((path / "state.json").read_bytes()))).encode())

    return act


def spoil_tensors(name: str, change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def act(path: Path) -> None:
        tensors = load((path / name).read_bytes())
        change(tensors)
        forge(path, name, save(tensors))

    return act


def replace_by_link(path: Path) -> None:
    target = path.parent / "outside"
    os.rename(path / "model.safetensors", target)
    (path / "model.safetensors").symlink_to(target)


def replace_by_pipe(path: Path) -> None:
    (path / "model.safetensors").unlink()
    os.mkfifo(path / "model.safetensors")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: (p / "manifest.json").write_bytes(b""), r"expected JSON in .*manifest.json"),
        (lambda p: (p / "manifest.json").write_bytes(b"[" * 60_000), r"expected JSON in .*manifest.json"),
        (lambda p: (p / "manifest.json").write_bytes(b"\xff"), r"expected JSON in .*manifest.json"),
        (spoil_manifest(lambda m: []), r"expected a manifest with format, step and files"),
        (spoil_manifest(lambda m: {**m, "more": 1}), r"expected a manifest with format, step and files"),
        (spoil_manifest(lambda m: {**m, "format": 2}), r"expected checkpoint format 1 in .*, got 2"),
        (spoil_manifest(lambda m: {**m, "format": True}), r"expected checkpoint format 1 in .*, got True"),
        (spoil_manifest(lambda m: {**m, "step": 4}), r"expected step 3 in the manifest"),
        (spoil_manifest(lambda m: {**m, "files": []}), r"expected the manifest in .* to list model.safetensors"),
        (
            spoil_manifest(lambda m: {**m, "files": {**m["files"], "../../etc/passwd": {}}}),
            r"expected the manifest in .* to list model.safetensors",
        ),
        (
            spoil_manifest(lambda m: {**m, "files": {**m["files"], "state.json": None}}),
            r"expected .*state.json to match its manifest",
        ),
        (replace_by_link, r"could not finish reading .*model.safetensors"),
        (replace_by_pipe, r"expected a regular file at .*model.safetensors"),
        (lambda p: forge(p, "model.safetensors", b""), r"expected safetensors in .*model.safetensors"),
        (lambda p: forge(p, "model.safetensors", b"\xff" * 64), r"expected safetensors in .*model.safetensors"),
        (
            lambda p: forge(p, "model.safetensors", b"\x80\x04\x95cos\nsystem\n(S'touch hacked'\ntR."),
            r"expected safetensors in .*model.safetensors",
        ),
        (lambda p: forge(p, "state.json", b'{"values": NaN}'), r"expected JSON in .*state.json"),
        (spoil_state(lambda s: 3), r"expected values and an optimizer"),
        (spoil_state(lambda s: {**s, "values": []}), r"expected values and an optimizer"),
        (spoil_state(lambda s: {**s, "optimizer": "os.system"}), r"expected values and an optimizer"),
        (spoil_state(lambda s: {**s, "optimizer": ["SGD"]}), r"expected values and an optimizer"),
        (spoil_state(lambda s: {**s, "optimizer_keys": "ab"}), r"expected values and an optimizer"),
        (spoil_state(lambda s: {**s, "optimizer": "SGD"}), r"expected the state of AdamW in .*, got that of SGD"),
        (
            spoil_tensors("model.safetensors", lambda t: t.pop("norm.weight")),
            r"expected tensors norm.weight in .*, which are missing",
        ),
        (
            spoil_tensors("model.safetensors", lambda t: t.update(evil=torch.zeros(1))),
            r"expected no tensors evil in .*, which are there",
        ),
        (
            spoil_tensors("model.safetensors", lambda t: t.update({"norm.weight": torch.zeros(9)})),
            r"expected norm.weight of shape \(8,\) and torch.float32 in .*, got \(9,\)",
        ),
        (
            spoil_tensors("model.safetensors", lambda t: t.update({"norm.weight": t["norm.weight"].double()})),
            r"expected norm.weight of shape \(8,\) and torch.float32 in .*, got \(8,\) and torch.float64",
        ),
        (
            spoil_tensors("optimizer.safetensors", lambda t: t.pop("norm.weight/step")),
            r"expected optimizer state norm.weight/step in .*, which are missing",
        ),
        (
            spoil_tensors("optimizer.safetensors", lambda t: t.update({"norm.weight/exp_avg": torch.zeros(())})),
            r"expected norm.weight/exp_avg of shape \(8,\)",
        ),
        (
            spoil_tensors("optimizer.safetensors", lambda t: t.update({"norm.weight/step": torch.zeros(8)})),
            r"expected norm.weight/step of shape \(\)",
        ),
    ],
)
def test_hostile_checkpoints_are_refused_and_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Path], object], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = saved(tmp_path / "c")
    spoil(path)
    before = snapshot(tmp_path) if not any(p.is_fifo() for p in path.iterdir()) else {}
    model = tiny(seed=5)
    optimizer = build_optimizer(model, tiny_settings())
    weights = {name: tensor.clone() for name, tensor in model_tensors(model).items()}
    with pytest.raises(HeadwayError, match=message):
        read_checkpoint(path).restore(model, optimizer)
    assert all(torch.equal(weights[name], tensor) for name, tensor in model_tensors(model).items())
    assert not optimizer.state
    assert not (tmp_path / "hacked").exists()
    if before:
        assert snapshot(tmp_path) == before


def test_optimizer_state_of_an_unknown_parameter_or_half_a_state(tmp_path: Path) -> None:
    for number, (old, new) in enumerate([("norm.weight/step", "no.such/step"), ("norm.weight/step", "norm.weight/x")]):
        path = saved(tmp_path / str(number))
        tensors = load((path / "optimizer.safetensors").read_bytes())
        tensors[new] = tensors.pop(old)
        forge(path, "optimizer.safetensors", save(tensors))
        spoil_state(lambda s: {**s, "optimizer_keys": sorted(tensors)})(path)  # noqa: B023
        model = tiny()
        with pytest.raises(HeadwayError, match=r"expected optimizer state of this model"):
            read_checkpoint(path).restore(model, build_optimizer(model, tiny_settings()))


@pytest.mark.parametrize("call", ["write", "fsync", "rename", "mkdir"])
@pytest.mark.parametrize("at", [0, 2])
def test_full_disk_is_one_sentence_and_older_checkpoints_are_intact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, at: int
) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, tiny())
    before = snapshot(tmp_path)
    real, count = getattr(os, call), [0]

    def full(*arguments: object, **named: object) -> object:
        count[0] += 1
        if count[0] > at or call in ("rename", "mkdir"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments, **named)

    with monkeypatch.context() as patched:
        patched.setattr(os, call, full)
        with pytest.raises(HeadwayError, match=r"No space left on device; free some space and run again, older chec"):
            checkpoints.save(3, tiny())
    assert snapshot(tmp_path) == before
    checkpoints.save(3, tiny())
    assert checkpoints.steps() == [2, 3]


def test_unfinished_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: write(handle, data[:7]))
    Checkpoints(tmp_path).save(1, nn.Linear(2, 2))
    assert read_checkpoint(tmp_path / "step-00000001").step == 1


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    model = tiny()
    with torch.no_grad():
        model.norm.bias[0] = torch.nan
    with pytest.raises(HeadwayError, match=r"expected finite weights at step 1, got NaN or infinity in norm.bias"):
        Checkpoints(tmp_path).save(1, model)
    assert not list(tmp_path.iterdir())


def test_values_must_be_plain(tmp_path: Path) -> None:
    for value in (object(), float("nan"), {1, 2}):
        with pytest.raises(HeadwayError, match=r"expected plain JSON values"):
            Checkpoints(tmp_path).save(1, tiny(), values={"x": value})
    assert not list(tmp_path.iterdir())


def test_names_and_keep_and_optimizer_kind(tmp_path: Path) -> None:
    with pytest.raises(HeadwayError, match=r"named step-NNNNNNNN, got"):
        read_checkpoint(tmp_path)
    with pytest.raises(HeadwayError, match=r"expected keep of at least 2"):
        Checkpoints(tmp_path, keep=1)
    model = tiny()
    with pytest.raises(HeadwayError, match=r"expected one of SGD, Adam, AdamW to save, got RMSprop"):
        Checkpoints(tmp_path).save(1, model, torch.optim.RMSprop(model.parameters()))
    assert Checkpoints(tmp_path / "none").latest() == (None, [])


def test_json_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    write_json_atomic(path, {"x": 1})
    with pytest.raises(HeadwayError, match=r"expected plain JSON"):
        write_json_atomic(path, {"x": float("inf")})

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        with pytest.raises(HeadwayError, match=r"writing .*a.json: No space left on device; free some space"):
            write_json_atomic(path, {"x": 2})
    assert read_json(path) == {"x": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    with pytest.raises(HeadwayError, match=r"could not finish writing .*no/a.json: No such file"):
        write_json_atomic(tmp_path / "no" / "a.json", {})


def test_second_writer_is_refused_and_the_lock_is_free_again_afterwards(tmp_path: Path) -> None:
    with (
        FolderLock(tmp_path),
        pytest.raises(HeadwayError, match=rf"another process \(id {os.getpid()}\) is training there"),
        FolderLock(tmp_path),
    ):
        pass
    with FolderLock(tmp_path):
        pass
    shutil.rmtree(tmp_path)
    with pytest.raises(HeadwayError, match=r"could not finish locking"), FolderLock(tmp_path):
        pass
