"""A model in a folder: its configuration as JSON, its weights as safetensors. Loading executes no code from it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from headway._version import __version__
from headway.output import explained, write_output
from headway.schema import Anything, Named, Record, check
from headway.shapes import HeadwayError
from headway.strict_json import parse_json

CONFIG, WEIGHTS = "config.json", "model.safetensors"
_SAVED = Record({"model": Named(Anything())}, {"headway": Anything()})


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers in a model's state_dict, shared ones once, under their first name."""
    kept, found = model.state_dict().keys(), {}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name in kept:
            found[name] = tensor
    return found


def write_weights(model: nn.Module, file: Path) -> None:
    """Write :func:`weights_of` a model as safetensors."""
    from safetensors.torch import save as as_bytes

    weights = {name: tensor.detach().contiguous().cpu() for name, tensor in weights_of(model).items()}
    write_output(file, as_bytes(weights, {"format": "pt"}))


def save(model: Any, path: str | os.PathLike[str]) -> Path:
    """Write a model into a folder, see :meth:`headway.Transformer.save`."""
    folder = Path(path)
    held = {"headway": __version__, "model": model.config.plain()}
    write_weights(model, folder / WEIGHTS)
    write_output(folder / CONFIG, json.dumps(held, indent=1, ensure_ascii=False) + "\n")
    return folder


def read_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The model's configuration in a folder, as plain values.

    Raises:
        HeadwayError: when there is none, or the file is invalid.
    """
    file = Path(path) / CONFIG
    if not file.is_file():
        raise HeadwayError(f"expected a folder with {CONFIG}, as Transformer.save writes it, got {Path(path)}")
    with explained(f"reading {file}"):
        held = parse_json(file.read_bytes(), str(file))
    check(held, _SAVED, str(file))
    model: dict[str, Any] = held["model"]
    return model


def fill(model: nn.Module, path: str | os.PathLike[str], name: str = WEIGHTS) -> None:
    """Load a folder's weights into a model, whose parameters take the dtypes they have there; ``name`` is the file.

    Raises:
        HeadwayError: when a weight is missing, unknown, has another shape, or is no floating number.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = Path(path) / name
    if not file.is_file():
        raise HeadwayError(f"expected a folder with {name}, as save() writes it, got {Path(path)}")
    try:
        given = load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise HeadwayError(f"expected weights in {file}, got a damaged file: {error}") from None
    expected = weights_of(model)
    for what, names in (("without", expected.keys() - given.keys()), ("with unknown", given.keys() - expected.keys())):
        if names:
            raise HeadwayError(
                f"expected the weights of the model in {file}, got a file {what} {sorted(names)[0]}: "
                f"they belong to another model"
            )
    for name, tensor in expected.items():
        if given[name].shape != tensor.shape:
            raise HeadwayError(
                f"expected {name} in {file} of shape {tuple(tensor.shape)}, as the model has it, got "
                f"{tuple(given[name].shape)}"
            )
        if given[name].is_floating_point() != tensor.is_floating_point():
            raise HeadwayError(f"expected {name} in {file} of a dtype as {tensor.dtype}, got {given[name].dtype}")
    for name, tensor in expected.items():
        tensor.data = given[name].clone()  # not as the file happens to align it, which changes last bits
