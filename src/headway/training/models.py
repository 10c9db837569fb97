"""The model of a run, from its config: headway's own, or a checkpoint of another library that the run continues.

A config with ``from`` continues a checkpoint. What opens it lies above this package, and is found by name.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from headway.init import seeded
from headway.positions import parse
from headway.shapes import HeadwayError
from headway.sizes import check_size
from headway.training.checkpoint import Checkpoint
from headway.training.lengths import trained_at
from headway.training.settings import TrainSettings
from headway.training.vocabularies import Wanted
from headway.training.vocabulary import Vocabulary

OTHERS = "headway.hf.continuing"
"""What opens a checkpoint of transformers, found by name when a run continues one: the way up."""
CHECKPOINT = "checkpoint"
"""The folder in a run's folder with the trained model, in the other library's format."""


class Base(Protocol):
    """A checkpoint of another library, to be continued."""

    @property
    def config(self) -> dict[str, Any]:
        """As a run records it: ``from``, ``sha256`` of its files, and ``lora`` if only adapters are trained."""
        ...

    @property
    def wanted(self) -> Wanted:
        """Its own vocabulary."""
        ...

    def settings(self, given: TrainSettings) -> TrainSettings:
        """Settings that fit it, with a learning rate for continuing where none is given."""
        ...

    def build(self, words: int) -> nn.Module:
        """The model to train, ``model(tokens (B, N)) -> logits (B, N, vocabulary)``."""
        ...

    def given(self, method: str | None, words: int) -> nn.Module:
        """A copy of the model to train with another position method; with None it keeps its own."""
        ...

    def positions(self) -> str:
        """Its own position methods."""
        ...

    def give_back(self, model: nn.Module, folder: Path | None) -> tuple[nn.Module, list[str]]:
        """The other library's own model out of a trained one, written to a folder if one is given, and notes."""
        ...


def base_of(config: Mapping[str, Any]) -> Base | None:
    """The checkpoint that a config continues; None for headway's own model.

    Raises:
        HeadwayError: when it cannot be opened or continued, or the config has sizes besides.
    """
    if "from" not in config:
        return None
    found: Base = importlib.import_module(OTHERS).open_base(config)
    return found


def build_model(config: Mapping[str, Any]) -> nn.Module:
    """headway's own model, with random weights."""
    # Looked up late: reading a text or a checkpoint does not need the model's code.
    from headway.transformer import Transformer

    return Transformer.from_config(dict(config))


def new_model(config: Mapping[str, Any], words: Vocabulary, seed: int, base: Base | None = None) -> nn.Module:
    """A model whose weights depend on its config, its vocabulary's size, the seed, and the checkpoint it continues.

    Raises:
        HeadwayError: when the config names another vocabulary size, or what no model has.
    """
    with seeded(seed):
        if base is not None:
            return base.build(words.size)
        if config.get("vocab", words.size) != words.size:
            raise HeadwayError(
                f"expected model_config without vocab, or with vocab={words.size} as the vocabulary has, "
                f"got vocab={config['vocab']}: leave it out"
            )
        return build_model({**config, "vocab": words.size})


def for_length(
    config: Mapping[str, Any], length: int, existing: Mapping[str, Any] | None, notes: list[str]
) -> Mapping[str, Any]:
    """The config with a position method for this training length."""
    if not isinstance(text := config.get("position"), str):
        return config
    position, said = trained_at(text, length)
    if said is None or (existing is not None and existing["model"].get("position") == parse(text).spec()):
        return config  # nothing to set, or a run of headway 0.1.0, which had the method's own length
    notes.append(said)
    return {**config, "position": position.spec()}


def plain(config: Any) -> dict[str, Any]:
    """A model's configuration as JSON takes it; of a model that is no Transformer, the values it has."""
    return config.plain() if hasattr(config, "plain") else dict(config)


def saved_model(config: Mapping[str, Any], checkpoint: Checkpoint) -> nn.Module:
    """headway's own model for a checkpoint, still with random weights.

    Raises:
        HeadwayError: when the config, which came from a file, describes a larger one than the checkpoint holds.
    """
    held = sum(tensor.numel() for tensor in checkpoint.model.values())
    try:
        check_size(config, parameters=held)
    except HeadwayError as error:
        raise HeadwayError(
            f"expected settings of the model in {checkpoint.path}, got others ({error}): "
            f"one of them is damaged or comes from another run"
        ) from error
    return build_model(config)
