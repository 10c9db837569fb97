"""A Transformer over tokens: decoder, encoder or both, with one position method for all layers.

X = E[tokens]·√d + P           each layer:  X ← X + Attention(norm X);  X ← X + MLP(norm X)          logits = norm(X) Eᵀ
"""

from __future__ import annotations

import copy
import inspect
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from headway.attending import Attending, check_dtype, place_parameters
from headway.attention import Attention
from headway.config import TransformerConfig as TransformerConfig
from headway.integers import Array, Integers, as_positions
from headway.latent import LatentAttention
from headway.linear import project
from headway.masks import Mask, as_mask
from headway.positions import NoPosition, Position, as_method, extend
from headway.saving import fill, read_config, save
from headway.shapes import HeadwayError
from headway.stack import MLP, Cache, Stack


class Transformer(nn.Module):
    """Transformer that reads tokens and returns logits; a decoder unless told otherwise.

    Args:
        given: a :class:`TransformerConfig`; or its values, the first of them in order and the others by name.
        device: where the parameters are made; default torch's own.
        dtype: of the parameters; default torch's own.

    Raises:
        HeadwayError: on values that do not fit, with what would.

    >>> import torch
    >>> model = Transformer(vocab=256, dim=64, layers=2, heads=4, position="alibi")
    >>> model(torch.zeros(1, 10, dtype=torch.long)).shape
    torch.Size([1, 10, 256])
    """

    __signature__ = inspect.signature(TransformerConfig)  # what help() and editors show

    def __init__(
        self, *given: Any, device: torch.device | str | None = None, dtype: torch.dtype | None = None, **options: Any
    ) -> None:
        ready = len(given) == 1 and not options and isinstance(given[0], TransformerConfig)
        config: TransformerConfig = given[0] if ready else TransformerConfig(*given, **options)
        super().__init__()
        position = as_method(config.position)
        if config.kind == "encoder" and isinstance(position, NoPosition):
            warnings.warn("an encoder without position is blind to the order of its tokens", stacklevel=2)
        share = not position.per_layer if config.share_position is None else config.share_position
        self.config = replace(config, position=position.spec(), share_position=share)
        self.kind = kind = config.kind
        self.embedding = nn.Embedding(config.vocab, config.dim)

        def stack(position: Position, causal: bool, cross: bool) -> Stack:
            return Stack(self.embedding, position, self.config, causal=causal, cross=cross)

        self.encoder = stack(two_sided(position), False, False) if kind == "encoder-decoder" else None
        self.stack = stack(position, kind != "encoder", kind == "encoder-decoder")
        self.head = nn.Linear(config.dim, config.vocab, bias=False)
        place_parameters(self, device, dtype)
        self.reset_parameters()

    def extra_repr(self) -> str:
        """Options that are not the defaults."""
        values, usual = vars(self.config), vars(TransformerConfig(self.config.vocab))
        return ", ".join(
            f"{name}={value!r}" for name, value in values.items() if value != usual[name] or name == "vocab"
        )

    @classmethod
    def from_config(cls, config: TransformerConfig | Mapping[str, Any]) -> Transformer:
        """A new model from :attr:`config`, or from plain values as they come from JSON; errors as of both."""
        return cls(
            config if isinstance(config, TransformerConfig) else TransformerConfig.of(config, "a model configuration")
        )

    @property
    def position(self) -> Position:
        """The position method; of the decoder if there are two sides, of the first layer if each has its own."""
        return self.stack.position

    def extended(self, to: int, how: str | None = None, trained: int | None = None) -> Transformer:
        """A copy of the model, weights included, whose position method serves ``to`` tokens.

        Args:
            to: the length to serve.
            how: as in :func:`headway.positions.extend`, which says what each method can.
            trained: the length it was trained at, where the method does not know it.

        Raises:
            HeadwayError: when the method cannot be extended so.
        """
        other = copy.deepcopy(self)
        other._replace_positions(lambda position: extend(position, to, how, trained))
        return other

    def drop_position(self) -> None:
        """Go on without position, as DroPE does after most of the training (arXiv:2512.12167); a causal mask stays.

        Calling it again changes nothing. :class:`headway.training.TrainSettings` has it as ``drop_position``.

        Raises:
            HeadwayError: when the method has learned parameters, which an optimizer or a checkpoint may hold.
        """
        if any(True for _ in self.position.parameters()):
            raise HeadwayError(
                f"expected a position method without parameters to drop, as rotary, got {self.position.spec()}"
            )
        self._replace_positions(lambda position: NoPosition())

    def _replace_positions(self, change: Callable[[Position], Position]) -> None:
        """Put ``change(position)`` in the place of each position object of the self attentions."""
        changed: dict[int, Position] = {}  # what was shared stays shared

        def of(position: Position) -> Position:
            if id(position) not in changed:
                assert position.shape is not None
                changed[id(position)] = change(position).attach(position.shape)
            return changed[id(position)]

        for stack in (self.encoder, self.stack):
            if stack is None:
                continue
            holders: list[Stack | Attending] = [stack, *stack.attentions()]
            for holder in holders:
                holder.position = of(holder.position)
        own = [layer.position.spec() for layer in self.stack.attentions()]
        pattern = tuple(
            layer if layer.position is None else replace(layer, position=own[number])
            for number, layer in enumerate(self.config.pattern[: len(own)])
        )
        self.config = replace(self.config, position=self.position.spec(), pattern=pattern)

    def checkpoint_layers(self, on: bool = True) -> None:
        """Compute each layer again in the backward pass instead of keeping what it computed: less memory, more time."""
        for stack in (self.encoder, self.stack):
            if stack is not None:
                stack.checkpointed = on

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write ``config.json`` and ``model.safetensors`` into a folder, which is made if need be.

        Each file appears whole or not at all. What several places share is written once, under its first name.

        Returns:
            The folder.
        """
        return save(self, path)

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Transformer:
        """The model that :meth:`save` wrote, in evaluation mode.

        Args:
            path: the folder.
            device: where to put the model; default the CPU.
            dtype: of its parameters, each rounded at most once; default what they have in the file.

        Raises:
            HeadwayError: when a file is missing or damaged, or weights do not fit the configuration.
        """
        check_dtype(dtype)
        model = cls.from_config(read_config(path))
        fill(model, path)
        return model.to(device=device, dtype=dtype).eval()

    def reset_parameters(self) -> None:
        """Draw all parameters anew; those of the position method last.

        So that from one seed all models that differ only in their position method start from the same weights.
        """
        nn.init.normal_(self.embedding.weight, std=self.embedding.embedding_dim**-0.5)
        if self.config.tie:  # here and not only at the start: Module.to_empty unties a model made on the meta device
            self.head.weight = self.embedding.weight
        else:
            nn.init.normal_(self.head.weight, std=self.embedding.embedding_dim**-0.5)
        for module in self.modules():
            if isinstance(module, Attention | LatentAttention | MLP | nn.LayerNorm | nn.RMSNorm):
                module.reset_parameters()
        for module in self.modules():
            if isinstance(module, Position):
                module.reset_parameters()

    def new_cache(self, size: int | None = None, dtype: torch.dtype | None = None) -> Cache:
        """An empty cache for decoding: pass it to every call, and give each call only the new tokens.

        Args:
            size: room for so many tokens and no more, so that tensors keep their shapes under ``torch.compile``; see
                :class:`headway.KVCache`. Default: it grows.
            dtype: what keys and values are stored in, as ``torch.int8``; default their own.

        Raises:
            HeadwayError: as :class:`headway.KVCache`.
        """
        return Cache(self.stack.owners, size, dtype)

    def forward(
        self,
        tokens: Int[Tensor, "batch tokens"],
        *,
        source: Int[Tensor, "batch source"] | None = None,
        pos: Integers | None = None,
        source_pos: Integers | None = None,
        coordinates: Integers | None = None,
        mask: Mask | Tensor | Array | None = None,
        cache: Cache | None = None,
    ) -> Float[Tensor, "batch tokens vocab"]:
        """Logits of the next token at each place (decoder), or of each token (encoder).

        Args:
            tokens: integer ids, (B, N), below ``vocab``.
            source: what the encoder of an encoder-decoder reads, (B, M); with a filled cache it is not read again, and
                its B may differ, as in :func:`headway.training.beam_search`.
            pos: integer positions, (B or 1, N) or (N,), as a tensor, array or list; -1 is padding. Default 0 … N−1, or
                onwards from the cache.
            source_pos: likewise for the source.
            coordinates: where each token lies, (B or 1, N, axes), for methods of several axes; see
                :meth:`headway.Attention.forward`.
            mask: restricts the self attention of the decoder (or of an encoder alone) further, as packed documents do;
                a boolean tensor, True = may see, is taken as :class:`headway.Dense`, one of floats is added to the
                scores of every layer.
            cache: of :meth:`new_cache`; the tokens continue those in it.

        Raises:
            HeadwayError: on ids outside the vocabulary, on a missing source, on positions a method cannot serve.
        """
        if cache is not None and not isinstance(cache, Cache):
            raise HeadwayError(f"expected a cache made by new_cache(), got {type(cache).__name__}")
        context = None
        if self.encoder is None and source is not None:
            raise HeadwayError(f"expected no source, because this Transformer is of kind {self.kind!r}, got one")
        if self.encoder is not None:
            if source is None:
                raise HeadwayError("expected a source, because this Transformer is an encoder-decoder, got none")
            if source_pos is not None and isinstance(source, Tensor) and source.ndim == 2:
                source_pos = as_positions(source_pos, source, "source_pos")
            if cache is None or not cache.begun:
                context = self.encoder(source, pos=source_pos)
            else:  # its keys, values and positions are in the cache
                source_pos = None
                context = self.embedding.weight.new_empty(len(tokens), 0, self.embedding.embedding_dim)
        x = self.stack(
            tokens,
            pos=pos,
            coordinates=coordinates,
            mask=mask if isinstance(mask, Tensor) else as_mask(mask),
            cache=cache,
            context=context,
            context_pos=source_pos,
        )
        return project(self.head, x)


def two_sided(position: Position) -> Position:
    """The method as an encoder uses it: T5 and its kin see the future too."""
    values = position.hyperparameters()
    return type(position)(**{**values, "bidirectional": True} if "bidirectional" in values else values)
