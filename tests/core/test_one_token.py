"""Steps of decoding in one call of C++: the bits of the general way, taken wherever they may be, and only there."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from headway import Attention, HeadwayError, KVCache, one_token
from headway.masks import Causal, Mask, Window
from headway.positions import T5, Position, Rotary
from headway.positions.base import TermInputs
from headway.positions.steady import is_steady
from headway.terms import AnyTerm

DIM, HEADS, TOKENS, FIRST = 32, 4, 13, 3
METHODS = ("none", "rotary", "rotary(fraction=0.5, pairing='interleaved')", "yarn", "t5", "t5(bidirectional=True)")
METHODS += ("alibi", "alibi(scaled=True)", "kerple", "sandwich", "shaw", "shaw(values=True)", "music")
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"kv_heads": 2, "qk_norm": True},
    {"sinks": True, "softcap": 20.0, "scale": 1.0, "mask": Window(4, 0)},
)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """For each call with a cache, whether it was such a step."""
    found: list[bool] = []
    original = one_token.step

    def look(*call: Any) -> Tensor | None:
        heads = original(*call)
        found.append(heads is not None)
        return heads

    monkeypatch.setattr(one_token, "step", look)
    return found


def layer(spec: str | Position, dtype: torch.dtype = torch.float32, **options: Any) -> Attention:
    torch.manual_seed(0)
    made = Attention(DIM, HEADS, position=spec, **{"mask": Causal(), **options}).to(dtype).eval()
    for parameter in made.position.parameters():
        nn.init.normal_(parameter, std=0.3)
    return made


def tokens(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Two texts, the second padded on the left."""
    pos = torch.arange(TOKENS) - torch.tensor([[0], [2]])
    return torch.randn(2, TOKENS, DIM, dtype=dtype, generator=torch.Generator().manual_seed(1)), pos.clamp(min=-1)


@torch.no_grad()
def decoded(attention: Attention, cache: KVCache, x: Tensor, pos: Tensor) -> Tensor:
    """Some tokens at once, then one by one, at positions that are given and at those that follow."""
    found = [attention(x[:, :FIRST], pos=pos[:, :FIRST], cache=cache)]
    for i in range(FIRST, x.shape[1]):
        found.append(attention(x[:, i : i + 1], pos=pos[:, i : i + 1] if i % 2 else None, cache=cache))
    return torch.cat(found, 1)


def general(attention: Attention, cache: KVCache, x: Tensor, pos: Tensor) -> Tensor:
    """The same without such steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(one_token, "step", lambda *_: None)
        return decoded(attention, cache, x, pos)


@pytest.mark.parametrize("options", OPTIONS, ids=("plain", "grouped", "bounded"))
@pytest.mark.parametrize("spec", METHODS)
def test_steps_give_the_same_bits(spec: str, options: dict[str, Any], taken: list[bool]) -> None:
    for dtype in (torch.float32, torch.float64):
        attention, (x, pos) = layer(spec, dtype, **options), tokens(dtype)
        for size in (None, TOKENS):
            taken.clear()
            found = decoded(attention, KVCache(size), x, pos)
            # in a cache that grows, those that need more memory go the general way
            assert sum(taken) >= TOKENS - FIRST - (3 if size is None else 0)
            assert torch.equal(found, general(attention, KVCache(size), x, pos))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_steps_in_half_precision(dtype: torch.dtype, taken: list[bool]) -> None:
    attention, (x, pos) = layer("rotary", dtype), tokens(dtype)
    found = decoded(attention, KVCache(), x, pos)
    assert any(taken)
    assert torch.equal(found, general(attention, KVCache(), x, pos))


def project_by(kind: type[nn.Linear], attention: Attention, names: str = "qkv") -> None:
    """Put projections of another kind, with the same weights, in place of an attention's own."""
    for name in names:
        own = getattr(attention, name)
        setattr(attention, name, kind(DIM, own.out_features, bias=False))
        getattr(attention, name).load_state_dict(own.state_dict())


class Wide(nn.Linear):
    """A projection that autocast does not make narrower."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.float())


@pytest.mark.parametrize("wide", [False, True])
def test_steps_under_autocast(wide: bool, taken: list[bool]) -> None:
    attention, (x, pos) = layer("rotary", qk_norm=True), tokens()
    if wide:
        project_by(Wide, attention)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = decoded(attention, KVCache(), x, pos)
        assert any(taken)
        assert torch.equal(found, general(attention, KVCache(), x, pos))


class Spaced(nn.Linear):
    """A projection whose entries do not lie side by side."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack((super().forward(x),) * 2, -1)[..., 0]


def test_projections_may_return_anything(taken: list[bool]) -> None:
    attention, (x, pos) = layer("rotary"), tokens()
    project_by(Spaced, attention)
    found = decoded(attention, KVCache(), x, pos)
    assert any(taken)
    assert torch.equal(found, general(attention, KVCache(), x, pos))


class Apart(nn.Linear):
    """A projection whose sequences lie apart, in every other call."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        y = super().forward(x)
        return torch.cat((y, y), -1)[..., : y.shape[-1]] if self.calls % 2 else y


@pytest.mark.parametrize("name", "qkv")
def test_tokens_may_lie_anew_in_every_step(name: str, taken: list[bool]) -> None:
    x, pos = tokens()
    found = []
    for how in (decoded, general):
        attention = layer("rotary")
        project_by(Apart, attention, name)
        found.append(how(attention, KVCache(TOKENS), x, pos))
    assert sum(taken) >= TOKENS - FIRST
    assert torch.equal(*found)


def test_dropout_is_drawn_the_general_way(taken: list[bool]) -> None:
    decoded(layer("rotary", dropout=0.5).train(), KVCache(), *tokens())
    assert not any(taken)


def test_unsteady_methods_take_the_general_way(taken: list[bool]) -> None:
    for spec in ("fire", "fox", "dynamicntk", "xpos", "cope", "stickbreaking", "transformerxl", "longrope"):
        decoded(layer(spec), KVCache(), *tokens())
    assert taken
    assert not any(taken)


def test_a_subclass_that_acts_in_its_own_way_is_not_steady() -> None:
    class Own(Rotary):
        def rotate(self, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor) -> tuple[Tensor, Tensor]:
            return k_pos[:, None, :, None] * q, q_pos[:, None, :, None] * k

    class Added(Position):
        def terms(self, look: TermInputs) -> tuple[AnyTerm, ...]:
            return ()

    class Renamed(T5):
        """Acts as its parent does."""

    assert [is_steady(method) for method in (Own(), Added(), Renamed())] == [False, False, True]


def changed_parameter(attention: Attention) -> None:
    attention.position.get_parameter("weight").add_(1.0)


def another_parameter(attention: Attention) -> None:
    attention.position.weight = nn.Parameter(torch.ones(HEADS, 32))


def another_mask(attention: Attention) -> None:
    attention.mask = Window(2, 0)


def another_scale(attention: Attention) -> None:
    attention.scale = 3.0


def another_method(attention: Attention) -> None:
    attention.position = Rotary().attach(attention.shape)


@pytest.mark.parametrize(
    "change",
    [changed_parameter, another_parameter, another_mask, another_scale, another_method],
    ids=lambda f: f.__name__,
)
def test_what_changes_between_steps_is_seen(change: Callable[[Attention], None], taken: list[bool]) -> None:
    x, pos = tokens()
    found = []
    for way in (decoded, general):
        attention, cache = layer("t5"), KVCache(TOKENS + 1)
        way(attention, cache, x[:, :-1], pos[:, :-1])
        with torch.no_grad():
            before = attention(x[:, -1:], cache=copy.deepcopy(cache))
            change(attention)
            found.append(attention(x[:, -1:], cache=cache))
        assert not torch.equal(before, found[-1])
    assert taken[-1]
    assert torch.equal(*found)


def test_nan_reaches_only_what_sees_it(taken: list[bool]) -> None:
    x, pos = tokens()
    x[0, 5], x[1, 4, 0] = torch.nan, torch.inf
    attention = layer("rotary", mask=Window(2, 0))
    found = decoded(attention, KVCache(TOKENS), x, pos)
    assert all(taken[1:])
    assert torch.equal(found.isnan(), general(attention, KVCache(TOKENS), x, pos).isnan())
    assert found[0, 8:].isfinite().all()
    assert found[0, 5:8].isnan().all()


def test_positions_that_jump(taken: list[bool]) -> None:
    """Farther than the prepared tables reach, or back before cached ones."""
    for spec, at in (("rotary", 10**6), ("rotary", 1), ("sandwich", 10**6), ("sandwich", 1)):
        attention, (x, pos) = layer(spec, mask=None), tokens()
        pos[:, 7] = at
        found = decoded(attention, KVCache(), x, pos)
        assert torch.equal(found, general(attention, KVCache(), x, pos))
    assert any(taken)


@pytest.mark.parametrize("watch", ["hook", "grad", "mask", "compile"])
def test_what_is_watched_goes_the_general_way(watch: str, taken: list[bool]) -> None:
    attention, (x, pos), cache = layer("rotary"), tokens(), KVCache()
    decoded(attention, cache, x, pos)
    last, given = x[:, -1:], {}
    seen = []
    if watch == "hook":
        attention.core.register_forward_hook(lambda *_: seen.append(1))
    if watch == "mask":
        given = {"mask": Causal()}
    taken.clear()
    with torch.set_grad_enabled(watch == "grad"):
        (torch.compile(attention, backend="eager") if watch == "compile" else attention)(last, cache=cache, **given)
    assert not any(taken)
    assert bool(seen) == (watch == "hook")


def test_who_watches_operators_sees_each_once() -> None:
    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen[-1].append(str(op))
            return op(*args, **(kwargs or {}))

    (x, pos), seen = tokens(), list[list[str]]()
    for way in (decoded, general):
        attention, cache = layer("rotary"), KVCache(TOKENS + 1)
        way(attention, cache, x, pos)
        seen.append([])
        with torch.no_grad(), Watch(), pytest.MonkeyPatch.context() as patch:
            if way is general:
                patch.setattr(one_token, "step", lambda *_: None)
            attention(x[:, -1:], cache=cache)
    products, expected = ([op for op in ops if "mm" in op or "headway" in op] for ops in seen)
    assert products == expected
    assert len(expected) > 4


def test_caches_that_were_cut_copied_or_filled(taken: list[bool]) -> None:
    attention, (x, pos) = layer("t5"), tokens()
    cache = KVCache(TOKENS)
    whole = decoded(attention, cache, x, pos)
    with torch.no_grad(), pytest.raises(HeadwayError, match="at most 13 tokens"):
        attention(x[:, :1], cache=cache)
    cache.crop(TOKENS - 2)
    for other in (copy.deepcopy(cache), pickle.loads(pickle.dumps(cache)), cache):
        taken.clear()
        with torch.no_grad():
            last = [attention(x[:, i : i + 1], cache=other) for i in (TOKENS - 2, TOKENS - 1)]
        assert all(taken)
        assert torch.equal(torch.cat(last, 1), whole[:, -2:])
    cache.crop(TOKENS - 2)
    cache.keep(range(1, TOKENS - 2))
    taken.clear()
    with torch.no_grad():
        attention(x[:, -1:], cache=cache)
    assert not any(taken)


def test_without_a_mask(taken: list[bool]) -> None:
    mask: Mask | None = None
    attention, (x, pos) = layer("t5(bidirectional=True)", mask=mask), tokens()
    found = decoded(attention, KVCache(), x, pos)
    assert any(taken)
    assert torch.equal(found, general(attention, KVCache(), x, pos))
