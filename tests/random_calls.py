"""Random calls of ``attend``, and what they give by a formula in float64 that shares no code with the package."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from headway import Causal, Dense, Documents, HeadwayError, Prefix, Window, attend
from headway.masks import And, Chunks, Or
from headway.terms import ByDistance, ByDistancePerKey, ByDistancePerQuery, Pairwise, PerKey, Scan, ValuesByDistance

EPS = {torch.float64: 2e-10, torch.float32: 4e-5, torch.bfloat16: 0.08}
"""How far a value may be off, of the largest there is; the laws of backends hold the exact rule."""
Rule = Callable[[], Tensor]


class RandomCall:
    """A call drawn from a seed, its masks and terms both as the package takes them and as tensors of all pairs."""

    def __init__(self, seed: int) -> None:
        self.dice, self.generator = random.Random(seed), torch.Generator().manual_seed(seed)
        dice = self.dice
        self.batch, self.kv_heads, self.groups = (
            dice.choice((1, 1, 2, 3)),
            dice.choice((1, 2, 3)),
            dice.choice((1, 1, 2, 3)),
        )
        self.heads = self.kv_heads * self.groups
        self.keys = dice.choice((1, 2, 3, 5, 9, 17, 33, 70))
        self.queries = self.keys if dice.random() < 0.6 else dice.randint(1, self.keys)
        self.dim = dice.choice((1, 3, 4, 8, 16))
        self.dim_v = self.dim if dice.random() < 0.7 else dice.choice((1, 2, 5, 16))
        self.dtype = dice.choice((torch.float64, torch.float64, torch.float64, torch.float32, torch.bfloat16))
        self.q_pos, self.k_pos, self.given_pos = self._positions()
        self.distance = self.k_pos[:, None, :] - self.q_pos[:, :, None]  # (B, Q, K)
        self.leaves: dict[str, Tensor] = {}
        self.rows: set[int] = set()
        for name, heads, tokens, width in (
            ("q", self.heads, self.queries, self.dim),
            ("k", self.kv_heads, self.keys, self.dim),
            ("v", self.kv_heads, self.keys, self.dim_v),
        ):
            self.leaves[name] = self._strided(self._randn(self.batch, heads, tokens, width).to(self.dtype))
        self.scale = dice.choice((None, None, 0.3, -0.5, 0.0, 1.0))
        self.normalise = "softmax" if dice.random() < 0.8 else dice.choice(("stickbreaking", "stickbreaking+remainder"))
        self.softcap = dice.choice((None, None, None, None, 0.7, 5.0))
        if self.normalise == "softmax" and dice.random() < 0.15:
            self.leaves["sinks"] = self._randn(self.heads)
        self.mask, self.sees = self._mask(2) if dice.random() < 0.8 else (None, None)
        self.kinds = [dice.choice(TERMS) for _ in range(dice.choice((0, 0, 1, 1, 2, 3)))]
        self.terms = [TERM_MAKERS[kind](self, number) for number, kind in enumerate(self.kinds)]

    # --- random calls -----------------------------------------------------------------------------------------------

    def _randn(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def _one_or(self, many: int) -> int:
        return self.dice.choice((1, many))

    def _strided(self, x: Tensor) -> Tensor:
        """The same values with other strides."""
        order = self.dice.choice(((0, 1, 2, 3), (0, 2, 1, 3), (0, 1, 3, 2), (3, 2, 1, 0)))
        back = [order.index(axis) for axis in range(4)]
        return x.permute(order).contiguous().permute(back)

    def _positions(self) -> tuple[Tensor, Tensor, bool]:
        kind = self.dice.choice(("none", "none", "offset", "shuffled", "left", "right", "far", "packed", "holes"))
        rows = self._one_or(self.batch)
        pos = torch.arange(self.keys).expand(rows, -1).clone()
        if kind == "offset":
            pos += self.dice.choice((1, 1000, 10**6))
        if kind == "shuffled":
            pos = torch.stack([torch.randperm(self.keys, generator=self.generator) for _ in range(rows)])
        if kind in ("left", "right"):
            for row in pos:
                pad = self.dice.randint(0, self.keys)
                row.copy_((torch.arange(self.keys) - pad).clamp(min=-1) if kind == "left" else torch.arange(self.keys))
                if kind == "right" and pad:
                    row[-pad:] = -1
        if kind in ("far", "holes"):
            steps = torch.randint(1, 5 if kind == "holes" else 20_000, (rows, self.keys), generator=self.generator)
            pos = steps.cumsum(-1)
        if kind == "packed":
            pos %= self.dice.randint(1, self.keys)
        if self.queries != self.keys and kind == "none":
            kind = "newest"
        q_pos = pos[:, self.keys - self.queries :]
        return q_pos.expand(self.batch, -1), pos.expand(self.batch, -1), kind != "none"

    def _mask(self, depth: int) -> tuple[Any, Tensor]:
        """A mask, and whom it lets see whom as a tensor that broadcasts to (B, H, Q, K)."""
        dice, n = self.dice, self.distance[:, None]
        kinds = ["causal", "causal", "window", "prefix", "documents", "chunks", "dense", "plain"]
        kind = dice.choice(kinds + ["and", "and", "or"] * (depth > 0))
        if kind == "causal":
            return Causal(), n <= 0
        if kind == "window":
            left, right = dice.choice((0, 1, 3, 20, 10**5)), dice.choice((0, 0, 2, 50))
            return Window(left, right), (n >= -left) & (n <= right)
        if kind == "prefix":
            lengths = [dice.randint(0, self.keys) for _ in range(self._one_or(self.batch))]
            given = lengths[0] if len(lengths) == 1 else torch.tensor(lengths)
            return Prefix(given), (self.k_pos < torch.tensor(lengths)[:, None])[:, None, None, :].expand(
                -1, -1, self.queries, -1
            )
        if kind == "documents":
            ids = torch.randint(3, (self._one_or(self.batch), self.keys), generator=self.generator)
            own = ids[:, self.keys - self.queries :]
            return Documents(own, ids), (own[:, :, None] == ids[:, None])[:, None]
        if kind == "chunks":
            size = dice.choice((1, 2, 7, 100))
            return Chunks(size), (
                self.q_pos[..., None].div(size, rounding_mode="floor")
                == self.k_pos[:, None].div(size, rounding_mode="floor")
            )[:, None]
        if kind in ("dense", "plain"):
            shape = (self._one_or(self.batch), self._one_or(self.heads)) if kind == "dense" else ()
            seen = torch.rand(*shape, self.queries, self.keys, generator=self.generator) > dice.choice((0.2, 0.7))
            ambiguous = kind == "plain" and self.batch == self.queries > 1
            return Dense(seen[None, None] if ambiguous else seen), seen if kind == "dense" else seen[None, None]
        (first, one), (second, other) = self._mask(depth - 1), self._mask(depth - 1)
        if isinstance(first, Dense) and not isinstance(second, Dense) and dice.random() < 0.5:
            first = first.visible  # a tensor that meets a mask
        return (first & second, one & other) if kind == "and" else (first | second, one | other)

    # --- the call and the formula -----------------------------------------------------------------------------------

    def run(self, backend: str) -> dict[str, Tensor]:
        """What attend gives: the output, and the gradients of Σ w·out by everything drawn."""
        leaves = {
            name: x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
            for name, x in self.leaves.items()
        }
        pos = {"q_pos": self.q_pos, "k_pos": self.k_pos} if self.given_pos else {}
        out = attend(
            *(leaves[name] for name in "qkv"),
            mask=self.mask,
            terms=[made(leaves) for made, _ in self.terms],
            scale=self.scale,
            normalise=self.normalise,
            softcap=self.softcap,
            sinks=leaves.get("sinks"),
            backend=backend,
            **pos,
        )
        return self._with_gradients(out, leaves)

    def _with_gradients(self, out: Tensor, leaves: dict[str, Tensor]) -> dict[str, Tensor]:
        weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
        loss = (out * weight.to(out.dtype)).sum()
        found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
        return {"out": out.detach()} | {f"d{name}": g for name, g in zip(leaves, found, strict=True)}

    def expected(self) -> dict[str, Tensor]:
        """The formula: all pairs, float64, no code of the package."""
        leaves = {name: x.detach().double().requires_grad_() for name, x in self.leaves.items()}
        q, k, v = (
            leaves["q"],
            leaves["k"].repeat_interleave(self.groups, 1),
            leaves["v"].repeat_interleave(self.groups, 1),
        )
        content = torch.einsum("bhid,bhjd->bhij", q, k) * (self.dim**-0.5 if self.scale is None else self.scale)
        if self.softcap is not None:
            content = self.softcap * torch.tanh(content / self.softcap)
        seen = ((self.q_pos[:, :, None] >= 0) & (self.k_pos[:, None] >= 0))[:, None].expand_as(content)
        seen = seen if self.sees is None else seen & self.sees
        before = seen & (self.distance[:, None] < 0)
        own = (
            seen
            & (self.distance[:, None] <= 0)
            & (torch.arange(self.keys) == torch.arange(self.keys)[self.keys - self.queries :, None])
        )
        if self.normalise != "softmax":
            seen = before if self.normalise == "stickbreaking" else seen & (self.distance[:, None] <= 0)
        score, added = content, []
        for _, formula in self.terms:
            bias = formula(leaves, content, seen)
            if bias.ndim == 5:
                added.append(bias)
            else:
                score = score + bias
        if self.normalise == "softmax":
            weight = score.masked_fill(~seen, -1e300)
            top = weight.amax(-1, keepdim=True)
            sink = leaves["sinks"][:, None, None] if "sinks" in leaves else None
            top = (top if sink is None else torch.maximum(top, sink)).detach()
            weight = (weight - top).exp() * seen
            total = weight.sum(-1, keepdim=True) + (0.0 if sink is None else (sink - top).exp())
            weight = weight / torch.where(seen.any(-1, keepdim=True), total, 1.0)
        else:
            share, columns, left = score.masked_fill(~before, 0.0).sigmoid() * before, [], 1.0
            for j in reversed(range(self.keys)):  # the stick, from the last key in memory on
                columns.append(share[..., j] * left)
                left = left * (1 - share[..., j])
            weight = torch.stack(columns[::-1], -1)
            if self.normalise.endswith("remainder"):
                weight = weight + left[..., None] * own
        out = torch.einsum("bhij,bhjd->bhid", weight, v)
        for vectors in added:
            out = out + (weight[..., None] * vectors).sum(-2)
        return self._with_gradients(out, leaves)

    # --- what backends accept ---------------------------------------------------------------------------------------

    def native_accepts(self) -> bool:
        """Whether native is to take it: tables, images of one width, a Scan or a stick alone, one boolean tensor."""
        tables = {"ByDistance", "ByDistancePerQuery", "ByDistancePerKey", "ValuesByDistance"}
        plain = {"PerKey", "in rows", *tables}
        if self.normalise != "softmax":
            plain = set()
        elif self.kinds == ["Scan"]:
            plain = {"Scan"}
        if plain <= {"Scan"} and (self.softcap is not None or "sinks" in self.leaves):
            return False
        if self.kinds.count("ValuesByDistance") > 1:
            return False
        if not set(self.kinds) <= plain:
            return False
        if "in rows" in self.kinds and (set(self.kinds) - {"PerKey", "in rows"} or len(self.rows) > 1):
            return False
        return sum(type(part) is Dense for part in _parts(self.mask)) <= 1

    def few_accept(self) -> bool:
        """Whether torch's fused attention is to take it because it has few queries."""
        fused = self.normalise == "softmax" and self.softcap is None and "sinks" not in self.leaves
        return fused and self.queries <= 16 and not set(self.kinds) & {"ValuesByDistance", "Scan"}

    def __str__(self) -> str:
        shape = f"{self.batch}x{self.heads}/{self.kv_heads}x{self.queries}of{self.keys}x{self.dim},{self.dim_v}"
        return (
            f"{shape} {self.dtype} {self.normalise} mask {self.mask} terms {self.kinds} softcap {self.softcap} scale "
            f"{self.scale} sinks {'sinks' in self.leaves} positions {self.q_pos.tolist()} {self.k_pos.tolist()}"
        )[:1500]


def _parts(mask: Any) -> list[Any]:
    if mask is None:
        return []
    return [*_parts(mask.first), *_parts(mask.second)] if isinstance(mask, And | Or) else [mask]


def _entry(call: RandomCall, left: int, width: int, row: int | None = None) -> tuple[Tensor, Tensor]:
    """The entry of each pair, and how far beyond the ends it is."""
    n = call.distance
    if row is not None:  # an offset (Δy, Δx) in rows of an image, with gaps so that each has its own number
        q, k = (
            torch.where(p < 0, p, p + p.div(row, rounding_mode="floor") * (row - 1)) for p in (call.q_pos, call.k_pos)
        )
        n = k[:, None] - q[:, :, None]
    entry = (n + left).clamp(0, width - 1)
    return entry, n + left - entry


def _per_key(call: RandomCall, number: int) -> Any:
    name = f"per_key{number}"
    call.leaves[name] = call._randn(call._one_or(call.batch), call._one_or(call.heads), call.keys)
    return lambda x: PerKey(x[name]), lambda x, *_: x[name][:, :, None]


def _by_distance(call: RandomCall, number: int, rows: bool = False) -> Any:
    name, width = f"by_distance{number}", call.dice.choice((1, 2, 5, 30))
    left, tailed = call.dice.randint(0, width - 1), call.dice.random() < 0.5
    row = call.dice.choice((1, 3, 8)) if rows else None
    if row is not None:
        call.rows.add(row)
    call.leaves[name] = call._randn(call._one_or(call.heads), width)
    if tailed:
        call.leaves[f"{name}.tails"] = call._randn(call._one_or(call.heads), 2) / 1e3

    def formula(x: dict[str, Tensor], *_: Any) -> Tensor:
        entry, beyond = _entry(call, left, width, row)
        bias = x[name][:, entry].transpose(0, 1)
        if tailed:
            past, future = x[f"{name}.tails"].T[..., None, None]
            bias = bias + past * (-beyond).clamp(min=0)[:, None] + future * beyond.clamp(min=0)[:, None]
        return bias

    return lambda x: ByDistance(x[name], left, x.get(f"{name}.tails"), row), formula


def _per_query(call: RandomCall, number: int) -> Any:
    name, width = f"per_query{number}", call.dice.choice((1, 2, 5, 30))
    left = call.dice.randint(0, width - 1)
    call.leaves[name] = call._randn(call._one_or(call.batch), call._one_or(call.heads), call.queries, width)

    def formula(x: dict[str, Tensor], content: Tensor, _: Tensor) -> Tensor:
        entry = _entry(call, left, width)[0][:, None].expand(content.shape)
        return x[name].expand(*content.shape[:3], width).gather(-1, entry)

    return lambda x: ByDistancePerQuery(x[name], left), formula


def _by_key(call: RandomCall, number: int) -> Any:
    name, width = f"by_key{number}", call.dice.choice((1, 2, 5, 30))
    left = call.dice.randint(0, width - 1)
    call.leaves[name] = call._randn(call._one_or(call.batch), call._one_or(call.heads), call.keys, width)

    def formula(x: dict[str, Tensor], content: Tensor, _: Tensor) -> Tensor:
        entry = _entry(call, left, width)[0][:, None].expand(content.shape)
        table = x[name][:, :, None].expand(*content.shape, width)
        return table.gather(-1, entry[..., None])[..., 0]

    return lambda x: ByDistancePerKey(x[name], left), formula


def _pairwise(call: RandomCall, number: int) -> Any:
    name = f"pairwise{number}"
    call.leaves[name] = call._randn(call._one_or(call.heads))

    def formula(x: dict[str, Tensor], *_: Any) -> Tensor:
        return x[name][:, None, None] * (call.distance[:, None].double() / 50).sin()

    def fn(x: dict[str, Tensor]) -> Any:
        return lambda q, k: x[name][:, None, None] * ((k[:, None] - q[..., None])[:, None].double() / 50).sin()

    return lambda x: Pairwise(fn(x)), formula


def _values(call: RandomCall, number: int) -> Any:
    name, width = f"values{number}", call.dice.choice((1, 2, 5))
    left = call.dice.randint(0, width - 1)
    call.leaves[name] = call._randn(call._one_or(call.heads), width, call.dim_v)

    def formula(x: dict[str, Tensor], *_: Any) -> Tensor:
        return x[name][:, _entry(call, left, width)[0]].transpose(0, 1)  # (B, H or 1, Q, K, D)

    return lambda x: ValuesByDistance(x[name], left), formula


def _scan(call: RandomCall, number: int) -> Any:
    name, inclusive = f"scan{number}", call.dice.random() < 0.5
    if gated := call.dice.random() < 0.5:
        call.leaves[f"{name}.left"] = call._randn(call.batch, call.heads, call.queries, 3)
        call.leaves[f"{name}.right"] = call._randn(call.batch, call.kv_heads, call.keys, 3)

    def formula(x: dict[str, Tensor], content: Tensor, seen: Tensor) -> Tensor:
        gate = content.sigmoid()
        if gated:
            right = x[f"{name}.right"].repeat_interleave(call.groups, 1)
            gate = torch.nn.functional.logsigmoid(torch.einsum("bhid,bhjd->bhij", x[f"{name}.left"], right))
        gate, total, columns = gate * seen, torch.zeros(()).double(), []
        for j in reversed(range(call.keys)):
            columns.append(total + gate[..., j] if inclusive else total + 0 * gate[..., j])
            total = total + gate[..., j]
        return torch.stack(columns[::-1], -1)

    return lambda x: Scan(inclusive, left=x.get(f"{name}.left"), right=x.get(f"{name}.right")), formula


TERM_MAKERS: dict[str, Any] = {
    "PerKey": _per_key,
    "ByDistance": _by_distance,
    "in rows": lambda call, number: _by_distance(call, number, rows=True),
    "ByDistancePerQuery": _per_query,
    "ByDistancePerKey": _by_key,
    "Pairwise": _pairwise,
    "ValuesByDistance": _values,
    "Scan": _scan,
}
TERMS = (*TERM_MAKERS, "PerKey", "ByDistance")


def check_call(seed: int) -> None:
    """Run one random call on every backend of a CPU; refusals must be those expected.

    Raises:
        AssertionError: naming the seed and the call.
    """
    call = RandomCall(seed)
    truth = call.expected()
    accepted = {"auto": True, "reference": True, "tiled": True, "native": call.native_accepts()}
    if call.few_accept():
        accepted["sdpa"] = True
    for backend, accepts in accepted.items():
        told = f"seed {seed}, {backend}: {call}"
        got, said = {}, ""
        try:
            got = call.run(backend)
        except HeadwayError as error:
            said = str(error)
        assert bool(got) == accepts, f"{told}: {said or 'not refused'}"
        if said:
            assert said.startswith(f"backend '{backend}' cannot run this call: "), f"{told}: {said}"
            continue
        largest = max(1.0, *(truth[name].abs().max().item() for name in truth if truth[name].numel()))
        for name, value in truth.items():
            assert got[name].isfinite().all(), f"{told}: {name} is not finite"
            error = (got[name].double() - value).abs().max().item()
            tolerance = (1e-5 if backend == "sdpa" and call.dtype is torch.float32 else 0.0) + EPS[call.dtype]
            most = tolerance * largest
            if name.endswith(".tails"):  # what a pair adds to it is rounded as q, k and v are, then times its distance
                most += call.distance.double().norm().item() * torch.finfo(call.dtype).eps
            assert error <= most, f"{told}: {name} errs by {error:.3g}, at most {most:.3g}"
        if backend == "auto":
            again = call.run(backend)
            assert all(torch.equal(got[name], again[name]) for name in got), f"{told}: two runs differ"
