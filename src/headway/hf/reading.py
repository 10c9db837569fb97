"""A text as a checkpoint of transformers reads it, as the subject of a view."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel

from headway.figures.values import Said, both
from headway.hf.loading import load
from headway.inspect.record import Layer, Trace, recorded
from headway.shapes import HeadwayError
from headway.views.question import Question, Recording

PARTS = ("encoder", "decoder", "cross")
"""Of an encoder-decoder, which attentions are looked at."""


@dataclass(frozen=True)
class Reader:
    """A model, and what divides a text into its tokens.

    Args:
        model: a model of transformers.
        tokenizer: its tokenizer; None where it has none.
        name: of the model, for display.
    """

    model: PreTrainedModel
    tokenizer: Any
    name: str

    def tokens(self, text: str) -> tuple[Int[Tensor, "1 tokens"], list[str]]:
        """The ids of a text, and what each token is of it: characters stay whole.

        A character that is divided into several tokens is shown at the first of them, the others are "‥".

        Raises:
            HeadwayError: when there is no tokenizer, or the text has no tokens, or more than the model reads.
        """
        if self.tokenizer is None:
            raise HeadwayError(
                f"expected a tokenizer beside the weights (tokenizer.json), got none in {self.name}: save it there too"
            )
        fast = bool(self.tokenizer.is_fast)
        found = self.tokenizer(text, return_offsets_mapping=fast, return_special_tokens_mask=True)
        ids = found["input_ids"]
        if not ids:
            raise HeadwayError("expected a text, got an empty one: give a sentence")
        names = self.tokenizer.convert_ids_to_tokens(ids)
        if not fast:
            return torch.tensor([ids]), names
        labels, before = [], (0, 0)
        for name, special, (a, b) in zip(names, found["special_tokens_mask"], found["offset_mapping"], strict=True):
            divided = (a, b) == before and b > a
            labels.append(name if special or a == b else "‥" if divided else text[a:b])
            before = (a, b)
        return torch.tensor([ids]), labels

    def question(
        self, text: str, *, target: str | None = None, part: str | None = None, layer: int = 0, head: int = 0
    ) -> Question:
        """A question about the attentions of the model for a text.

        Args:
            text: what it reads.
            target: of an encoder-decoder, what its decoder reads; default nothing but its first token.
            part: of an encoder-decoder, "encoder" (default), "decoder" or "cross".
            layer: which layer, from 0.
            head: which head, from 0.

        Raises:
            HeadwayError: as :meth:`tokens`; on another part, or one that the model does not have.
        """
        ids, labels = self.tokens(text)
        given = {"input_ids": ids.to(self.model.device)}
        if not self.model.config.is_encoder_decoder:
            if part is not None or target is not None:
                raise HeadwayError(f"expected no part or target, got one: {self.name} is no encoder-decoder")
            layers = self._recorded(**given)
            return replace(self._about(layers, labels, layer, head), notes=self.unknown(ids, labels))
        part = part or ("encoder" if target is None else "decoder")
        if part not in PARTS:
            raise HeadwayError(f"expected part {', '.join(PARTS)}, got {part!r}")
        start = getattr(self.model.config, "decoder_start_token_id", None)
        after, names = self.tokens(target) if target is not None else (ids[:, :0], [])
        first = 0 if start is None else start
        given["decoder_input_ids"] = torch.nn.functional.pad(after, (1, 0), value=first).to(self.model.device)
        of_decoder = [self.tokenizer.convert_ids_to_tokens(first) or "<start>", *names]
        kinds: dict[str, list[Layer]] = {name: [] for name in PARTS}
        for each in self._recorded(**given):
            of_encoder = "decoder" not in each.name.split(".")
            kinds["cross" if each.crosses else "encoder" if of_encoder else "decoder"].append(each)
        keys = labels if part == "cross" else None
        found = self._about(kinds[part], labels if part == "encoder" else of_decoder, layer, head, keys)
        return replace(found, notes=self.unknown(ids, labels))

    def unknown(self, ids: Int[Tensor, "1 tokens"], labels: Sequence[str]) -> tuple[Said, ...]:
        """A note on the tokens that the vocabulary lacks, which are all the same to the model."""
        none = getattr(self.tokenizer, "unk_token_id", None)
        pairs = zip(labels, ids[0].tolist(), strict=True)
        lacking = [label for label, number in pairs if number == none and label != self.tokenizer.unk_token]
        if not lacking:
            return ()
        words = list(dict.fromkeys(lacking))
        shown = " ".join(words[:8]) + (" …" if len(words) > 8 else "")
        return (both("hf.unknown", n=len(lacking), of=len(labels), token=self.tokenizer.unk_token, words=shown),)

    def _recorded(self, **given: Tensor) -> list[Layer]:
        try:
            return list(recorded(self.model, **given))
        except HeadwayError:
            raise
        except (IndexError, RuntimeError, ValueError) as error:  # e.g. positions beyond a learned table
            sizes = " and ".join(f"{x.shape[1]:,}" for x in given.values())
            raise HeadwayError(f"expected a text that {self.name} can read, got {sizes} tokens: {error}") from error

    def _about(
        self, layers: Sequence[Layer], labels: list[str], layer: int, head: int, keys: list[str] | None = None
    ) -> Question:
        recording = Recording(trace=Trace(list(layers)))
        return Question(recording, labels, name=self.name, layer=layer, head=head, keys=keys)


def reader(path: str | Path) -> Reader:
    """A checkpoint folder, opened with its tokenizer; errors as of :func:`headway.hf.load`."""
    folder = Path(path)
    return Reader(load(folder), tokenizer_of(folder), folder.name or str(folder))


def tokenizer_of(folder: Path) -> Any:
    """The tokenizer of a checkpoint folder; None without one.

    Raises:
        HeadwayError: when transformers cannot read it.
    """
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt")):
        return None
    auto: Any = AutoTokenizer
    try:
        return auto.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever a damaged file makes the reader raise
        raise HeadwayError(f"expected a tokenizer that transformers can read in {folder}, got {error}") from error


def about(path: str | Path, text: str, **where: Any) -> Question:
    """A question about a checkpoint folder and a text, see :meth:`Reader.question`."""
    return reader(path).question(text, **where)
