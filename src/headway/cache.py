"""Keys and values of the tokens seen so far, with their positions beside them."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headway.shapes import HeadwayError


class KVCache:
    """The memory of one attention layer while decoding token by token.

    Memory grows by doubling, so appending n tokens one by one costs O(n). Positions are kept, never inferred from the
    index: a cache may be left-padded (-1), slide, or lose tokens (:meth:`keep`).

    >>> cache = KVCache()
    >>> len(cache)
    0
    """

    def __init__(self) -> None:
        self._store: dict[str, Tensor] = {}
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def _get(self, name: str) -> Tensor:
        if name not in self._store:
            raise HeadwayError(f"expected a cache with tokens, got an empty one: it has no {name} yet")
        return self._store[name][:, : self._length]

    @property
    def k(self) -> Float[Tensor, "batch kv_heads keys dim"]:
        """Keys as attention sees them, rotations included, (B, H_kv, K, D)."""
        return self._get("k").transpose(1, 2)

    @property
    def v(self) -> Float[Tensor, "batch kv_heads keys dim"]:
        """Values, (B, H_kv, K, D_v)."""
        return self._get("v").transpose(1, 2)

    @property
    def pos(self) -> Int[Tensor, "batch keys"]:
        """Positions of the keys, (B, K); -1 is padding."""
        return self._get("pos")

    @property
    def marks(self) -> Tensor | None:
        """What the position method computed per token, (B, K, ...), or None if it marks nothing."""
        return self._get("marks") if "marks" in self._store else None

    def next_pos(self, tokens: int) -> Int[Tensor, "batch tokens"]:
        """Positions of the next ``tokens``: they go on after each sequence's largest position so far."""
        last = self.pos.amax(1, keepdim=True)
        return last + 1 + torch.arange(tokens, device=last.device)

    def append(
        self,
        k: Float[Tensor, "batch kv_heads tokens dim"],
        v: Float[Tensor, "batch kv_heads tokens dim_v"],
        pos: Int[Tensor, "#batch tokens"],
        marks: Tensor | None = None,
    ) -> None:
        """Add tokens; read all of them back through :attr:`k`, :attr:`v`, :attr:`pos` and :attr:`marks`.

        Raises:
            HeadwayError: when batch, heads or width differ from what is cached.
        """
        new = {"k": k.transpose(1, 2), "v": v.transpose(1, 2), "pos": pos.expand(k.shape[0], -1)}
        if marks is not None:
            new["marks"] = marks
        if self._store and {n: (t.shape[0], *t.shape[2:]) for n, t in new.items()} != {
            n: (t.shape[0], *t.shape[2:]) for n, t in self._store.items()
        }:
            have, got = self._store["k"], new["k"]
            raise HeadwayError(
                f"expected keys of the cache's batch {have.shape[0]} and heads and width {tuple(have.shape[2:])}, got "
                f"batch {got.shape[0]} and {tuple(got.shape[2:])}: use a new cache for another batch or model"
            )
        length = self._length + k.shape[2]
        for name, tensor in new.items():
            tensor = tensor.detach()
            old = self._store.get(name)
            if old is None or length > old.shape[1]:
                room = tensor.new_empty(tensor.shape[0], max(length, 2 * self._length), *tensor.shape[2:])
                if old is not None:
                    room[:, : self._length] = old[:, : self._length]
                self._store[name] = room
            self._store[name][:, self._length : length] = tensor
        self._length = length

    def keep(self, index: Int[Tensor, " kept"]) -> None:
        """Keep only the tokens at these cache indices (a sliding or evicting cache); positions stay as they were."""
        for name, tensor in self._store.items():
            self._store[name] = tensor[:, : self._length].index_select(1, index)
        self._length = int(index.numel())
