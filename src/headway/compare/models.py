"""The models of a comparison: new ones of headway's own, or a checkpoint given one position method after another."""

from __future__ import annotations

import importlib.metadata
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from headway.compare.settings import OWN, Comparison
from headway.init import seeded
from headway.positions import parse
from headway.training.models import Base, base_of
from headway.transformer import Transformer


class New:
    """New models of headway's own: from the seed alone, all start from the same weights, except those of position.

    Args:
        comparison: what is compared.
    """

    def __init__(self, comparison: Comparison) -> None:
        self.comparison = comparison
        self.vocabulary: Any = comparison.vocabulary
        sizes = comparison.dim, comparison.layers, comparison.heads
        self.identity: Any = list(sizes)
        """What, besides method, seed, text and training, decides their weights."""
        self.said: dict[str, Any] = {}
        """What the results say of them, beside the settings."""
        self.notes: list[str] = []

    def build(self, spec: str, seed: int, vocab: int) -> nn.Module:
        """One of them, untrained.

        Raises:
            HeadwayError: when it cannot be built.
        """
        self.comparison.check_size(spec, vocab)
        dim, layers, heads = self.identity
        model = Transformer(vocab, dim, layers, heads, position=spec)
        torch.manual_seed(seed)
        model.reset_parameters()
        return model

    def method(self, spec: str) -> dict[str, str]:
        """A method in words."""
        position = parse(spec)
        return {
            "spec": spec,
            "name": position.method_name(),
            "title": position.title or type(position).__name__,
            "summary": position.summary,
            "summary_zh": position.summary_zh,
            "paper": position.paper,
        }


class Tuned(New):
    """A checkpoint with one method after another: a seed decides the windows, and new weights of a method.

    Args:
        comparison: what is compared.
        base: the checkpoint.
    """

    def __init__(self, comparison: Comparison, base: Base) -> None:
        super().__init__(comparison)
        self.base, self.own, self.vocabulary = base, base.positions(), base.wanted
        name = Path(base.config["from"]).name
        self.identity = {"sha256": base.config["sha256"], "transformers": importlib.metadata.version("transformers")}
        self.said = {"vocabulary": f"the tokenizer in {name}", "sha256": base.config["sha256"]}
        self.notes = [
            f"every model begins with the weights of {name}, which were trained with {self.own}: a method that is new "
            f"to them is learned in {comparison.steps:,} steps, and more can change the order; the training length is "
            f"that of these steps"
        ]

    def build(self, spec: str, seed: int, vocab: int) -> nn.Module:
        """See :meth:`New.build`."""
        with seeded(seed):
            return self.base.given(None if spec == OWN else spec, vocab)

    def method(self, spec: str) -> dict[str, str]:
        """See :meth:`New.method`."""
        if spec != OWN:
            return super().method(spec)
        return {
            "spec": OWN,
            "name": OWN,
            "title": f"The checkpoint's own ({self.own})",
            "summary": "what the checkpoint has, unchanged.",
            "summary_zh": "检查点原有的位置方法，未作改动。",
            "paper": "",
        }


def models_of(comparison: Comparison) -> tuple[Comparison, New]:
    """What a comparison trains, and the comparison with the learning rate that it takes.

    Raises:
        HeadwayError: when no model of the sizes can be built, or the checkpoint cannot be opened or tuned.
    """
    if comparison.model is None:
        # the other tasks have smaller vocabularies than bytes
        comparison.check_sizes(comparison.vocabulary_size if comparison.vocabulary == "bpe" else 256)
        return comparison, New(comparison)
    base = base_of({"from": comparison.model})
    assert base is not None
    rate = base.settings(comparison.train_settings(comparison.seeds[0])).lr
    comparison = replace(comparison, lr=rate)
    return comparison, Tuned(comparison, base)
