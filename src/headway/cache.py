"""Keys and values of the tokens seen so far, with their positions beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from headway.integers import as_integers, readable
from headway.shapes import HeadwayError, as_count, brief


class Tokens(NamedTuple):
    """All tokens of a cache, as :meth:`KVCache.append` returns them.

    Args:
        k: keys, (B, H_kv, K, D).
        v: values, (B, H_kv, K, D_v).
        pos: positions, (B, K); -1 is padding.
        marks: what the position method computed per token, (B, K, ...), or None.
        start: the index of the first token of this call; None where its tokens are the last.
        own: marks of the tokens of this call, (B, N, ...), where those lie anywhere among the others.
    """

    k: Float[Tensor, "batch kv_heads keys dim"]
    v: Float[Tensor, "batch kv_heads keys dim_v"]
    pos: Int[Tensor, "#batch keys"]
    marks: Tensor | None
    start: Int[Tensor, "1"] | None = None
    own: Tensor | None = None


class KVCache:
    """The keys and values of one attention layer while decoding token by token.

    Memory grows by doubling, so appending n tokens one by one costs O(n). Positions are kept, never inferred from the
    index: a cache may be padded (-1) anywhere, slide, or lose tokens (:meth:`keep`). What is cached is detached; the
    tokens of the current call keep their gradients.

    Args:
        size: room for so many tokens and no more, allocated when the first arrive. All tensors then keep their shape,
            so that ``torch.compile`` compiles one decoding step for every length; free room counts as padding.
            Default: the cache grows.
        dtype: what keys and values are stored in: ``torch.int8``, with one float32 scale, max|x| / 127, per token and
            head, so that no entry is off by more than max|x| / 254; or a floating dtype. Tokens are rounded when they
            are stored: the call that brings them still computes with what it was given. Default: their own dtype.

    Raises:
        HeadwayError: on a size below 1, or another dtype.

    >>> cache = KVCache()
    >>> len(cache)
    0
    """

    def __init__(self, size: int | None = None, dtype: torch.dtype | None = None) -> None:
        known = isinstance(dtype, torch.dtype) and (dtype is torch.int8 or dtype.is_floating_point)
        if dtype is not None and not known:
            raise HeadwayError(f"expected dtype as torch.int8, a floating dtype or None, got {brief(dtype)}")
        self.size = None if size is None else as_count(size, "a cache's size of at least 1 token", 1)
        self.dtype = dtype
        self._store: dict[str, Tensor] = {}
        self._kinds: dict[str, torch.dtype] = {}  # what each came as
        self._length = 0  # tokens in the store; with a size all that there is room for, padding included
        self._filled: Tensor | None = None  # with a size, how many came in: an int would be compiled into a step
        # the newest token of each sequence when keep() dropped it: a text may go on behind it, or instead of it
        self._newest: dict[str, Tensor] | None = None

    def __len__(self) -> int:
        return self._length if self._filled is None else int(self._filled)

    @property
    def begun(self) -> bool:
        """Whether tokens have come in."""
        return bool(self._store)

    @property
    def nbytes(self) -> int:
        """Bytes of memory, free room included."""
        return sum(tensor.numel() * tensor.itemsize for tensor in self._store.values())

    def _get(self, name: str) -> Tensor:
        if name not in self._store:
            raise HeadwayError(f"expected a cache with tokens, got an empty one: it has no {name} yet")
        x = self._store[name][:, : self._length]
        scale = self._store.get(f"{name} scale")
        if scale is not None:
            x = x * scale[:, : self._length]
        return x.to(self._kinds.get(name, x.dtype))

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

        The first tokens are returned as they are. Later, without gradients, what is returned are views of the memory,
        valid until tokens are appended or dropped; with gradients, or where the memory has a dtype of its own, it is a
        copy, so that a backward pass may follow later calls.

        Raises:
            HeadwayError: when tensors do not fit each other or what is cached, or there is no room for them.
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
        first = not self.begun
        # later, without gradients, the memory itself is returned, unless it is of another dtype
        copied = not first and (torch.is_grad_enabled() or self.dtype is not None)
        old = {name: self._get(name) for name in new} if copied else {}
        at = self._write(new)
        if self._newest is not None:  # of a sequence that went on, the newest token is in memory again
            went_on, never = (new["pos"] >= 0).any(1), torch.iinfo(torch.int64).max
            self._newest["pos"] = self._newest["pos"].masked_fill(went_on, never)
            self._newest["order"] = self._newest["order"].masked_fill(went_on, -1)
        if first:
            return Tokens(k, v, pos, marks)
        start = None if isinstance(at, slice) else at[:1]
        if not copied:
            return Tokens(self.k, self.v, self.pos, self.marks, start)
        whole = {
            name: torch.cat((old[name], tensor), 1) if isinstance(at, slice) else old[name].index_copy(1, at, tensor)
            for name, tensor in new.items()
        }
        held = whole["k"].transpose(1, 2), whole["v"].transpose(1, 2), whole["pos"], whole.get("marks")
        return Tokens(*held, start)

    def _write(self, new: dict[str, Tensor]) -> slice | Int[Tensor, " tokens"]:
        """Store tokens, and say where."""
        used, tokens = self._length, new["pos"].shape[1]
        if not self.begun:
            self._kinds = {name: tensor.dtype for name, tensor in new.items()}
        at: slice | Tensor
        if self.size is None:
            at, self._length = slice(used, used + tokens), used + tokens
        else:
            at, self._length = self._free(tokens, new["pos"].device), self.size
        for name, tensor in new.items():
            for part, x in _stored(name, tensor.detach(), self.dtype).items():
                old = self._store.get(part)
                if old is None or _frozen(old) or self._length > old.shape[1]:
                    room = self._length if self.size is not None else max(self._length, 2 * used)
                    self._store[part] = _room(name, x, room)
                    if old is not None:
                        self._store[part][:, :used] = old[:, :used]
                self._store[part][:, at] = x
        return at

    def _free(self, tokens: int, device: torch.device) -> Int[Tensor, " tokens"]:
        """The next free places of a cache with a size."""
        assert self.size is not None
        filled = torch.zeros((), dtype=torch.int64, device=device) if self._filled is None else self._filled
        expected = f"expected at most {self.size} tokens, the size of the cache"
        if not readable(filled):
            torch._assert_async(filled + tokens <= self.size, f"{expected}, got more")
        elif int(filled) + tokens > self.size:
            raise HeadwayError(f"{expected}, got {int(filled) + tokens}: make it larger, or keep() fewer")
        self._filled = filled + tokens
        return filled + torch.arange(tokens, device=device)

    def writable(self) -> tuple[Tensor, Tensor, Tensor, int | Tensor] | None:
        """Keys (B, R, H_kv, D), values (B, R, H_kv, D_v) and positions (B, R) as they are stored, free room included,
        and how many tokens they hold, with a size as the tensor that counts them; None where there is no room for
        another, or what is stored differs from what came: no token yet, marks, another dtype, or dropped tokens.
        """
        store = self._store
        if len(store) != 3 or self.dtype is not None or self._newest is not None:
            return None
        k, used = store["k"], self._filled
        if used is None and self._length >= k.shape[1]:
            return None
        return k, store["v"], store["pos"], self._length if used is None else used

    def written(self) -> None:
        """Count one more token, which was written behind the others; not with a size, whose tensor counts it."""
        if self._filled is None:
            self._length += 1

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
        if len(kept) == len(self):
            return
        self._store["order"] = self.order
        last = self._last()
        if self._newest is None:
            self._newest = last
        else:  # of what was dropped at two times, the later in the text
            older = last["order"] < self._newest["order"]
            self._newest = {n: torch.where(_like(older, t), self._newest[n], t) for n, t in last.items()}
        held = {name: _selected(tensor, 1, kept) for name, tensor in self._store.items()}
        if self._filled is None:
            self._store, self._length = held, len(kept)
            return
        for name, tensor in held.items():
            room = _room(name, tensor, self._length)
            room[:, : len(kept)] = tensor
            self._store[name] = room
        self._filled = torch.full_like(self._filled, len(kept))

    def crop(self, tokens: int) -> None:
        """Keep the oldest ``tokens`` in memory and forget the others, as if they had never come: a text rolled back.

        Raises:
            HeadwayError: on a number below 0 or above the tokens there are; when some were dropped before.
        """
        tokens = as_count(tokens, f"a number of tokens from 0 to {len(self)}")
        if tokens > len(self):
            raise HeadwayError(f"expected a number of tokens from 0 to {len(self)}, got {tokens}")
        if "order" in self._store:
            raise HeadwayError("expected a cache that holds all its tokens to be cropped, got one after keep()")
        if not tokens:
            self._store, self._length, self._filled = {}, 0, None
        elif self._filled is None:
            self._length = tokens
        else:
            pos = self._store["pos"]
            self._store["pos"] = pos.masked_fill(torch.arange(pos.shape[1], device=pos.device) >= tokens, -1)
            self._filled = torch.full_like(self._filled, tokens)

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
        self._store = {name: _selected(tensor, 0, chosen) for name, tensor in held.items()}
        if self._newest is not None:
            self._newest = {name: tensor.index_select(0, chosen) for name, tensor in self._newest.items()}

    def _indices(self, index: Tensor | Sequence[int]) -> Int[Tensor, " kept"]:
        """Indices of the tokens to keep, ascending."""
        expected = f"expected the indices to keep as whole numbers, or a boolean mask over {len(self)} tokens"
        try:
            given = index if isinstance(index, Tensor) else torch.tensor(list(index))
        except (TypeError, ValueError, RuntimeError):
            raise HeadwayError(f"{expected}, got {index!r:.60}") from None
        if given.ndim != 1:
            raise HeadwayError(f"{expected}, in one dimension, got shape {tuple(given.shape)}")
        if given.dtype is torch.bool:
            if len(given) != len(self):
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
        if given.numel() and (int(given[0]) < 0 or int(given[-1]) >= len(self)):
            wrong = int(given[0]) if int(given[0]) < 0 else int(given[-1])
            raise HeadwayError(f"expected cache indices from 0 to {len(self) - 1}, got {wrong}")
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
        held = {name: self._store[name] for name in self._kinds if name != "order"}
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
            kind, device = self._kinds[name], held[name].device
            if name != "pos" and (tensor.dtype, tensor.device) != (kind, device):
                raise HeadwayError(
                    f"expected {name} of {kind} on {device}, as in the cache, got "
                    f"{tensor.dtype} on {tensor.device}: use a new cache"
                )


def _room(name: str, like: Tensor, tokens: int) -> Tensor:
    """Memory for so many tokens (B, N, …), the tokens of a head (B, N, H, …) side by side, as attention reads them."""
    shape = (len(like), *like.shape[2:-1], tokens, *like.shape[-1:]) if like.ndim > 2 else (len(like), tokens)
    made = like.new_full(shape, -1 if name == "pos" else 0)
    return made.movedim(-2, 1) if like.ndim > 2 else made


def _selected(x: Tensor, dim: int, index: Int[Tensor, " chosen"]) -> Tensor:
    """Some sequences or tokens of what is stored, laid out as :func:`_room` does."""
    if x.ndim < 3:
        return x.index_select(dim, index)
    return x.movedim(1, -2).index_select(x.ndim - 2 if dim else 0, index).movedim(-2, 1)


def _frozen(x: Tensor) -> bool:
    """Whether a tensor was made in inference mode and cannot be written to outside of it."""
    return not torch.compiler.is_compiling() and x.is_inference() and not torch.is_inference_mode_enabled()


def _like(rows: Bool[Tensor, " batch"], x: Tensor) -> Tensor:
    """One truth value per sequence, to choose among tensors of the shape of x."""
    return rows.view(-1, *[1] * (x.ndim - 1))


def _stored(name: str, x: Tensor, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """What is kept of keys or values (B, N, H, D): as they are, of another dtype, or 8 bits and scales (B, N, H, 1)."""
    if dtype is None or name not in ("k", "v"):
        return {name: x}
    if dtype is not torch.int8:
        return {name: x.to(dtype)}
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    largest = wide.abs().amax(-1, keepdim=True) if x.shape[-1] else wide.new_zeros((*x.shape[:-1], 1))
    scale = (largest / 127).clamp(min=torch.finfo(wide.dtype).tiny)
    return {name: (wide / scale).round().to(torch.int8), f"{name} scale": scale}
