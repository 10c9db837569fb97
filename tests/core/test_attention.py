"""Attention: the heads and their matrices, cross attention, caches, and error messages."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from common import BOTH, attention, close, every_method, refusal

from headway import Attention, Causal, Documents, HeadShape, KVCache, Learned, Rotary, Sinusoidal, attend
from headway.backends import BACKENDS
from headway.positions import parse


def inputs_of_core(module: Attention, *args: Any, **given: Any) -> tuple:
    """What a hook on the core sees."""
    seen: list[tuple] = []
    handle = module.core.register_forward_pre_hook(lambda _, args: seen.append(args))
    module(*args, **given)
    handle.remove()
    return seen[0]


# --- heads --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("heads", "kv_heads"), [(6, 6), (6, 2), (6, 1)])
def test_each_head_has_its_matrices(heads: int, kv_heads: int) -> None:
    module, x = attention("none", heads, kv_heads), torch.randn(2, 5, 48).double()
    q, k, v, *_ = inputs_of_core(module, x)
    out = attend(q, k, v)
    total = torch.zeros(2, 5, 48).double()
    for h in range(heads):
        w = module.head(h)
        assert (w.q.shape, w.k.shape, w.v.shape, w.o.shape) == ((48, 8), (48, 8), (48, 8), (8, 48))
        group = h // (heads // kv_heads)
        close(x @ w.q, q[:, h])
        close(x @ w.k, k[:, group])
        close(x @ w.v, v[:, group])
        total = total + out[:, h] @ w.o
    close(module(x), total)


def test_a_head_s_matrices_are_views() -> None:
    module = attention("none")
    with torch.no_grad():
        module.head(2).q.fill_(7)
    assert (module.q.weight[16:24] == 7).all()
    assert not (module.q.weight[:16] == 7).any()


def test_gradients_of_a_head() -> None:
    module = attention("none")
    with refusal("expected gradients, got none: call backward() on a loss first"):
        module.head(0, grad=True)
    module(torch.randn(2, 5, 48).double()).square().sum().backward()
    assert torch.equal(module.head(3, grad=True).q, module.q.weight.grad[24:32].T)
    assert torch.equal(module.head(3, grad=True).o, module.o.weight.grad[:, 24:32].T)


@pytest.mark.parametrize("index", [-1, 6])
def test_heads_that_are_not_there(index: int) -> None:
    with refusal(f"expected a head from 0 to 5, got {index}"):
        attention("none").head(index)


def test_width_of_a_head_is_free() -> None:
    module = Attention(30, 4, head_dim=10, kv_heads=2, position="rotary", bias=True, out_bias=False)
    assert module(torch.randn(2, 5, 30)).shape == (2, 5, 30)
    assert (module.q.out_features, module.k.out_features, module.o.in_features) == (40, 20, 40)
    assert module.q.bias is not None
    assert module.o.bias is None


# --- shapes and places --------------------------------------------------------------------------------------------


@every_method("no batch", variants=False)
def test_without_a_batch(spec: str) -> None:
    module, x = attention(spec, mask=Causal()), torch.randn(7, 48).double()
    close(module(x), module(x[None])[0])
    close(module(x, pos=torch.arange(7)), module(x))
    cache = KVCache()
    close(torch.cat([module(x[:3], cache=cache), module(x[3:], cache=cache)]), module(x))


@every_method("empty", variants=False)
@pytest.mark.parametrize("tokens", [0, 1])
def test_empty_and_single(spec: str, tokens: int) -> None:
    module = attention(spec, mask=Causal())
    x = torch.randn(2, tokens, 48, dtype=torch.float64, requires_grad=True)
    out = module(x)
    assert out.shape == x.shape
    out.sum().backward()
    assert module(x[:0]).shape == (0, tokens, 48)
    cache = KVCache()
    assert module(x[:, :0], cache=cache).shape == (2, 0, 48)
    close(module(x, cache=cache), out)


@every_method("narrow context")
def test_cross_attention(spec: str) -> None:
    module = attention(spec, context_dim=20)
    x, context = torch.randn(2, 5, 48).double(), torch.randn(2, 9, 20).double()
    whole = module(x, context=context)
    assert whole.shape == (2, 5, 48)
    close(module(x[0], context=context[0]), whole[0])
    close(module(x, context=context, pos=torch.arange(5), context_pos=torch.arange(9)), whole)


@every_method("cross", variants=False)
def test_a_padded_context_is_the_shorter_one(spec: str) -> None:
    module = attention(spec)
    x, context = torch.randn(2, 5, 48).double(), torch.randn(2, 9, 48).double()
    context_pos = torch.tensor([0, 1, 2, 3, 4, 5, -1, -1, -1])
    expected = module(x, context=context[:, :6])
    close(module(x, context=context, context_pos=context_pos), expected)
    cache, start = KVCache(), torch.arange(3)
    first = module(x[:, :3], context=context, context_pos=context_pos, pos=start, cache=cache)
    # from then on the cache knows which of its keys are padding
    rest = module(x[:, 3:], context=context, pos=torch.tensor([3, 4]), cache=cache)
    close(torch.cat([first, rest], 1), expected)


def test_a_cached_context_stays_padded_without_positions() -> None:
    module = attention("none")
    x, context = torch.randn(2, 1, 48).double(), torch.randn(2, 9, 48).double()
    cache = KVCache()
    context_pos = torch.tensor([0, 1, 2, 3, 4, 5, -1, -1, -1])
    expected = module(x, context=context, context_pos=context_pos, cache=cache)
    close(module(x, context=context, cache=cache), expected)


def test_position_can_be_added_elsewhere() -> None:
    module = Attention(16, 2, position=Sinusoidal(), embed=False)
    x = torch.randn(1, 5, 16)
    added = Attention(16, 2, position=module.position)
    added.load_state_dict(module.state_dict())
    torch.testing.assert_close(module(module.position(x)), added(x))


def test_masks_combine() -> None:
    module, x = attention("alibi", mask=Causal()), torch.randn(2, 6, 48).double()
    ids = Documents(torch.tensor([[0, 0, 1, 1, 1, 2]]))
    both = attention("alibi", mask=Causal() & ids)
    both.load_state_dict(module.state_dict())
    close(module(x, mask=ids), both(x))


# --- NaN in padding -----------------------------------------------------------------------------------------------


@every_method("padding", on=BOTH, variants=False)
@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_nan_in_padding_reaches_nothing(spec: str, poison: float, backend: str) -> None:
    module = attention(spec, mask=Causal(), backend=backend)
    pos = torch.tensor([[-1, -1, 0, 1, 2, 3], [0, 1, 2, 3, 4, 5]])
    clean = torch.randn(2, 6, 48).double()
    dirty = clean.clone()
    dirty[0, :2] = poison
    results = []
    for x in (clean, dirty):
        x.requires_grad_()
        out = module(x, pos=pos)
        results.append([out, *torch.autograd.grad(out.square().sum(), [x, *module.parameters()])])
    for expected, got in zip(*results, strict=True):
        close(got, expected)


@every_method("documents", variants=False)
def test_nan_in_another_document_reaches_no_value(spec: str) -> None:
    module = attention(spec, mask=Causal())
    ids = Documents(torch.tensor([[0, 0, 0, 1, 1, 1]]))
    pos = torch.tensor([0, 1, 2, 0, 1, 2])
    x = torch.randn(1, 6, 48).double()
    clean = module(x, pos=pos, mask=ids)
    x[:, :3] = torch.nan
    got = module(x, pos=pos, mask=ids)
    close(got[:, 3:], clean[:, 3:])
    assert got[:, 1:3].isnan().all()  # the first token may see nothing at all


def test_nan_in_a_padded_context_reaches_nothing() -> None:
    module = attention("none")
    x, context = torch.randn(2, 5, 48).double(), torch.randn(2, 9, 48).double()
    context[:, 6:] = torch.nan
    out = module(x, context=context, context_pos=torch.tensor([0, 1, 2, 3, 4, 5, -1, -1, -1]))
    close(out, module(x, context=context[:, :6]))
    out.sum().backward()
    assert all(p.grad.isfinite().all() for p in module.parameters())


# --- error messages -----------------------------------------------------------------------------------------------


def test_widths_that_do_not_fit() -> None:
    with refusal("expected heads to divide dim, got dim=30 and heads=4: choose heads that divide 30, or give head_dim"):
        Attention(30, 4)
    with refusal(
        "expected kv_heads to divide heads, got heads=6 and kv_heads=4: each key head serves the same number of query "
        "heads"
    ):
        Attention(48, 6, kv_heads=4)
    for name, given in (("dim", {"dim": 0}), ("heads", {"heads": 0}), ("kv_heads", {"kv_heads": 0})):
        with refusal(f"expected {name} of at least 1, got 0"):
            Attention(**{"dim": 48, "heads": 6, **given})
    with refusal("expected head_dim of at least 1, got -8"):
        Attention(48, 6, head_dim=-8)
    with refusal(f"expected backend 'auto' or one of {', '.join(BACKENDS)}, got 'cudnn'"):
        Attention(48, 6, backend="cudnn")


def test_inputs_that_do_not_fit() -> None:
    module = attention("rotary").float()
    with refusal("expected x of shape (batch, tokens, 48), got (2, 5, 47)"):
        module(torch.zeros(2, 5, 47))
    with refusal("expected x of shape (batch, tokens, 48), got (2, 3, 5, 48)"):
        module(torch.zeros(2, 3, 5, 48))
    with refusal("expected x of torch.float32, as the weights are, got torch.float64"):
        module(torch.zeros(2, 5, 48).double())
    with refusal("expected x of torch.float32, as the weights are, got torch.int64"):
        module(torch.zeros(2, 5, 48).long())
    with refusal("expected x on cpu, where the weights are, got meta"):
        module(torch.zeros(2, 5, 48, device="meta"))
    x = torch.zeros(2, 5, 48)
    with refusal("expected context of shape (2, tokens, 48), got (3, 4, 48)"):
        module(x, context=torch.zeros(3, 4, 48))
    with refusal("expected context of shape (2, tokens, 48), got (2, 4, 40)"):
        module(x, context=torch.zeros(2, 4, 40))
    with refusal("expected context of torch.float32, as the weights are, got torch.bfloat16"):
        module(x, context=torch.zeros(2, 4, 48).bfloat16())
    with refusal("expected a context of width 20, because context_dim was given, got none"):
        attention("none", context_dim=20)(x.double())
    with refusal("expected integer positions, got torch.float32"):
        module(x, pos=torch.arange(5).float())
    with refusal("expected positions of shape (2 or 1, 5), got (1, 4)"):
        module(x, pos=torch.arange(4))
    with refusal("expected context_pos of shape (2 or 1, 5), got (1, 4)"):
        module(x, context=x, context_pos=torch.arange(4))


def test_a_cache_of_another_batch() -> None:
    module, cache = attention("rotary").float(), KVCache()
    module(torch.zeros(2, 5, 48), cache=cache)
    with refusal(
        "expected keys of the cache's batch 2 and heads and width (2, 8), got batch 3 and (2, 8): use a new cache for "
        "another batch or model"
    ):
        module(torch.zeros(3, 1, 48), pos=torch.tensor([5]), cache=cache)


def test_a_method_of_other_widths() -> None:
    position = Learned().attach(HeadShape.of(32, 4))
    with refusal(
        "expected Learned to be used with the widths it has, HeadShape(dim=32, heads=4, kv_heads=4, head_dim=8), got "
        "HeadShape(dim=48, heads=6, kv_heads=6, head_dim=8): make another one, or .fresh()"
    ):
        Attention(48, 6, position=position)


def test_positions_past_a_learned_table() -> None:
    module = Attention(48, 6, position=Learned(max_length=5))
    module(torch.zeros(2, 5, 48))
    message = (
        "expected positions below max_length=5, got 5: learned positions cannot go past their table; train with a "
        "larger max_length, or use rotary, alibi or t5"
    )
    with refusal(message):
        module(torch.zeros(2, 6, 48))
    cache = KVCache()
    module(torch.zeros(2, 5, 48), cache=cache)
    with refusal(message):
        module(torch.zeros(2, 1, 48), cache=cache)


def test_methods_outside_attention() -> None:
    x = torch.zeros(2, 5, 16)
    assert torch.equal(Sinusoidal()(x), Sinusoidal()(x, torch.arange(5)))
    with refusal(
        "expected a method that acts on embeddings, got Rotary, which acts inside attention: hand it to "
        "headway.Attention, or use Sinusoidal or Learned here"
    ):
        Rotary()(x)
    with refusal("expected embeddings of shape (batch, tokens, width), got (5, 16)"):
        Sinusoidal()(x[0])
    with refusal("expected Learned with its table, got one without: call .attach(16) once, before making an optimizer"):
        Learned()(x)
    with refusal("expected embeddings of width 8, got 16"):
        Learned().attach(8)(x)
    with refusal("expected integer positions, got torch.float64"):
        Sinusoidal()(x, torch.arange(5).double())


def test_padding_gets_no_learned_vector() -> None:
    position, x = Learned(max_length=4).attach(16), torch.randn(1, 3, 16)
    out = position(x, torch.tensor([-1, 1, 2]))
    assert torch.equal(out[:, 0], x[:, 0])
    out.sum().backward()
    assert position.weight.grad.any(1).tolist() == [False, True, True, False]


KNOWN = "`headway methods` lists all"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("rotery", f"expected a position method, got 'rotery': did you mean rotary or mrope? {KNOWN}"),
        (
            "rotary(",
            f"expected a position method such as rotary or rotary(base=500000), got 'rotary(': {KNOWN}",
        ),
        ("", f"expected a position method such as rotary or rotary(base=500000), got '': {KNOWN}"),
        (
            "rotary(500000)",
            f"expected a position method such as rotary or rotary(base=500000), got 'rotary(500000)': {KNOWN}",
        ),
        (
            "rotary(base=open('x'))",
            "expected a position method such as rotary or rotary(base=500000), got \"rotary(base=open('x'))\": "
            f"{KNOWN}",
        ),
        (
            "rotary(**{'base': 1})",
            "expected hyperparameters of rotary (base, fraction, pairing), got 'None'",
        ),
        (
            "os.system",
            f"expected a position method such as rotary or rotary(base=500000), got 'os.system': {KNOWN}",
        ),
        ("rotary(bas=1)", "expected hyperparameters of rotary (base, fraction, pairing), got 'bas'"),
        ("none(a=1)", "expected hyperparameters of none (none), got 'a'"),
        ("rotary(shape=3)", "expected hyperparameters of rotary (base, fraction, pairing), got 'shape'"),
        ("rotary(base='x')", "expected rotary base like 10000.0, got 'x'"),
        ("rotary(base=True)", "expected rotary base like 10000.0, got True"),
        ("t5(buckets=3.5)", "expected t5 buckets like 32, got 3.5"),
        ("t5(bidirectional=1)", "expected t5 bidirectional like False, got 1"),
        ("rotary(base=0)", "expected a finite rotary base above 0, got 0.0"),
        ("rotary(base=-1)", "expected a finite rotary base above 0, got -1.0"),
        ("rotary(fraction=0)", "expected rotary fraction above 0 and at most 1, got 0.0"),
        ("rotary(fraction=1.5)", "expected rotary fraction above 0 and at most 1, got 1.5"),
        ("rotary(pairing='neox')", "expected rotary pairing half or interleaved, got 'neox'"),
        ("sinusoidal(base=1)", "expected a finite sinusoidal base above 1, got 1.0"),
        ("sinusoidal(layout='x')", "expected sinusoidal layout interleaved or split, got 'x'"),
        ("learned(max_length=0)", "expected learned max_length of at least 1, got 0"),
        ("shaw(clip=0)", "expected shaw clip of at least 1, got 0"),
        ("t5(buckets=5)", "expected an even number of t5 buckets of at least 2, got 5"),
        ("t5(buckets=2, bidirectional=True)", "expected an even number of t5 buckets of at least 4, got 2"),
        ("t5(max_distance=16)", "expected t5 max_distance above 16, got 16"),
        ("rotary(base=1e400)", "expected a finite rotary base above 0, got inf"),
        ("sinusoidal(base=1e400)", "expected a finite sinusoidal base above 1, got inf"),
    ],
    ids=lambda value: value if "expected" not in value else "",
)
def test_methods_that_do_not_read(spec: str, message: str) -> None:
    with refusal(message):
        parse(spec)


def test_widths_rotary_cannot_turn() -> None:
    with refusal(
        "expected an even head width, because rotary rotates pairs, got 9: change heads or head_dim, or give fraction "
        "below 1"
    ):
        Attention(36, 4, position="rotary")
    with refusal("expected rotary to rotate at least one pair, got fraction=0.1 of 8"):
        Attention(32, 4, position="rotary(fraction=0.1)")
