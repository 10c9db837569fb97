"""Keys and values of the tokens seen so far, with their positions beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from headway.integers import as_integers, readable
from headway.shapes import HeadwayError, as_count


class Tokens(NamedTuple):
    """All tokens of a cache, as :meth:`KVCache.append` returns them.

    Args:
        k: keys, (B, H_kv, K, D).
        v: values, (B, H_kv, K, D_v).
        pos: positions, (B, K); -1 is padding.
        marks: what the position method computed per token, (B, K, ...), or None.
    """

    k: Float[Tensor, "batch kv_heads keys dim"]
    v: Float[Tensor, "batch kv_heads keys dim_v"]
    pos: Int[Tensor, "batch keys"]
    marks: Tensor | None


class KVCache:
    """The memory of one attention layer while decoding token by token.

    Memory grows by doubling, so appending n tokens one by one costs O(n). Positions are kept, never inferred from the
    index: a cache may be padded (-1) anywhere, slide, or lose tokens (:meth:`keep`). What is cached is detached; the
    tokens of the current call keep their gradients.

    >>> cache = KVCache()
    >>> len(cache)
    0
    """

    def __init__(self) -> None:
        self._store: dict[str, Tensor] = {}
        self._length = 0
        # the newest token of each sequence when keep() dropped it: a text may go on behind it, or instead of it
        self._newest: dict[str, Tensor] | None = None

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

    @property
    def order(self) -> Int[Tensor, "batch keys"]:
        """How many tokens of the text came up to each key, itself included, (B, K); padding does not count, dropped
        tokens do: keys whose numbers follow each other are neighbours in the text.
        """
        return self._get("order") if "order" in self._store else (self.pos >= 0).cumsum(1)

    def next_pos(self, tokens: int) -> Int[Tensor, "batch tokens"]:
        """Positions of the next ``tokens``: they go on after each sequence's largest position so far."""
        pos = self.pos
        last = pos.amax(1, keepdim=True) if self._length else pos.new_full((len(pos), 1), -1)
        return last + 1 + torch.arange(tokens, device=pos.device)

    def append(
        self,
        k: Float[Tensor, "batch kv_heads tokens dim"],
        v: Float[Tensor, "batch kv_heads tokens dim_v"],
        pos: Int[Tensor, "#batch tokens"],
        marks: Tensor | None = None,
    ) -> Tokens:
        """Add tokens and return all there are, the new ones with their gradients, those before without.

        Without gradients what is returned are views of the memory, valid until tokens are appended or dropped; with
        gradients it is a copy, so that a backward pass may follow later calls.

        Raises:
            HeadwayError: when tensors do not fit each other or what is cached.
        """
        if (k.ndim, v.ndim, pos.ndim) != (4, 4, 2):
            raise HeadwayError(
                f"expected keys and values of shape (batch, heads, tokens, width) and positions (batch or 1, tokens), "
                f"got {tuple(k.shape)}, {tuple(v.shape)} and {tuple(pos.shape)}"
            )
        new = {"k": k.transpose(1, 2), "v": v.transpose(1, 2), "pos": pos}
        if len(pos) == 1:
            new["pos"] = pos.expand(k.shape[0], -1)
        if marks is not None:
            new["marks"] = marks
        self._check(new)
        if "order" in self._store:
            new["order"] = self._before(new["pos"])["order"][:, None] + (new["pos"] >= 0).cumsum(1)
        live, together = torch.is_grad_enabled(), {}
        length = self._length + k.shape[2]
        for name, tensor in new.items():
            old = self._store.get(name)
            if live:
                together[name] = tensor if old is None else torch.cat((old[:, : self._length], tensor), 1)
            # what was made in inference mode cannot be written to outside of it
            frozen = old is not None and old.is_inference() and not torch.is_inference_mode_enabled()
            if old is None or length > old.shape[1] or frozen:
                room = tensor.new_empty(tensor.shape[0], max(length, 2 * self._length), *tensor.shape[2:])
                if old is not None:
                    room[:, : self._length] = old[:, : self._length]
                self._store[name] = room
            self._store[name][:, self._length : length] = tensor.detach()
        self._length = length
        if self._newest is not None:  # of a sequence that went on, the newest token is in memory again
            went_on, never = (new["pos"] >= 0).any(1), torch.iinfo(torch.int64).max
            self._newest["pos"] = self._newest["pos"].masked_fill(went_on, never)
            self._newest["order"] = self._newest["order"].masked_fill(went_on, -1)
        if live:
            return Tokens(
                together["k"].transpose(1, 2), together["v"].transpose(1, 2), together["pos"], together.get("marks")
            )
        return Tokens(self.k, self.v, self.pos, self.marks)

    def before(self, pos: Int[Tensor, "#batch tokens"]) -> tuple[Tensor, Int[Tensor, " batch"]] | None:
        """Marks (B, ...) and position (B,) of the token that new tokens at these positions follow in the text, -1 where
        a sequence has none; None where nothing is cached, or nothing marked.

        That token is the last in memory. Where the newest were dropped by :meth:`keep`, tokens at positions beyond
        theirs follow them as if they were hidden, and tokens at their positions replace them.
        """
        if "marks" not in self._store:
            return None
        found = self._before(pos)
        return found["marks"], found["pos"]

    def misses(self, pos: Int[Tensor, "#batch tokens"]) -> bool:
        """Whether tokens were dropped that lie, in the text, between a cached token and new ones at these positions."""
        if "order" not in self._store:
            return False
        real = self.pos >= 0
        # padding counts as the last token held before it, whatever was dropped between the two
        order = self.order.masked_fill(~real, 0).cummax(1).values
        between = ((order.diff(dim=1) > 1) & (order[:, :-1] > 0)).any()
        rest = (self._before(pos)["order"] > self._last()["order"]) & real.any(1)
        return bool(between or (rest & (pos >= 0).any(1)).any())

    def keep(self, index: Int[Tensor, " kept"] | Bool[Tensor, " tokens"] | Sequence[int]) -> None:
        """Keep only the tokens at these cache indices (a sliding or evicting cache), in the order they lie in memory.

        Dropped tokens are hidden from all that follow, and nothing else changes: positions stay as they were, and what
        a method sums up along the text stays in it. Where the newest tokens are dropped, new ones that take their
        positions, as those of :meth:`next_pos` do, replace them instead: this rolls a text back.

        Args:
            index: indices from 0 to K − 1, each at most once, in any order; or a boolean mask over the K tokens.

        Raises:
            HeadwayError: on indices that are no whole numbers, lie outside the cache or come twice.
        """
        kept = self._indices(index)
        if len(kept) == self._length:
            return
        self._store["order"] = self.order
        last = self._last()
        if self._newest is None:
            self._newest = last
        else:  # of what was dropped at two times, the later in the text
            older = last["order"] < self._newest["order"]
            self._newest = {n: torch.where(_like(older, t), self._newest[n], t) for n, t in last.items()}
        for name, tensor in self._store.items():
            self._store[name] = tensor[:, : self._length].index_select(1, kept)
        self._length = len(kept)

    def crop(self, tokens: int) -> None:
        """Keep the oldest ``tokens`` in memory and forget the others, as if they had never come: a text rolled back.

        Raises:
            HeadwayError: on a number below 0 or above the tokens there are; when some were dropped before.
        """
        tokens = as_count(tokens, f"a number of tokens from 0 to {self._length}")
        if tokens > self._length:
            raise HeadwayError(f"expected a number of tokens from 0 to {self._length}, got {tokens}")
        if "order" in self._store:
            raise HeadwayError("expected a cache that holds all its tokens to be cropped, got one after keep()")
        self._length = tokens
        if not tokens:
            self._store = {}

    def reorder(self, index: Int[Tensor, " batch"] | Sequence[int]) -> None:
        """Let sequence b go on as sequence ``index[b]`` did so far: beams that were chosen, or sequences that go on.

        Args:
            index: which sequence each is to be, any number of them, each from 0 to B − 1.

        Raises:
            HeadwayError: on indices that are no whole numbers, or of no sequence.
        """
        chosen = as_integers(index, "the sequences to go on with")
        if chosen.ndim != 1:
            raise HeadwayError(f"expected the sequences to go on with in one dimension, got {tuple(chosen.shape)}")
        if not self._store:
            return
        batch = self._store["pos"].shape[0]
        chosen = chosen.to(self._store["pos"].device)
        if chosen.numel() and (int(chosen.min()) < 0 or int(chosen.max()) >= batch):
            raise HeadwayError(f"expected sequences from 0 to {batch - 1}, got {chosen.tolist()}")
        held = {name: tensor[:, : self._length] for name, tensor in self._store.items()}
        self._store = {name: tensor.index_select(0, chosen) for name, tensor in held.items()}
        if self._newest is not None:
            self._newest = {name: tensor.index_select(0, chosen) for name, tensor in self._newest.items()}

    def _indices(self, index: Tensor | Sequence[int]) -> Int[Tensor, " kept"]:
        """Indices of the tokens to keep, ascending."""
        expected = f"expected the indices to keep as whole numbers, or a boolean mask over {self._length} tokens"
        try:
            given = index if isinstance(index, Tensor) else torch.tensor(list(index))
        except (TypeError, ValueError, RuntimeError):
            raise HeadwayError(f"{expected}, got {index!r:.60}") from None
        if given.ndim != 1:
            raise HeadwayError(f"{expected}, in one dimension, got shape {tuple(given.shape)}")
        if given.dtype is torch.bool:
            if len(given) != self._length:
                raise HeadwayError(f"{expected}, got a mask over {len(given)}")
            given = given.nonzero()[:, 0]
        elif given.numel() and (given.is_floating_point() or given.is_complex()):
            raise HeadwayError(f"{expected}, got {given.dtype}")
        given = given.long().sort().values
        if not self._store:
            if given.numel():
                raise HeadwayError("expected nothing to keep, because the cache is empty, got indices")
            return given
        given = given.to(self._store["pos"].device)
        if given.numel() and (int(given[0]) < 0 or int(given[-1]) >= self._length):
            wrong = int(given[0]) if int(given[0]) < 0 else int(given[-1])
            raise HeadwayError(f"expected cache indices from 0 to {self._length - 1}, got {wrong}")
        if (given.diff() == 0).any():
            raise HeadwayError("expected each cache index once, got one twice: a cache holds a token once")
        return given

    def _last(self) -> dict[str, Tensor]:
        """Marks, position and order of the last token in memory of each sequence; position -1 where there is none."""
        held = {name: self._get(name) for name in ("marks", "pos", "order") if name in self._store}
        pos = held["pos"]
        if not self._length:
            return {n: t.new_full((t.shape[0], *t.shape[2:]), -1 if n == "pos" else 0) for n, t in held.items()}
        if readable(pos) and bool((pos[:, -1] >= 0).all()):
            return {name: tensor[:, -1] for name, tensor in held.items()}
        number = torch.arange(self._length, device=pos.device)
        place = torch.where(pos >= 0, number, 0).amax(1)
        rows = torch.arange(len(pos), device=pos.device)
        return {name: tensor[rows, place] for name, tensor in held.items()}

    def _before(self, pos: Int[Tensor, "#batch tokens"]) -> dict[str, Tensor]:
        """As :meth:`_last`, of the token that new tokens at these positions follow."""
        last = self._last()
        if self._newest is None:
            return last
        first = pos.gather(1, (pos >= 0).int().argmax(1, keepdim=True))[:, 0]  # -1 of padding alone
        behind = first > self._newest["pos"]
        return {n: torch.where(_like(behind, t), self._newest[n], t) for n, t in last.items()}

    def _check(self, new: dict[str, Tensor]) -> None:
        """Refuse tokens that do not fit each other, or what is cached."""
        k, v = new["k"], new["v"]
        lengths = {name: tuple(tensor.shape[:2]) for name, tensor in new.items()}
        if len(set(lengths.values())) > 1 or k.shape[2] != v.shape[2]:
            shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in new.items())
            raise HeadwayError(
                f"expected keys, values, positions and marks of one batch and as many tokens, in as many heads, "
                f"got {shapes} in the order batch, tokens, heads, width"
            )
        if not self._store:
            return
        held = {name: tensor for name, tensor in self._store.items() if name != "order"}
        if new.keys() != held.keys():
            has, got = ("marks", "none") if "marks" in held else ("no marks", "some")
            raise HeadwayError(f"expected tokens with {has}, as those in the cache, got {got}: use a new cache")
        if any((t.shape[0], *t.shape[2:]) != (held[n].shape[0], *held[n].shape[2:]) for n, t in new.items()):
            have = held["k"]
            raise HeadwayError(
                f"expected keys of the cache's batch {have.shape[0]} and heads and width {tuple(have.shape[2:])}, got "
                f"batch {k.shape[0]} and {tuple(k.shape[2:])}: use a new cache for another batch or model"
            )
        for name, tensor in new.items():
            if name != "pos" and (tensor.dtype, tensor.device) != (held[name].dtype, held[name].device):
                raise HeadwayError(
                    f"expected {name} of {held[name].dtype} on {held[name].device}, as in the cache, got "
                    f"{tensor.dtype} on {tensor.device}: use a new cache"
                )


def _like(rows: Bool[Tensor, " batch"], x: Tensor) -> Tensor:
    """One truth value per sequence, to choose among tensors of the shape of x."""
    return rows.view(-1, *[1] * (x.ndim - 1))
