"""What a checkpoint folder of transformers says about itself, read and checked before transformers opens it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headway.hf.safetensors import Stored, read_header
from headway.positions.interchange.layers import MOST_LAYERS
from headway.shapes import HeadwayError, brief
from headway.strict_json import parse_json
from headway.training.files import read_regular

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
LARGEST = 32 * 2**20
"""Bytes of a configuration or an index."""
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_COUNTS = re.compile(r"layers(_|$)|layer$|blocks(_|$)|depths?$|experts(_|$)|stages$")
"""Names of numbers by which modules are repeated."""
_MANY = 2**40
"""More than any number in a configuration means."""


@dataclass(frozen=True)
class Folder:
    """A checkpoint folder.

    Args:
        path: where it is.
        config: the content of config.json.
        files: its files of weights, by name.
        tensors: all tensors in them.
    """

    path: Path
    config: dict[str, Any]
    files: tuple[str, ...]
    tensors: Mapping[str, Stored]

    @property
    def count(self) -> int:
        """How many entries all tensors have together."""
        return sum(each.count for each in self.tensors.values())


def read_folder(path: str | Path) -> Folder:
    """Read the configuration and the headers of the weights.

    Args:
        path: the folder, with config.json and safetensors: model.safetensors, or shards with their index.

    Raises:
        HeadwayError: when something is missing, damaged, would run code or leads out of the folder.
    """
    folder = Path(path)
    if not (folder / CONFIG).is_file():
        raise HeadwayError(f"expected a checkpoint folder of transformers with a config.json, got {brief(str(path))}")
    config = _object(folder, CONFIG)
    _check_config(folder, config)
    if (folder / WEIGHTS).exists():
        return Folder(folder, config, (WEIGHTS,), read_header(inside(folder, WEIGHTS)))
    if (folder / INDEX).exists():
        tensors = _sharded(folder)
        return Folder(folder, config, (INDEX, *dict.fromkeys(tensors.values())), _headers(folder, tensors))
    raise _without_weights(folder)


def inside(folder: Path, name: str) -> Path:
    """A regular file of the folder; a link may lead to another file of it, or to the store of a download cache beside.

    Raises:
        HeadwayError: when it is missing, something else, or elsewhere.
    """
    file = folder / name
    if not file.is_file():
        what = "a folder" if file.is_dir() else "none"
        raise HeadwayError(f"expected a file {brief(name)} in {folder}, got {what}: copy the whole checkpoint")
    real, home = file.resolve(), folder.resolve()
    # the cache of huggingface_hub: models--x/snapshots/y/model.safetensors is a link to models--x/blobs/z
    store = home.parent.parent / "blobs" if home.parent.name == "snapshots" else home
    if real.parent not in (home, store):
        raise HeadwayError(f"expected {brief(name)} in {folder} itself, got a link to {brief(str(real))}")
    return real


def _object(folder: Path, name: str) -> dict[str, Any]:
    found = parse_json(read_regular(inside(folder, name), LARGEST), str(folder / name))
    if not isinstance(found, dict):
        raise HeadwayError(f"expected an object in {folder / name}, got {brief(type(found).__name__)}")
    return found


def _check_config(folder: Path, config: dict[str, Any]) -> None:
    """Refuse what would fetch code or other weights, and numbers that would make a model without end."""
    for name, value in _entries(config):
        if name == "transformers_weights":
            raise HeadwayError(f"expected weights in {WEIGHTS} or shards of it, got {name} in {folder / CONFIG}")
        if name.strip("_").startswith(("attn_implementation", "experts_implementation")) and "/" in str(value):
            raise HeadwayError(
                f"expected an implementation of transformers in {folder / CONFIG}, got {brief(str(value))} as {name}: "
                f"code of others is never run"
            )
        most = MOST_LAYERS if _COUNTS.search(name) else _MANY
        if isinstance(value, int) and abs(value) > most:
            raise HeadwayError(f"expected {brief(name)} of at most {most:,} in {folder / CONFIG}, got {value:,}")


def _entries(value: Any) -> Iterator[tuple[str, Any]]:
    """Every value in a configuration, with its name; those of a list have the list's."""
    todo = [("", value)]
    while todo:
        name, each = todo.pop()
        yield name, each
        if isinstance(each, dict):
            todo += each.items()
        elif isinstance(each, list):
            todo += [(name, one) for one in each]


def _sharded(folder: Path) -> dict[str, str]:
    """The file of each tensor, by the index."""
    shards = _object(folder, INDEX).get("weight_map")
    if not (isinstance(shards, dict) and shards and all(isinstance(name, str) for name in shards.values())):
        raise HeadwayError(f"expected a weight_map, the file of each tensor, in {folder / INDEX}, got none")
    for name in dict.fromkeys(shards.values()):
        if Path(name).name != name or "\\" in name or not name.endswith(".safetensors"):
            raise HeadwayError(
                f"expected names of safetensors in the same folder in {folder / INDEX}, got {brief(name)}"
            )
    return shards


def _headers(folder: Path, shards: dict[str, str]) -> dict[str, Stored]:
    found: dict[str, Stored] = {}
    for shard in dict.fromkeys(shards.values()):
        header = read_header(inside(folder, shard))
        twice = sorted(found.keys() & header.keys())
        if twice:
            raise HeadwayError(f"expected each tensor in one file of {folder}, got {brief(twice[0])} in several")
        found |= header
    missing = sorted(shards.keys() - found.keys())
    if missing:
        raise HeadwayError(
            f"expected {brief(missing[0])} in {folder / shards[missing[0]]}, as {INDEX} says, got none: the index is "
            f"of other files"
        )
    return found


def _without_weights(folder: Path) -> HeadwayError:
    others = sorted(each.name for each in folder.glob("*.safetensors"))
    if others:
        why = f"only {', '.join(others[:3])}: an adapter or a part needs its base model, or the index is missing"
    elif any(any(folder.glob(kind)) for kind in _PICKLES):
        why = "only pickles, which could run code: save the model again with save_pretrained"
    else:
        why = "none"
    return HeadwayError(f"expected weights as safetensors in {folder}, {WEIGHTS} or {INDEX} with its files, got {why}")
