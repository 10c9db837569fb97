"""What the folders of the studio hold: trained runs, checkpoints, and comparisons with their models."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headway.compare.cells import CELL
from headway.compare.claims import superseded
from headway.shapes import HeadwayError
from headway.shipped import FOLDER as SHIPPED
from headway.sizes import check_size
from headway.training import Bytes, Checkpoints, History, Vocabulary, load_model, open_run, read_json
from headway.training.history import HISTORY
from headway.training.run import passed_over
from headway.transformer import Transformer
from headway.views.questions import is_checkpoint
from headway.web.page import compact


@dataclass(frozen=True)
class Entry:
    """A folder the studio shows.

    Args:
        id: names it in addresses; made from its name and a digest of its path.
        path: the folder; never told to the page.
        title: its name.
        kind: "run", "shipped" (a run that ships with headway), "cell" (one model of a comparison), "comparison", or
            "checkpoint", a folder of transformers.
    """

    id: str
    path: Path
    title: str
    kind: str

    @classmethod
    def of(cls, path: Path, title: str, kind: str) -> Entry:
        """An entry with the id that its path gives it, the same at every start."""
        digest = hashlib.blake2b(str(path).encode("utf-8", "surrogateescape"), digest_size=4).hexdigest()
        name = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:40]
        return cls(f"{name or kind}-{digest}", path, title, kind)


def found(folder: Path) -> list[Entry]:
    """What a folder holds: itself, or what its direct folders are."""
    own = _kind(folder)
    if own is not None:
        return _entries(folder, own)
    try:
        inside = sorted(path for path in folder.iterdir() if path.is_dir())
    except OSError:
        return []
    return [entry for path in inside if (kind := _kind(path)) is not None for entry in _entries(path, kind)]


def _kind(folder: Path) -> str | None:
    if (folder / "settings.json").is_file():
        return "shipped" if folder.parent == SHIPPED else "run"
    if is_checkpoint(folder):
        return "checkpoint"
    return "comparison" if (folder / "results.json").is_file() else None


def _entries(folder: Path, kind: str) -> list[Entry]:
    name = folder.name or "run"
    entries = [Entry.of(folder, name, kind)]
    if kind == "comparison":
        for cell in sorted(set((folder / "cells").glob("*")) - set(superseded(folder / "cells"))):
            if (identity := identity_of(cell)) is not None:
                title = f"{name} / {identity['spec']}, seed {identity['train'].get('seed')}"
                entries.append(Entry.of(cell, title, "cell"))
    return entries


def identity_of(cell: Path) -> dict[str, Any] | None:
    """How one model of a comparison was made, if it reads text as bytes and was saved; recall and copy have no text."""
    try:
        found: dict[str, Any] = read_json(cell / "cell.json", CELL)["identity"]
    except HeadwayError:
        return None
    data = found["data"]
    reads = found["task"] == "text" and data.get("vocabulary_size") == Bytes.size and "tokenizer" not in data
    usable = len(found["model"]) == 3 and reads and Checkpoints(cell / "checkpoints").steps()
    return found if usable else None


def described(entry: Entry) -> dict[str, Any]:
    """Id, title, vocabulary, method and sizes of a model, as far as its folder tells; a damaged one says so when it is
    opened."""
    own = {"id": entry.id, "title": entry.title, "kind": entry.kind, "watched": (entry.path / "watch").is_dir()}
    try:
        config: Mapping[str, Any]
        if entry.kind == "checkpoint":
            return own | _sizes(entry.path / "config.json")
        if entry.kind in ("run", "shipped"):
            run = open_run(entry.path)
            config, own["vocabulary"] = run.config, _digest(run.vocabulary)
        else:
            found = identity_of(entry.path) or {}
            own["vocabulary"] = _digest(Bytes())
            config = {"position": found["spec"], **dict(zip(("dim", "layers", "heads"), found["model"], strict=True))}
        return own | {name: config.get(name) for name in ("position", "dim", "layers", "heads")}
    except (HeadwayError, KeyError):
        return own


def _digest(vocabulary: Vocabulary) -> str:
    """The same for models that read the same tokens."""
    return hashlib.blake2b(compact(vocabulary.to_json()).encode(), digest_size=8).hexdigest()


def _sizes(path: Path) -> dict[str, Any]:
    """Family and sizes of a checkpoint, by what its configuration may call them."""
    found = read_json(path)
    if not isinstance(found, dict):
        return {}
    names = {
        "dim": ("hidden_size", "d_model", "n_embd", "dim"),
        "layers": ("num_hidden_layers", "n_layer", "num_layers"),
    }
    names["heads"] = ("num_attention_heads", "num_heads", "n_head", "n_heads")
    first = {key: next((found[name] for name in several if name in found), None) for key, several in names.items()}
    return {"position": found.get("model_type")} | first


def load(entry: Entry) -> tuple[Transformer, Vocabulary, History | None, tuple[str, ...]]:
    """Open a model of ours: with its vocabulary, the history of its training, and notes.

    Raises:
        HeadwayError: when its folder is damaged.
    """
    if entry.kind in ("run", "shipped"):
        loaded, vocabulary, run = load_model(entry.path)
        assert isinstance(loaded, Transformer)
        return loaded, vocabulary, run.history, run.notes
    identity = identity_of(entry.path)
    checkpoint, skipped = Checkpoints(entry.path / "checkpoints").latest()
    if identity is None or checkpoint is None:
        raise HeadwayError(f"expected a whole checkpoint in {entry.title}, got none: finish the comparison")
    dim, layers, heads = identity["model"]
    config = {"vocab": Bytes.size, "dim": dim, "layers": layers, "heads": heads, "position": identity["spec"]}
    # settings may ask for any size, but not for more than was saved
    check_size(config, tokens=1, parameters=sum(tensor.numel() for tensor in checkpoint.model.values()))
    model = Transformer.from_config(config)
    checkpoint.restore(model)
    history = entry.path / "history.json"
    record = History.from_json(read_json(history, HISTORY)) if history.is_file() else None
    return model.eval(), Bytes(), record, tuple(passed_over(checkpoint, skipped))
