"""The next token of a text, or a masked one, predicted by a checkpoint of transformers with a language-model head."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from headway.hf.calls import CACHES, first_position
from headway.shapes import HeadwayError
from headway.views.predictor import Held, Predictor

SAME = 1e-3
"""Two passes of a causal model differ by less, relative to its largest logit."""


class Predicting(nn.Module):
    """A model of transformers, called as :func:`headway.generate` calls one.

    Args:
        model: any; :attr:`kind` says whether it predicts next tokens.
        ids: of the text, (1, N).
    """

    def __init__(self, model: PreTrainedModel, ids: Int[Tensor, "1 tokens"]) -> None:
        super().__init__()
        self.model = model
        # padding has no position of its own, and equal tokens may not tell which of them is seen
        known = [one for one in dict.fromkeys([*ids[0].tolist(), *range(3)]) if one != model.config.pad_token_id]
        self.two = torch.tensor([known[:2]], device=model.device)

    @cached_property
    def kind(self) -> str:
        """A kind of Transformer: "encoder" where later tokens matter too; "headless" if it predicts none."""
        if self.model.config.is_encoder_decoder:
            return "encoder-decoder"
        if self.masked:
            return "encoder"
        if type(self.model).__name__ not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
            return "headless"
        with torch.no_grad():
            both, one = (self.model(input_ids=part).logits[0, 0].double() for part in (self.two, self.two[:, :1]))
        return "decoder" if bool((both - one).abs().max() <= SAME * both.abs().max()) else "encoder"

    @property
    def masked(self) -> bool:
        """Whether it was made to predict masked tokens."""
        return type(self.model).__name__ in MODEL_FOR_MASKED_LM_MAPPING_NAMES.values()

    @cached_property
    def first(self) -> int:
        """The position of the first token: RoBERTa's is not 0.

        Raises:
            HeadwayError: when it is neither.
        """
        with torch.no_grad():
            usual = self.model(input_ids=self.two).logits.double()

            def same(first: int) -> bool:
                pos = torch.arange(first, first + 2, device=self.two.device)[None]
                logits = self.model(input_ids=self.two, position_ids=pos).logits.double()
                return bool((logits - usual).abs().max() <= SAME * usual.abs().max())

            found = first_position(self.model, same)
        if found is None:
            name = type(self.model).__name__
            raise HeadwayError(f"expected a model whose positions begin at 0, or after its padding, got {name}")
        return found

    def new_cache(self) -> DynamicCache:
        """An empty cache."""
        return DynamicCache(config=self.model.config)

    def forward(
        self, tokens: Int[Tensor, "1 tokens"], *, pos: Int[Tensor, "1 tokens"] | None = None, cache: Any = None
    ) -> Float[Tensor, "1 tokens vocab"]:
        """Logits of the token after each.

        Raises:
            HeadwayError: when the model takes no positions, or cannot serve so many.
        """
        name, known = type(self.model).__name__, inspect.signature(self.model.forward).parameters
        given: dict[str, Any] = {"input_ids": tokens, "use_cache": cache is not None}
        if pos is not None:
            if "position_ids" not in known:
                raise HeadwayError(f"expected a model that takes positions (position_ids) to shift them, got {name}")
            given["position_ids"] = pos + self.first
        if cache is not None:
            called = CACHES & known.keys()
            if not called:
                raise HeadwayError(f"expected a model that takes a cache to continue a text, got {name}")
            given[called.pop()] = cache
        try:
            logits: Tensor = self.model(**given).logits
        except (IndexError, RuntimeError, ValueError) as error:  # e.g. positions beyond a learned table
            last = tokens.shape[1] if pos is None else int(pos.max()) + 1
            raise HeadwayError(f"expected positions that {name} has, got some up to {last - 1:,}: {error}") from error
        return logits

    def held(self, cache: Any) -> Held:
        """What a cache holds."""
        layers = [layer for layer in cache.layers if getattr(layer, "keys", None) is not None]
        needed = sum(x.numel() * x.itemsize for layer in layers for x in (layer.keys, layer.values))
        return Held(layers[0].keys.shape[2], len(layers), tuple(layers[0].keys.shape), needed, needed)


@dataclass(frozen=True)
class OfTokenizer:
    """Tokens of a tokenizer of transformers; see :class:`headway.views.predictor.Spelling`."""

    tokenizer: Any

    def name(self, token: int) -> str:
        """A token by itself."""
        return str(self.tokenizer.convert_ids_to_tokens(token))

    def added(self, before: Sequence[int], token: int) -> str | None:
        """What a token adds to the text; None where that is no whole character."""
        if token in self.tokenizer.all_special_ids:
            return None
        context = list(before[-8:])
        old, new = (
            self.tokenizer.decode(ids, clean_up_tokenization_spaces=False) for ids in (context, [*context, token])
        )
        text = new[len(old) :]
        return text if text and new.startswith(old) and "\ufffd" not in text else None


def predictor(model: Predicting, tokenizer: Any, ids: Tensor) -> Predictor:
    """What predicts the next token of a text that a checkpoint reads, or its masked tokens."""
    mask = getattr(tokenizer, "mask_token_id", None) if model.masked else None
    own = {mask, tokenizer.unk_token_id}  # these stand in a text, others around it
    around = frozenset[int]() if mask is None else frozenset(tokenizer.all_special_ids) - own
    spelling = OfTokenizer(tokenizer)
    return Predictor(model, ids.to(model.model.device), spelling, recorded=model.model, mask=mask, around=around)
