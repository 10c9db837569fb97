"""What inspect and the views show of latent attention: Q, K and V of each head, and the decoupled part by its name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from common import close, leaving_values, randomise, transformer
from torch import Tensor

from headway import Causal, HeadwayError, KVCache, LatentAttention, Transformer
from headway.inspect import one_step, record, split, watch
from headway.inspect.explain import explain
from headway.inspect.head import Head
from headway.inspect.record import recorded
from headway.views import Question, view
from headway.views.explain_text import walk_text
from headway.views.questions import OF_PASSES, about_trace, composed

SIZES = {"latent_dim": 20, "head_dim": 12, "position_dim": 8}
LABELS = list("abcdefghi")
C = 12
"""Dimensions of queries and keys before the decoupled part."""


def made(position: str = "rotary", value_dim: int = 8, **options: Any) -> LatentAttention:
    module = LatentAttention(48, 4, value_dim=value_dim, position=position, mask=Causal(), **SIZES, **options)
    randomise(module.double().eval())
    return module


def model(position: str = "rotary", **options: Any) -> Transformer:
    sizes = {"latent_dim": 10, "position_dim": 8, "query_latent_dim": 12, "value_dim": 6}
    return transformer(position, **{**sizes, **options})


def rms(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight


@pytest.mark.parametrize("absorb", [False, True, None])
@pytest.mark.parametrize("query_latent_dim", [None, 16])
def test_queries_keys_and_values_are_those_of_each_head(query_latent_dim: int | None, absorb: bool | None) -> None:
    """By hand, before and after position; recording changes no number but by rounding."""
    module, x = made(query_latent_dim=query_latent_dim), torch.randn(2, 9, 48).double()
    expected = module(x, absorb=absorb)
    with record(module) as trace:
        close(module(x, absorb=absorb), expected)
    (layer,) = trace
    w = {name: parameter.detach() for name, parameter in module.named_parameters()}
    c = x if query_latent_dim is None else rms(x @ w["q_down.weight"].T, w["q_norm.weight"])
    q = (c @ w["q.weight"].T).view(2, 9, 4, 20).transpose(1, 2)
    latent, key = (x @ w["kv_down.weight"].T).split((20, 8), -1)
    latent = rms(latent, w["kv_norm.weight"])
    k = (latent @ w["k.weight"].T).view(2, 9, 4, 12).transpose(1, 2)
    close(layer.q, q)
    close(layer.k, torch.cat((k, key[:, None].expand(-1, 4, -1, -1)), -1))
    close(layer.call.v, (latent @ w["v.weight"].T).view(2, 9, 4, 8).transpose(1, 2))
    pos = torch.arange(9)[None]
    turned, turned_key = module.position.rotate(q[..., C:], key[:, None], pos, pos)
    close(layer.call.q, torch.cat((q[..., :C], turned), -1))
    close(layer.call.k, torch.cat((k, turned_key.expand(-1, 4, -1, -1)), -1))
    latents = layer.latents
    assert latents is not None
    for got, by_hand in ((latents.q, c), (latents.kv, latent), (latents.key, key)):
        close(got, by_hand)
    parts = split(layer).parts
    assert list(parts) == ["content", "decoupled", "rotation"]
    close(parts["content"], q[..., :C] @ k.mT * module.scale)
    close(parts["decoupled"], q[..., C:] @ key[:, None].mT * module.scale)
    close(split(layer).content, parts["content"] + parts["decoupled"])


@pytest.mark.parametrize("name", leaving_values())
def test_parts_add_up_and_weights_make_the_output(name: str) -> None:
    module, x, outputs = made(name), torch.randn(2, 9, 48).double(), []
    with record(module) as trace:
        hook = module.core.register_forward_hook(lambda m, i, out: outputs.append(out))
        module(x)
        hook.remove()
    (layer,) = trace
    close(split(layer).total, layer.scores())
    close(layer.output(), outputs[0])


def test_position_in_the_embedding_is_split_exactly_through_latent_vectors() -> None:
    """Taking the position's share out of the residual stream by hand leaves the content's product."""
    own, tokens = model("learned"), torch.randint(17, (1, 7))
    layer = recorded(own, tokens)[0]
    parts, attention = split(layer).parts, layer.attention
    assert isinstance(attention, LatentAttention)
    embedded, place = own.embedding(tokens) * 24**0.5, own.position.weight[:7][None]
    length = (embedded + place).square().mean(-1, keepdim=True).add(1e-6).sqrt()
    shares = [x / length * own.stack.blocks[0].attention.norm.weight for x in (embedded, place)]

    def through(norm: Any, whole: Tensor, part: Tensor) -> Tensor:
        return part / (whole.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight

    q, k = [], []
    for share in shares:
        c = through(attention.q_norm, attention.q_down(layer.x), attention.q_down(share))
        q.append(attention.q(c).view(1, 7, 3, 16).transpose(1, 2))
        (whole, _), (latent, key) = (attention.kv_down(x).split((10, 8), -1) for x in (layer.x, share))
        up = attention.k(through(attention.kv_norm, whole, latent)).view(1, 7, 3, 8).transpose(1, 2)
        k.append(torch.cat((up, key[:, None].expand(-1, 3, -1, -1)), -1))
    for i, first in enumerate(("content", "position")):
        for j, second in enumerate(("content", "position")):
            close(parts[f"{first}·{second}"], q[i] @ k[j].mT * 0.25)


def test_with_a_cache() -> None:
    """Cached keys are those of every head, but they are rotated already."""
    module, x = made(), torch.randn(1, 9, 48).double()
    cache = KVCache()
    with record(module) as trace:
        module(x[:, :6], cache=cache)
        module(x[:, 6:], cache=cache)
        module(x)
    first, later, whole = trace
    assert (later.queries, later.keys, later.k, first.k is None) == (3, 9, None, False)
    close(later.weights(), whole.weights(slice(6, 9)))
    close(later.output(), whole.output(slice(6, 9)))
    with pytest.raises(HeadwayError, match=r"^expected unrotated keys, got keys from a cache"):
        split(later)


def test_half_precision_is_recorded_in_float32() -> None:
    module = LatentAttention(48, 4, mask=Causal(), **SIZES).bfloat16().eval()
    (layer,) = recorded(module, torch.randn(1, 9, 48, dtype=torch.bfloat16))
    assert {x.dtype for x in (layer.q, layer.k, layer.call.q, layer.call.v)} == {torch.float32}
    torch.testing.assert_close(split(layer).total, layer.scores())


@pytest.mark.parametrize("matrix", ["q", "k", "v"])
@pytest.mark.parametrize("query_latent_dim", [None, 12])
def test_products_are_the_entry(matrix: str, query_latent_dim: int | None) -> None:
    own, ids = model(query_latent_dim=query_latent_dim), torch.randint(17, (1, 9))
    head = Head(recorded(own, ids)[1], 2)
    cell = head.cell(matrix, 4, 5)
    assert float(cell.products.sum()) == pytest.approx(cell.sum)
    made = {"q": head.q, "k": head.k, "v": head.v}[matrix]
    assert float(made[4, 5]) == pytest.approx(cell.sum)
    shown = view("projection", Question.of(own, ids, LABELS, layer=1, head=2, column=5, options={"matrix": matrix}))
    symbol = "C" if matrix != "q" else "X" if query_latent_dim is None else "C_Q"
    assert shown.figures[0].names == (symbol, f"W_{matrix.upper()}", matrix.upper())
    wide = {"q": 16, "k": 8, "v": 6}[matrix]
    with pytest.raises(HeadwayError, match=f"tokens and {wide} columns, got 4, {wide}"):
        head.cell(matrix, 4, wide)


@pytest.mark.parametrize("name", ["rotary", "alibi", "learned", "pope"])
def test_every_view_of_a_pass_shows_it(name: str) -> None:
    own, ids = model(name), torch.randint(17, (1, 9))
    shown = {one.key: one for one in composed(about_trace(recorded(own, ids), LABELS, layer=1, head=2), OF_PASSES)}
    assert set(OF_PASSES) - {"long"} <= set(shown)
    question = Question.of(own, ids, LABELS, layer=1, head=2)
    stages = view("stepper", question).figures[0].stages
    assert [stage.label["en"] for stage in stages][:5] == ["X", "C, K_R", "Q", "K", "V"]
    assert [stage.shape for stage in stages][:5] == ["9 × 24", "9 × 18", "9 × 16", "9 × 16", "9 × 6"]
    if name != "learned":
        names = [said["en"] for said, _ in view("split", question).figures[0].columns]
        assert names[:2] == ["content", "decoupled part"]
    for language in ("en", "zh"):
        walk_text(explain(own, ids, LABELS, layer=1, head=2), 100, language)


@pytest.mark.parametrize("name", ["rotary", "pope", "selectiverotary"])
def test_planes_are_those_of_the_decoupled_part(name: str) -> None:
    own, ids = model(name), torch.randint(17, (1, 9))
    question = Question.of(own, ids, LABELS, layer=1, head=2, options={"key": 3})
    bars = view("split", question).figures[2]
    layer = recorded(own, ids)[1]
    score = (layer.call.q[0, 2, -1, 8:] * layer.call.k[0, 2, 3, 8:]).sum() * layer.call.scale
    assert sum(bars.series[-1][1]) == pytest.approx(float(score))
    view("rotation", question)


def test_a_step_has_the_gradients_of_the_model() -> None:
    own, ids = model(), torch.randint(17, (1, 7))
    step = one_step(own, ids, layer=1, head=2, lr=0.05)
    F.cross_entropy(own(ids)[0, :-1], ids[0, 1:]).backward()
    for which, gradient in zip("qkv", own.stack.attentions()[1].head(2, grad=True)[:3], strict=True):
        close(step.moves["sgd"][which].gradient, gradient)
    head = Head(step.layer, 2)
    for which, d in (("q", step.d_q), ("k", step.d_k), ("v", step.d_v)):
        close(head.source(which).T @ d, step.moves["sgd"][which].gradient)
    view("step", Question.of(own, ids, LABELS[:7], layer=1, head=2, options={"matrix": "k"}))


def test_a_watch_sees_its_matrices() -> None:
    own, ids = model().float(), torch.randint(17, (1, 9))
    optimizer = torch.optim.SGD(own.parameters(), lr=0.1)
    with watch(own, every=1) as watched:
        for _ in range(3):
            optimizer.zero_grad()
            own(ids).square().mean().backward()
            optimizer.step()
    question = Question.of(own.eval(), ids, LABELS, layer=1, head=2, watched=watched, options={"matrix": "v"})
    taken = watched[0]["stack.blocks.1.attention.part", "v"].head(2, 3)
    assert taken.weight.shape == (6, 10)
    view("film", question)
