"""What predicts tokens of a text, the next or masked ones: a model, the ids it reads, and what tokens stand for."""

from __future__ import annotations

import codecs
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from headway.characters import label
from headway.inspect.explain import words
from headway.training.vocabulary import Vocabulary

AT_ONCE = 4096
"""Tokens that masked texts are computed with at once, about."""
CHARACTER = 4
"""Maximum bytes of a character in UTF-8."""


class Spelling(Protocol):
    """What tokens stand for."""

    def name(self, token: int) -> str:
        """A token by itself; a part of a character in hexadecimal."""
        ...

    def added(self, before: Sequence[int], token: int) -> str | None:
        """What a token adds to the text of the tokens before it; None where that is no whole character."""
        ...


@dataclass(frozen=True)
class OfWords:
    """Words, as :func:`headway.inspect.explain.words` finds them.

    Args:
        known: each id's word.

    >>> spelling = OfWords({0: "the", 1: "cat", 2: "."})
    >>> spelling.added([0], 1), spelling.added([1], 2)
    (' cat', '.')
    """

    known: Mapping[int, str]

    def name(self, token: int) -> str:
        """See :class:`Spelling`."""
        return self.known.get(token, f"#{token}")

    def added(self, before: Sequence[int], token: int) -> str | None:
        """See :class:`Spelling`."""
        if token not in self.known:
            return None
        word, last = self.known[token], self.known.get(before[-1], "") if before else ""
        begins_word = word[0].isalnum() and words(f"{word[0]}a") == [f"{word[0]}a"]  # a Chinese character does not
        return f" {word}" if last and (begins_word or words(last + word) != [last, word]) else word


@dataclass(frozen=True)
class OfVocabulary:
    """Tokens of a vocabulary of :mod:`headway.training`.

    >>> from headway.training import Bytes
    >>> spelling = OfVocabulary(Bytes())
    >>> spelling.added([0xE7, 0x8C], 0xAB), spelling.added([65], 0xE7), spelling.name(0xE7)
    ('猫', None, '\\\\xe7')
    """

    vocabulary: Vocabulary

    def name(self, token: int) -> str:
        """See :class:`Spelling`."""
        text = self.vocabulary.decode([token]).decode("utf-8", "surrogateescape")
        return label(text) if text else f"#{token}"

    def added(self, before: Sequence[int], token: int) -> str | None:
        """See :class:`Spelling`."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        decoder.decode(self.vocabulary.decode(list(before[-CHARACTER:])))
        text = decoder.decode(self.vocabulary.decode([token]))
        begun = decoder.getstate()[0]
        return text if text and not begun and "\ufffd" not in text else None


@dataclass(frozen=True)
class Held:
    """What a cache holds.

    Args:
        tokens: tokens whose keys and values it has.
        layers: layers that have some of their own.
        shape: keys of the first layer, (batch, heads, tokens, width).
        needed: bytes of all keys and values.
        reserved: bytes of memory, free room included.
    """

    tokens: int
    layers: int
    shape: tuple[int, ...]
    needed: int
    reserved: int


@dataclass(frozen=True, eq=False)
class Predictor:
    """A model that predicts the next token, as :func:`headway.generate` takes it, or masked tokens, and a text.

    Args:
        model: called with ``pos`` and ``cache``, and with ``new_cache()``.
        ids: the text, (1, N).
        spelling: what tokens stand for.
        recorded: the module whose attentions are recorded; default the model.
        mask: id that stands where an encoder predicts a token; None where it has none.
        around: ids that stand around a text and are no part of it, such as BERT's [CLS] and [SEP].
    """

    model: Any
    ids: Int[Tensor, "1 tokens"]
    spelling: Spelling
    recorded: nn.Module | None = None
    mask: int | None = None
    around: Collection[int] = ()

    @classmethod
    def of_labels(cls, model: Any, ids: Int[Tensor, "1 tokens"], labels: Sequence[str]) -> Predictor:
        """Of a model whose vocabulary is known only as far as a text's labels tell it."""
        return cls(model, ids, OfWords(dict(zip(ids[0].tolist(), labels, strict=True))))

    @property
    def attentions(self) -> nn.Module:
        """The module whose attentions are recorded."""
        found: nn.Module = self.model if self.recorded is None else self.recorded
        return found

    def lacks(self) -> str | None:
        """Why the model predicts no next token: "masked", "encoder", "encoder-decoder" or "headless"; else None."""
        kind = str(getattr(self.model, "kind", "decoder"))
        return None if kind == "decoder" else "masked" if self.mask is not None else kind

    @property
    def ahead(self) -> int:
        """How far after a token that lies which is predicted there: 1 of a decoder, 0 of masked tokens."""
        return int(self.mask is None)

    @property
    def text(self) -> list[int]:
        """The ids up to the end of the text, without what stands after it."""
        ids: list[int] = self.ids[0].tolist()
        while len(ids) > 1 and ids[-1] in self.around:
            ids.pop()
        return ids

    def logits(self, shift: int = 0) -> Float[Tensor, "tokens vocab"]:
        """Logits of the token after each token of the text, or of each token with a mask in its place.

        All positions are shifted by so many; in float64, on the CPU.
        """
        if self.mask is None:
            return self._called(self.ids, shift)[0]
        tokens = self.ids.shape[1]
        rows = torch.arange(tokens, device=self.ids.device)
        found = []
        for some in rows.split(max(1, AT_ONCE // tokens)):  # a text for each token, with its mask
            masked = self.ids.expand(len(some), -1).scatter(1, some[:, None], self.mask)
            found.append(self._called(masked, shift)[torch.arange(len(some)), some.cpu()])
        return torch.cat(found)

    def following(self) -> Float[Tensor, "vocab"]:
        """Logits of the token after the text; of masked tokens at a mask there."""
        if self.mask is None:
            return self.logits()[-1]
        before = len(self.text)
        mask = self.ids.new_tensor([[self.mask]])
        return self._called(torch.cat([self.ids[:, :before], mask, self.ids[:, before:]], 1))[0, before]

    def _called(self, ids: Int[Tensor, "texts tokens"], shift: int = 0) -> Float[Tensor, "texts tokens vocab"]:
        pos = None if shift == 0 else torch.arange(shift, shift + ids.shape[1], device=ids.device)[None]
        with torch.no_grad():
            found: Tensor = self.model(ids, pos=pos).cpu().double()
        return found

    def shown(self, before: Sequence[int], token: int) -> str:
        """Display text of a token that follows others."""
        if isinstance(self.spelling, OfWords):  # as the text's labels, without the space between
            return label(self.spelling.name(token))
        return label(self.spelling.added(before, token) or self.spelling.name(token))

    def held(self, cache: Any) -> Held:
        """What a cache of the model holds now."""
        if hasattr(self.model, "held"):
            found: Held = self.model.held(cache)
            return found
        layers = list(dict.fromkeys(cache.layers))  # layers that share keys and values share a cache
        needed = sum(x.numel() * x.itemsize for layer in layers for x in (layer.k, layer.v))
        return Held(len(cache), len(layers), tuple(layers[0].k.shape), needed, cache.nbytes)
