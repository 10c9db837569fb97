"""Attention's companions of position: query-key norm, softcap, sinks and log-n scaling, against independent formulas
and implementations; and what coordinates must be.
"""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from common import attention, close, refusal, runs, transformer
from torch import Tensor

from headway import Attention, Causal, HeadwayError, Transformer, attend

EVERY: dict[str, dict[str, Any]] = {
    "qk_norm": {"qk_norm": True},
    "softcap": {"softcap": 1.5},
    "sinks": {"sinks": True},
    "log_scale": {"log_scale": 4},
    "all": {"qk_norm": True, "softcap": 3.0, "sinks": True, "log_scale": 4},
}
every_option = pytest.mark.parametrize("options", EVERY.values(), ids=EVERY.keys())


def gradients(out: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    torch.manual_seed(1)
    return list(torch.autograd.grad((out * torch.randn(out.shape).to(out)).sum(), leaves))


def draw(queries: int = 7, keys: int = 7) -> list[Tensor]:
    """Queries of six heads, keys and values of two, large enough that a softcap matters."""
    shapes = ((2, 6, queries, 8), (2, 2, keys, 8), (2, 2, keys, 8))
    return [(2 * torch.randn(shape, dtype=torch.float64)).requires_grad_() for shape in shapes]


def as_bias(mask: Any, tokens: int) -> Tensor:
    pos = torch.arange(tokens)[None]
    return torch.zeros(1, 1, tokens, tokens, dtype=torch.float64).masked_fill(~mask.tile(pos, pos), -torch.inf)


# --- query-key norm -------------------------------------------------------------------------------------------------


def test_qk_norm_comes_before_position_and_bounds_the_scores() -> None:
    module = attention("rotary", qk_norm=True)
    with torch.no_grad():
        for norm in (module.q_norm, module.k_norm):
            norm.weight.fill_(1.0)
    seen: list[Tensor] = []
    module.core.register_forward_pre_hook(lambda _, given: seen.extend(given[:2]))
    module(1e4 * torch.randn(2, 7, 48).double())
    for one in seen:
        close(one.square().mean(-1), torch.ones(one.shape[:-1]).double(), 1e-6)


# --- softcap --------------------------------------------------------------------------------------------------------


def test_softcap_holds_content_and_leaves_terms_alone() -> None:
    """softmax(c·tanh(q·k·scale / c) − m·n), written out."""
    from headway.terms import ByDistance

    q, k, v = leaves = draw()
    slope = torch.tensor([3.0, 2.0, 1.0, 0.5, 0.2, 0.1]).double().requires_grad_()
    got = attend(q, k, v, mask=Causal(), terms=(ByDistance.linear(-slope),), softcap=1.5)
    n = torch.arange(7)
    content = torch.einsum("bhqd,bhkd->bhqk", q, k.repeat_interleave(3, 1)) / math.sqrt(8)
    score = 1.5 * (content / 1.5).tanh() - slope[:, None, None] * (n[:, None] - n).abs()
    weight = score.masked_fill(n > n[:, None], -torch.inf).softmax(-1)
    expected = weight @ v.repeat_interleave(3, 1)
    close(got, expected)
    for one, other in zip(gradients(got, [*leaves, slope]), gradients(expected, [*leaves, slope]), strict=True):
        close(one, other)


# --- sinks ----------------------------------------------------------------------------------------------------------


def test_a_sink_takes_its_share_and_a_row_that_sees_nothing_stays_zero() -> None:
    q, k, _ = draw()
    ones = torch.ones_like(k)
    sinks = torch.tensor([-50.0, -1.0, 0.0, 1.0, 5.0, 50.0]).double()
    pos = torch.tensor([[-1, 0, 1, 2, 3, 4, 5]])
    share = attend(q, k, ones, mask=Causal(), sinks=sinks, q_pos=pos, k_pos=pos)[..., 0]
    assert (share[:, :, 0] == 0).all()
    close(share[:, 0, 1:], torch.ones(2, 6).double(), 1e-9)
    assert ((share[:, 1:5, 1:] > 0) & (share[:, 1:5, 1:] < 1)).all()
    close(share[:, 5], torch.zeros(2, 7).double(), 1e-9)


def test_a_sink_per_head_starts_at_zero() -> None:
    module = Attention(48, 6, sinks=True)
    assert module.sinks is not None
    assert module.sinks.tolist() == [0.0] * 6
    assert Attention(48, 6).sinks is None


# --- log-n scaling --------------------------------------------------------------------------------------------------


def test_log_scale_is_its_formula() -> None:
    """Queries at position p ≥ L are multiplied by ln(p+1)/ln L; below, and at padding, by 1."""
    plain = attention("none", mask=Causal())
    scaled = attention("none", mask=Causal(), log_scale=5)
    scaled.load_state_dict(plain.state_dict())
    pos = torch.tensor([[-1, -1, 0, 3, 4, 5, 9, 1000, 10**6], [0, 1, 2, 3, 4, 5, 6, 7, 8]])
    x = torch.randn(2, 9, 48, dtype=torch.float64, requires_grad=True)
    q, k, v = (
        linear(x.masked_fill((pos < 0)[..., None], 0)).unflatten(-1, (-1, 8)).transpose(1, 2)
        for linear in (plain.q, plain.k, plain.v)
    )
    factor = torch.tensor([[math.log(p + 1) / math.log(5) if p >= 5 else 1.0 for p in row] for row in pos.tolist()])
    q = q * factor.double()[:, None, :, None]
    expected = plain.o(attend(q, k, v, mask=Causal(), q_pos=pos, k_pos=pos).transpose(1, 2).flatten(2))
    got = scaled(x, pos=pos)
    close(got, expected, 1e-6)  # the logarithms are float32 or better
    (one,), (other,) = gradients(got, [x]), gradients(expected, [x])
    close(one, other, 1e-6)
    assert not torch.allclose(got[:, 6:], plain(x, pos=pos)[:, 6:], atol=1e-3)


# --- all of them ----------------------------------------------------------------------------------------------------


@every_option
@pytest.mark.parametrize("backend", ["tiled", "auto"])
def test_backends_agree_with_the_specification(options: dict[str, Any], backend: str) -> None:
    x = torch.randn(2, 40, 48, dtype=torch.float64, requires_grad=True)
    found = []
    for route in (backend, "reference"):
        torch.manual_seed(3)
        module = attention("t5", mask=Causal(), backend=route, **options)
        out = module(x)
        found.append([out, *gradients(out, [x, *module.parameters()])])
    for one, other in zip(*found, strict=True):
        close(one, other)


@pytest.mark.parametrize("backend", ["sdpa", "flex"])
@pytest.mark.parametrize(
    ("given", "what"),
    [({"softcap": 2.0}, "softcap=2.0"), ({"sinks": torch.zeros(6).double()}, "an attention sink")],
    ids=["softcap", "sinks"],
)
def test_a_fused_backend_refuses_by_name(backend: str, given: dict[str, Any], what: str) -> None:
    if not runs(backend, Causal()):
        pytest.skip(f"{backend} does not run here")
    with pytest.raises(HeadwayError, match=f"^backend '{backend}' cannot run this call: .*{what}"):
        attend(*draw(), mask=Causal(), backend=backend, **given)


@every_option
def test_a_model_is_made_again_from_its_configuration(options: dict[str, Any]) -> None:
    model, tokens = transformer("t5", **options), torch.randint(17, (2, 8))
    again = Transformer.from_config(json.loads(json.dumps(model.config.plain()))).double()
    assert {key: getattr(again.config, key) for key in options} == options
    again.load_state_dict(model.state_dict())
    close(again(tokens), model(tokens))
    cache = model.new_cache()
    parts = [model(tokens[:, :5], cache=cache), model(tokens[:, 5:], cache=cache)]
    close(torch.cat(parts, 1), model(tokens))


@every_option
def test_a_model_made_on_the_meta_device_starts_alike(options: dict[str, Any]) -> None:
    direct = Attention(48, 6, **options)
    with torch.device("meta"):
        later = Attention(48, 6, **options)
    later.to_empty(device="cpu")
    for module in (direct, later):
        torch.manual_seed(0)
        module.reset_parameters()
    for name, parameter in direct.named_parameters():
        assert torch.equal(parameter, later.get_parameter(name)), name


@every_option
def test_no_option_makes_nan_of_bfloat16_or_zeros(options: dict[str, Any]) -> None:
    module = Attention(48, 6, mask=Causal(), **options).bfloat16()
    x = torch.zeros(1, 6, 48, dtype=torch.bfloat16, requires_grad=True)
    out = module(x, pos=torch.tensor([-1, 0, 1, 2, 3, 10**6]))
    assert out.dtype is torch.bfloat16
    for one in [out, *gradients(out, [x])]:
        assert one.isfinite().all()


# --- bad input ------------------------------------------------------------------------------------------------------


def test_bad_options_get_one_sentence() -> None:
    for cap in (0, -1.0, math.inf, math.nan):
        message = f"expected a finite softcap above 0, or None, got {cap}"
        with refusal(message):
            Attention(48, 6, softcap=cap)
        with refusal(message):
            attend(*draw(), softcap=cap)
    for length in (1, 0, -5):
        with refusal(f"expected log_scale, a training length, of at least 2, got {length}"):
            Attention(48, 6, log_scale=length)
    for shape in ((2,), (6, 1), ()):
        with refusal(f"expected sinks of shape (6,), one per query head, on cpu, got {shape} on cpu"):
            attend(*draw(), sinks=torch.zeros(shape).double())
    with refusal("expected sinks of shape (6,), one per query head, on cpu, got (6,) on meta"):
        attend(*draw(), sinks=torch.zeros(6, device="meta"))


def test_bad_coordinates_get_one_sentence() -> None:
    x, where = torch.randn(2, 5, 48).double(), torch.zeros(2, 5, 2, dtype=torch.long)
    module = attention("axial")
    with refusal("expected no coordinates, because Rotary has one axis, got some: pass pos instead"):
        attention("rotary")(x, coordinates=where)
    for wrong in (where[..., :1], where[:, :4], torch.cat((where, where[:1])), where[0]):
        with refusal(f"expected coordinates of shape (2 or 1, 5, 2), got {tuple(wrong.shape)}"):
            module(x, coordinates=wrong)
    for dtype in (torch.float64, torch.bool, torch.complex64):
        with refusal(f"expected integer coordinates, got {dtype}"):
            module(x, coordinates=where.to(dtype))
    with refusal("expected coordinates on cpu, got meta"):
        module(x, coordinates=where.to("meta"))
    with refusal("expected no coordinates in cross attention, got some: only x could have them"):
        module(x, context=x, coordinates=where)
    model = transformer("rotary")
    with refusal("expected no coordinates, because Rotary has one axis, got some: pass pos instead"):
        model(torch.randint(17, (2, 5)), coordinates=where)


def test_coordinates_of_one_set_serve_the_batch_in_any_integer_dtype() -> None:
    module, x = attention("axial"), torch.randn(2, 5, 48).double()
    where = torch.tensor([[[0, 0], [0, 1], [1, 0], [1, 1], [2, 0]]])
    expected = module(x, coordinates=where.expand(2, -1, -1))
    for dtype in (torch.int16, torch.int32, torch.int64):
        close(module(x, coordinates=where.to(dtype)), expected)
