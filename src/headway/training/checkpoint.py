"""Checkpoints that survive kill −9, power cuts, full disks and damaged files, and that cannot execute code.

A checkpoint is a folder ``step-00000042`` of four files: model.safetensors, optimizer.safetensors, state.json (plain
values), manifest.json (the SHA-256 and size of the three others). It is written under a temporary name, every file is
flushed, and the folder is renamed in one step: under its final name it is complete or absent. Reading checks the
manifest first, so no damaged byte reaches a parser, and checks everything before the first weight is overwritten.

The state of the random generators is not among the files: the trainer seeds them anew in every step from (seed, step),
so that the step number says it all, on every device.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from headway.parallel.process import World
from headway.shapes import HeadwayError, brief
from headway.sizes import memory
from headway.training.files import (
    dump_json,
    explained,
    fsync_folder,
    make_folder,
    parse_json,
    read_regular,
    set_aside,
    temporary,
    write_new,
)
from headway.training.sharding import is_sharded, local, placed, whole

_FORMAT = 1
_PARTS = ("model.safetensors", "optimizer.safetensors", "state.json")
_NAME = re.compile(r"step-(\d{8,18})")
_LEFTOVER = re.compile(r"step-\d{8,18}\.tmp-.+")
# What each optimizer keeps per parameter; a scalar has no dimensions, the others have the parameter's shape.
_KEPT = {
    "SGD": {"momentum_buffer"},
    "Adam": {"step", "exp_avg", "exp_avg_sq"},
    "AdamW": {"step", "exp_avg", "exp_avg_sq"},
}
_SCALARS = frozenset({"step"})


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return what a model consists of: parameters and persistent buffers, each once however many modules share it.

    >>> sorted(model_tensors(nn.Linear(2, 3)))
    ['bias', 'weight']
    """
    persistent = set(model.state_dict())
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in persistent}
    return {**dict(model.named_parameters()), **buffers}


def not_finite(model: nn.Module) -> str | None:
    """Return the name of a parameter that holds NaN or infinity, in this process's share of it, or None.

    >>> not_finite(nn.Linear(2, 3)) is None
    True
    """
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(local(parameter)).all()):
            return name
    return None


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint read from the disk and found whole.

    Args:
        step: finished steps.
        model: tensors by name.
        optimizer: tensors by ``parameter name/kind of state``.
        values: plain values (the trainer's history and settings).
        optimizer_kind: class name of the optimizer, or None when saved without one.
        path: where it lies.
    """

    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    values: dict[str, Any]
    optimizer_kind: str | None
    path: Path

    def restore(
        self, model: nn.Module, optimizer: torch.optim.Optimizer | None = None, world: World | None = None
    ) -> None:
        """Put the saved values into a model and an optimizer; on any mismatch both are left as they were.

        Args:
            model: what to restore; under FSDP its parameters are shares.
            optimizer: likewise.
            world: the processes, all of which restore together what :func:`share` gave them.

        Raises:
            HeadwayError: on missing or unexpected names, other shapes or dtypes, or another kind of optimizer.
        """
        target = model_tensors(model)
        _check_names(self.path, "tensors", set(target), set(self.model))
        for name, tensor in target.items():
            _check_like(self.path, name, tensor, self.model[name])
        world = world or World()
        state = None if optimizer is None else self._optimizer_state(model, optimizer, world)
        with torch.no_grad():
            for name, tensor in target.items():
                tensor.copy_(placed(world.spread(self.model[name]), tensor))
        if optimizer is not None:
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})

    def _optimizer_state(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, world: World
    ) -> dict[int, dict[str, Tensor]]:
        kind = type(optimizer).__name__
        if self.optimizer_kind != kind:
            raise HeadwayError(
                f"expected the state of {kind} in {self.path}, got that of {self.optimizer_kind}: "
                f"resume with the optimizer it was trained with"
            )
        by_name = dict(model.named_parameters())
        name_of = {id(p): name for name, p in by_name.items()}
        # load_state_dict counts parameters through the groups.
        ordered = [p for group in optimizer.param_groups for p in group["params"]]
        index = {name_of[id(p)]: i for i, p in enumerate(ordered)}
        state: dict[int, dict[str, Tensor]] = {}
        for key, tensor in self.optimizer.items():
            name, _, what = key.rpartition("/")
            if name not in index or what not in _KEPT[kind]:
                raise HeadwayError(f"expected optimizer state of this model in {self.path}, got {brief(key)}: {_OTHER}")
            like = torch.zeros(()) if what in _SCALARS else by_name[name]
            _check_like(self.path, key, like, tensor)
            state.setdefault(index[name], {})[what] = tensor
        for i, kept in state.items():
            _check_names(self.path, f"state of parameter {i}", _KEPT[kind], set(kept))
        # after all checks: from here on every process takes part
        return {
            i: {what: placed(world.spread(x), torch.zeros(()) if what in _SCALARS else ordered[i]) for what, x in kept}
            for i, kept in sorted((i, sorted(kept.items())) for i, kept in state.items())
        }


_OTHER = "it was saved from another model or optimizer; build the one it was saved from"


def _check_names(path: Path, what: str, expected: set[str], got: set[str]) -> None:
    if missing := sorted(expected - got):
        raise HeadwayError(f"expected {what} {_some(missing)} in {path}, which are missing: {_OTHER}")
    if extra := sorted(got - expected):
        raise HeadwayError(f"expected no {what} {_some(extra)} in {path}, which are there: {_OTHER}")


def _check_like(path: Path, name: str, expected: Tensor, got: Tensor) -> None:
    if expected.shape != got.shape or expected.dtype != got.dtype:
        raise HeadwayError(
            f"expected {name} of shape {tuple(expected.shape)} and {expected.dtype} in {path}, "
            f"got {tuple(got.shape)} and {got.dtype}: {_OTHER}"
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def read_checkpoint(path: Path | str) -> Checkpoint:
    """Read one checkpoint folder and check it whole: the manifest, every file's size and SHA-256, every type.

    Raises:
        HeadwayError: when anything is missing, damaged, or not what a checkpoint holds.
    """
    path = Path(path)
    match = _NAME.fullmatch(path.name)
    if path.is_symlink() or not path.is_dir() or match is None:
        raise HeadwayError(f"expected a checkpoint folder named step-NNNNNNNN, got {path}")
    step = int(match[1])
    # Only these three names are ever opened, so a manifest cannot lead outside the folder.
    written = read_regular(path / "manifest.json", 2**16)
    manifest = parse_json(written, f"{path}/manifest.json")
    if dump_json(manifest) != written:
        raise HeadwayError(f"expected {path}/manifest.json as headway writes it, got other spacing: it is damaged")
    if not isinstance(manifest, dict) or set(manifest) != {"format", "step", "files"}:
        raise HeadwayError(f"expected a manifest with format, step and files in {path}, got something else: damaged")
    if manifest["format"] != _FORMAT or isinstance(manifest["format"], bool):
        raise HeadwayError(
            f"expected checkpoint format {_FORMAT} in {path}, got {manifest['format']!r}: "
            f"it is damaged or from another version of headway"
        )
    files = manifest["files"]
    if not isinstance(files, dict) or set(files) != set(_PARTS):
        raise HeadwayError(f"expected the manifest in {path} to list {', '.join(_PARTS)}, got {str(files)[:120]}")
    if manifest["step"] != step or isinstance(manifest["step"], bool):
        raise HeadwayError(f"expected step {step} in the manifest in {path}, got {manifest['step']!r}: it was renamed")
    content: dict[str, bytes] = {}
    room = memory()
    for name in _PARTS:
        length = files[name].get("bytes") if isinstance(files[name], dict) else None
        if type(length) is not int or not 0 <= length <= room:
            raise HeadwayError(f"expected {path / name} to match its manifest, which gives no size that fits: damaged")
        data = read_regular(path / name, length)
        if files[name] != _fingerprint(data):
            raise HeadwayError(
                f"expected {path / name} to match its manifest, got other content ({len(data)} bytes): it is damaged"
            )
        content[name] = data
    state = parse_json(content["state.json"], f"{path}/state.json")
    if (
        not isinstance(state, dict)
        or set(state) != {"values", "optimizer", "optimizer_keys"}
        or not isinstance(state["values"], dict)
        or state["optimizer"] not in (None, *_KEPT)
        or not isinstance(state["optimizer_keys"], list)
        or not all(isinstance(key, str) for key in state["optimizer_keys"])
    ):
        raise HeadwayError(f"expected values and an optimizer in {path}/state.json, got something else: damaged")
    model, optimizer = (_parse_tensors(path / name, content[name]) for name in _PARTS[:2])
    _check_names(path, "optimizer state", set(state["optimizer_keys"]), set(optimizer))
    return Checkpoint(step, model, optimizer, state["values"], state["optimizer"], path)


def share(checkpoint: Checkpoint | None, world: World) -> Checkpoint | None:
    """Tell all processes what the first one read; the others' tensors are on the meta device until they are restored.

    So a checkpoint is read once, the folder need not be on every machine, and only the first process holds all of it.
    """
    if not world.many:
        return checkpoint
    told: dict[str, Any] | None = None
    if checkpoint is not None:
        told = {field.name: getattr(checkpoint, field.name) for field in fields(checkpoint)}
        told |= {"path": str(checkpoint.path)}
        told |= {part: _described(getattr(checkpoint, part)) for part in ("model", "optimizer")}
    told = world.tell(told)
    if told is None or checkpoint is not None:
        return checkpoint
    empty = {part: _empty(told[part]) for part in ("model", "optimizer")}
    return Checkpoint(**{**told, **empty, "path": Path(told["path"])})


def _described(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    return {name: [list(x.shape), str(x.dtype).removeprefix("torch.")] for name, x in tensors.items()}


def _empty(described: Mapping[str, Any]) -> dict[str, Tensor]:
    return {
        name: torch.empty(shape, dtype=getattr(torch, dtype), device="meta")
        for name, (shape, dtype) in described.items()
    }


def _fingerprint(data: bytes) -> dict[str, Any]:
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _parse_tensors(path: Path, data: bytes) -> dict[str, Tensor]:
    # imported where it is used: the bench marks its results with torch alone
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(data)
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise HeadwayError(f"expected safetensors in {path}, got content that does not parse: {error}") from error


class Checkpoints:
    """The checkpoints of one run. Only one process may save at a time: hold a `FolderLock`.

    Args:
        folder: created when it is missing.
        keep: how many stay, at least 2.

    >>> import tempfile
    >>> model = nn.Linear(2, 2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     checkpoints = Checkpoints(folder)
    ...     _ = checkpoints.save(3, model, values={"loss": 2.5})
    ...     latest, skipped = checkpoints.latest()
    >>> latest.step, latest.values, skipped
    (3, {'loss': 2.5}, [])
    """

    def __init__(self, folder: Path | str, keep: int = 2) -> None:
        if keep < 2:
            raise HeadwayError(f"expected keep of at least 2 (one could be damaged), got {keep}")
        self.folder, self.keep = Path(folder), keep
        # Steps known to be whole: read or written by this object. Only they count when old ones are removed.
        self._whole: set[int] = set()

    def steps(self) -> list[int]:
        """Return the steps of all checkpoint folders, oldest first, whole or not."""
        if not self.folder.is_dir():
            return []
        with explained(f"reading {self.folder}"):
            found = [(_NAME.fullmatch(p.name), p) for p in self.folder.iterdir()]
        return sorted(int(match[1]) for match, p in found if match and p.is_dir() and not p.is_symlink())

    def path(self, step: int) -> Path:
        """Return the folder of one step."""
        return self.folder / f"step-{step:08d}"

    def latest(self) -> tuple[Checkpoint | None, list[str]]:
        """Return the newest whole checkpoint (None when there is none), and a sentence for each damaged newer one."""
        skipped: list[str] = []
        for step in reversed(self.steps()):
            try:
                checkpoint = read_checkpoint(self.path(step))
            except HeadwayError as error:
                skipped.append(f"skipped checkpoint {self.path(step).name}: {error}")
            else:
                self._whole.add(step)
                return checkpoint, skipped
        return None, skipped

    def save(
        self,
        step: int,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        values: Mapping[str, Any] | None = None,
        *,
        write: bool = True,
    ) -> Path:
        """Save a checkpoint; when this returns, it is on the disk and survives a power cut.

        Args:
            step: finished steps.
            model: its parameters and persistent buffers are saved.
            optimizer: SGD, Adam or AdamW, or None.
            values: plain JSON values to keep with it.
            write: False in all processes but one: under FSDP they only give their shares, which are gathered one
                parameter at a time; the files are those of one process.

        Returns:
            The checkpoint's folder.

        Raises:
            HeadwayError: when it cannot be written (a full disk, no permission) or a weight is not finite; the
                checkpoints that are there stay intact.
        """
        if name := not_finite(model):
            raise HeadwayError(f"expected finite weights at step {step}, got NaN or infinity in {name}: not saved")
        tensors = _gathered(model_tensors(model), write)
        moments = _gathered(_optimizer_tensors(model, optimizer), write)
        if not write:
            return self.path(step)
        state = {
            "values": dict(values or {}),
            "optimizer": None if optimizer is None else type(optimizer).__name__,
            "optimizer_keys": sorted(moments),
        }
        content = dict(zip(_PARTS, (_to_bytes(tensors), _to_bytes(moments), dump_json(state)), strict=True))
        manifest = {"format": _FORMAT, "step": step, "files": {name: _fingerprint(d) for name, d in content.items()}}
        make_folder(self.folder)
        final = self.path(step)
        fresh = temporary(final)
        with explained(f"saving the checkpoint {final}", "older checkpoints are intact"):
            try:
                fresh.mkdir()
                for name, data in {**content, "manifest.json": dump_json(manifest)}.items():
                    write_new(fresh / name, data)
                fsync_folder(fresh)
                if final.exists() or final.is_symlink():
                    # A damaged one that `latest` skipped: put aside, for whoever wants to look into it.
                    set_aside(final)
                os.rename(fresh, final)
            except OSError:
                shutil.rmtree(fresh, ignore_errors=True)
                raise
            fsync_folder(self.folder)
        self._whole.add(step)
        self._remove_old()
        return final

    def clean(self) -> None:
        """Remove what killed processes left behind; call it only while holding the run's lock."""
        if not self.folder.is_dir():
            return
        for path in self.folder.iterdir():
            if _LEFTOVER.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)

    def _remove_old(self) -> None:
        kept = sorted(self._whole)[-self.keep :]
        if len(kept) < self.keep:
            return
        for step in self.steps():
            if step < kept[0]:
                # Renamed first: a kill in the middle of the removal leaves a leftover, not a damaged checkpoint.
                doomed = temporary(self.path(step))
                # Not being able to remove an old one costs space, not safety: training goes on.
                with contextlib.suppress(OSError):
                    os.rename(self.path(step), doomed)
                shutil.rmtree(doomed, ignore_errors=True)
        self._whole = set(kept)


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> dict[str, Tensor]:
    if optimizer is None:
        return {}
    if type(optimizer).__name__ not in _KEPT:
        raise HeadwayError(f"expected one of {', '.join(_KEPT)} to save, got {type(optimizer).__name__}")
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        for what, value in optimizer.state.get(parameter, {}).items():
            # SGD without momentum, and before its first step, keeps None.
            if isinstance(value, Tensor):
                tensors[f"{name}/{what}"] = value
    return tensors


def _gathered(tensors: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Whole tensors, those of shares on the CPU; none where they are not kept."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        full = whole(tensor)
        if keep:
            found[name] = full.detach().cpu() if is_sharded(tensor) else tensor
    return found


def _to_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    from safetensors.torch import save

    # safetensors refuses tensors that share memory (expanded, or views of one another): each gets its own.
    return save({name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in tensors.items()})
