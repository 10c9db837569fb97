"""Masks by chunks, prefixes, strides, blocks, documents and padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from headway.integers import FAR, Array, Integers, Positions, as_integers, readable
from headway.masks.base import ALL, Mask, Visible, distance
from headway.shapes import HeadwayError, as_count, kind_of


@dataclass(frozen=True)
class Chunks(Mask):
    """A query sees the keys in its own chunk of ``size`` positions, counted from 0: ``Causal() & Chunks(8192)`` is the
    chunked attention of Llama 4.

    >>> from headway.masks import Causal
    >>> pos = torch.arange(4)[None]
    >>> (Causal() & Chunks(2)).tile(pos, pos).int()[0, 0].tolist()
    [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
    """

    size: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", min(as_count(self.size, "chunks of at least 1 token", 1), FAR))

    def tile(self, q_pos: Positions, k_pos: Positions, rows: slice = ALL, cols: slice = ALL) -> Visible:
        """See :meth:`Mask.tile`."""
        return (q_pos[:, rows, None] // self.size == k_pos[:, None, cols] // self.size)[:, None]


@dataclass(frozen=True, eq=False)
class Prefix(Mask):
    """Every query sees the keys at positions below ``length``: ``Causal() | Prefix(10)`` is the mask of a prefix
    language model.

    Args:
        length: tokens of the prefix; one number, or one per sequence (B,), as a tensor, array or list.

    Raises:
        HeadwayError: when it is not an integer or below 0.
    """

    length: int | Integers

    def __post_init__(self) -> None:
        length: Any = self.length
        if isinstance(length, Tensor | Array | Sequence) and not isinstance(length, str | bytes):
            lengths = as_integers(length, "Prefix length")
            if lengths.ndim > 1:
                raise HeadwayError(f"expected a Prefix length, or one per sequence, got shape {tuple(lengths.shape)}")
            made: Any = lengths.reshape(-1)
        else:
            made = as_count(length, "a Prefix length of at least 0 tokens")
        object.__setattr__(self, "length", made)

    def tile(self, q_pos: Positions, k_pos: Positions, rows: slice = ALL, cols: slice = ALL) -> Visible:
        """See :meth:`Mask.tile`."""
        given: Any = self.length
        length = given[:, None, None] if isinstance(given, Tensor) else min(given, FAR)
        keys = k_pos[:, None, cols] < length
        return keys.expand(-1, q_pos[:, rows].shape[1], -1)[:, None]


@dataclass(frozen=True)
class Strided(Mask):
    """A query sees every ``stride``-th key, counted from its own position, in both directions.

    ``Window(w) | Strided(w)`` is the strided pattern of Sparse Transformers (arXiv:1904.10509).

    >>> from headway.masks import Causal
    >>> pos = torch.arange(5)[None]
    >>> (Causal() & Strided(2)).tile(pos, pos).int()[0, 0, -1].tolist()
    [1, 0, 1, 0, 1]
    """

    stride: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "stride", min(as_count(self.stride, "a stride of at least 1 token", 1), FAR))

    def tile(self, q_pos: Positions, k_pos: Positions, rows: slice = ALL, cols: slice = ALL) -> Visible:
        """See :meth:`Mask.tile`."""
        return (distance(q_pos, k_pos, rows, cols) % self.stride == 0)[:, None]


@dataclass(frozen=True, eq=False)
class Blocks(Mask):
    """Block-sparse attention: which blocks of keys each block of queries sees; blocks are ranges of positions.

    Args:
        visible: (blocks of queries, blocks of keys) for all heads, or (H, blocks of queries, blocks of keys), boolean.
        size: tokens in a block, counted from position 0.

    Raises:
        HeadwayError: when ``visible`` is not a boolean tensor of 2 or 3 axes; when a position lies past the last block.

    >>> pos = torch.arange(4)[None]
    >>> Blocks(torch.eye(2, dtype=torch.bool), 2).tile(pos, pos).int()[0, 0].tolist()
    [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]
    """

    axes: ClassVar[dict[str, str]] = {"visible": "hxx"}

    visible: Bool[Tensor, "*heads query_blocks key_blocks"]
    size: int

    def __post_init__(self) -> None:
        given: Any = self.visible
        if not isinstance(given, Tensor) or given.dtype is not torch.bool or given.ndim not in (2, 3):
            got = kind_of(given)
            raise HeadwayError(
                f"expected a boolean tensor of shape (query blocks, key blocks) or (heads, query blocks, key blocks), "
                f"got {got}"
            )
        object.__setattr__(self, "visible", given if given.ndim == 3 else given[None])
        object.__setattr__(self, "size", as_count(self.size, "blocks of at least 1 token", 1))

    def __repr__(self) -> str:
        return f"Blocks(visible={tuple(self.visible.shape)}, size={self.size})"

    def tile(self, q_pos: Positions, k_pos: Positions, rows: slice = ALL, cols: slice = ALL) -> Visible:
        """See :meth:`Mask.tile`."""
        query, key = self.of(q_pos[:, rows], k_pos[:, cols])
        return self.visible[:, query[..., None], key[:, None, :]].transpose(0, 1)

    def of(
        self, q_pos: Positions, k_pos: Positions
    ) -> tuple[Int[Tensor, "#batch queries"], Int[Tensor, "#batch keys"]]:
        """The block of each query and of each key.

        Raises:
            HeadwayError: when a position lies past the last block.
        """
        query, key = (pos.clamp(min=0) // self.size for pos in (q_pos, k_pos))
        for block, count, what in ((query, self.visible.shape[1], "query"), (key, self.visible.shape[2], "key")):
            if readable(block) and block.numel() and int(block.max()) >= count:
                raise HeadwayError(
                    f"expected positions in {count} {what} blocks of {self.size} tokens, got one in block "
                    f"{int(block.max())}: give Blocks more blocks"
                )
        return query, key


@dataclass(frozen=True, eq=False)
class Documents(Mask):
    """Packed documents: a query sees only keys of its own document. Combine: ``Causal() & Documents(ids)``.

    Args:
        ids: the document of each query, (B or 1, Q) or (Q,), as a tensor, array or list.
        key_ids: the document of each key, (B or 1, K) or (K,); default ``ids``.

    Raises:
        HeadwayError: when they are not integers.
    """

    axes: ClassVar[dict[str, str]] = {"ids": "bq", "key_ids": "bk"}

    ids: Integers
    key_ids: Integers | None = None

    def __post_init__(self) -> None:
        for name in ("ids", "key_ids"):
            if name == "ids" or self.key_ids is not None:
                ids = as_integers(getattr(self, name), f"Documents {name}")
                object.__setattr__(self, name, ids[None] if ids.ndim == 1 else ids)

    def tile(self, q_pos: Positions, k_pos: Positions, rows: slice = ALL, cols: slice = ALL) -> Visible:
        """See :meth:`Mask.tile`."""
        ids, keys = self.of(q_pos, k_pos)
        return (ids[:, rows, None] == keys[:, None, cols])[:, None]

    def of(
        self, q_pos: Positions, k_pos: Positions
    ) -> tuple[Int[Tensor, "#batch queries"], Int[Tensor, "#batch keys"]]:
        """The document of each query and of each key.

        Raises:
            HeadwayError: when the number of ids is not that of the tokens.
        """
        queries: Any = self.ids
        keys: Any = queries if self.key_ids is None else self.key_ids
        for name, ids, pos in (("ids", queries, q_pos), ("key_ids", keys, k_pos)):
            if ids.ndim != 2 or ids.shape[1] != pos.shape[1]:
                raise HeadwayError(
                    f"expected Documents {name} of shape (batch, {pos.shape[1]}), got {tuple(ids.shape)}: "
                    f"give one document id per token"
                )
        return queries, keys


@dataclass(frozen=True, eq=False)
class KeyPadding(Mask):
    """No query sees padding keys. Equivalent to giving them position −1, and as fast.

    Args:
        real: True where the key is a token, (B or 1, K); with a cache it covers all keys, the cached ones first.
    """

    axes: ClassVar[dict[str, str]] = {"real": "bk"}

    real: Bool[Tensor, "#batch keys"]

    def __post_init__(self) -> None:
        given: Any = self.real
        if not isinstance(given, Tensor) or given.dtype is not torch.bool or given.ndim != 2:
            got = kind_of(given)
            raise HeadwayError(f"expected a boolean tensor of shape (batch, keys), True = a token, got {got}")

    def __repr__(self) -> str:
        return f"KeyPadding(real={tuple(self.real.shape)})"

    def tile(self, q_pos: Positions, k_pos: Positions, rows: slice = ALL, cols: slice = ALL) -> Visible:
        """See :meth:`Mask.tile`."""
        return self.of(k_pos)[:, None, None, cols].expand(-1, -1, q_pos[:, rows].shape[1], -1)

    def of(self, k_pos: Positions) -> Bool[Tensor, "#batch keys"]:
        """Which keys are tokens.

        Raises:
            HeadwayError: when it is made for another number of keys.
        """
        if self.real.shape[1] != k_pos.shape[1]:
            raise HeadwayError(
                f"expected KeyPadding over {k_pos.shape[1]} keys, including cached ones, got one over "
                f"{self.real.shape[1]}"
            )
        return self.real
