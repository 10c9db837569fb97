"""A text as a checkpoint of transformers reads it, as the subject of a view."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel

from headway.characters import labels
from headway.figures.values import Said, both
from headway.hf.calls import first_position
from headway.hf.loading import load
from headway.hf.predicting import Predicting, predictor
from headway.hf.swap import METHODS, swap_position
from headway.init import seeded
from headway.inspect.record import Layer, Trace, recorded
from headway.shapes import HeadwayError, brief
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

        The tokens of a character that is divided are numbered, see :func:`headway.characters.labels`.

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
        texts: list[str | None] = []
        before = (0, 0)
        for name, special, (a, b) in zip(names, found["special_tokens_mask"], found["offset_mapping"], strict=True):
            divided = (a, b) == before and b > a
            texts.append(name if special or a == b else None if divided else text[a:b])
            before = (a, b)
        return torch.tensor([ids]), labels(texts)

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
            found = self._about(Text(self, given), labels, layer, head)
            predicts = predictor(Predicting(self.model, ids), self.tokenizer, ids)
            return replace(found, notes=self.unknown(ids, labels), predictor=predicts)
        part = part or ("encoder" if target is None else "decoder")
        if part not in PARTS:
            raise HeadwayError(f"expected part {', '.join(PARTS)}, got {brief(part)}")
        start = getattr(self.model.config, "decoder_start_token_id", None)
        after, names = self.tokens(target) if target is not None else (ids[:, :0], [])
        first = 0 if start is None else start
        given["decoder_input_ids"] = torch.nn.functional.pad(after, (1, 0), value=first).to(self.model.device)
        of_decoder = [self.tokenizer.convert_ids_to_tokens(first) or "<start>", *names]
        keys = labels if part == "cross" else None
        found = self._about(Text(self, given, part), labels if part == "encoder" else of_decoder, layer, head, keys)
        predicts = predictor(Predicting(self.model, ids), self.tokenizer, ids)
        return replace(found, notes=self.unknown(ids, labels), predictor=predicts)

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

    def _about(self, text: Text, labels: list[str], layer: int, head: int, keys: list[str] | None = None) -> Question:
        recording = Recording(trace=text.recorded(), changes=text)
        return Question(recording, labels, name=self.name, layer=layer, head=head, keys=keys)


@dataclass(frozen=True)
class Text:
    """A text that a model reads; see :class:`headway.views.question.Changes`.

    Args:
        reader: of the model.
        given: ids of the text, and of what a decoder reads.
        part: of an encoder-decoder, whose attentions are looked at; "" of another model.
    """

    reader: Reader
    given: dict[str, Tensor]
    part: str = ""

    def recorded(self, **more: Tensor) -> Trace:
        """The attentions of the part.

        Args:
            more: given to the model too, or instead.

        Raises:
            HeadwayError: when the model cannot read so many tokens.
        """
        given = self.given | more
        try:
            trace = recorded(self.reader.model, **given)
        except HeadwayError:
            raise
        except (IndexError, RuntimeError, ValueError) as error:  # e.g. positions beyond a learned table
            sizes = " and ".join(f"{x.shape[1]:,}" for x in given.values())
            raise HeadwayError(
                f"expected a text that {self.reader.name} can read, got {sizes} tokens: {error}"
            ) from error
        return Trace([layer for layer in trace if not self.part or _part(layer) == self.part])

    def shifted(self, by: int) -> Trace:
        """All positions + ``by``.

        Raises:
            HeadwayError: when the model takes no positions, or not so large ones.
        """
        model: Any = self.reader.model
        takes = "position_ids" in inspect.signature(model.forward).parameters
        here = torch.arange(self.given["input_ids"].shape[1], device=model.device)[None]
        if takes and not self.part:
            before = self.recorded()
            first = first_position(model, lambda first: _alike(before, self.recorded(position_ids=here + first)))
            if first is not None:
                return self.recorded(position_ids=here + first + by)
        raise HeadwayError(
            f"expected a model to which positions can be given, got {self.reader.name}, which counts them itself: "
            f"choose another change"
        )

    def shuffled(self, order: Tensor) -> Trace:
        """The tokens in another order."""
        key = "decoder_input_ids" if self.part == "decoder" else "input_ids"
        return self.recorded(**{key: self.given[key][:, order.to(self.given[key].device)]})

    def swapped(self, spec: str) -> tuple[Trace, bool]:
        """The model with another position method, which is taken back, and whether that has (untrained) parameters.

        Raises:
            HeadwayError: when the model's own method cannot be removed, or the method does not fit.
        """
        with seeded(0):
            done = swap_position(self.reader.model, spec, quiet=True)
        try:
            new = any(True for _ in getattr(self.reader.model, METHODS).parameters())
            return self.recorded(), new
        finally:
            done.undo()


def _part(layer: Layer) -> str:
    """The part of an encoder-decoder to which an attention belongs."""
    return "cross" if layer.crosses else "decoder" if "decoder" in layer.name.split(".") else "encoder"


def _alike(one: Trace, other: Trace) -> bool:
    return all(torch.equal(a.q, b.q) and torch.equal(a.call.q, b.call.q) for a, b in zip(one, other, strict=True))


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
