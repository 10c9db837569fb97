"""Methods of several axes against independent implementations: Qwen2-VL and Qwen3-VL, Pixtral's layout, ViT-MAE and
rotary-embedding-torch; RoPE-Mixed against the paper's formula, written anew in complex numbers.

As in the rotary parity, float32 angles of the others are compared coarsely, and their arithmetic exactly.

Held against: transformers (Qwen2-VL, Qwen3-VL, Pixtral, ViT-MAE) and rotary-embedding-torch. RoPE-Mixed against its
paper's formula alone.
"""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from common import attention, close, follows, randomise, refusal, same_with_gradients
from rotary_embedding_torch import RotaryEmbedding, apply_rotary_emb
from torch import Tensor
from transformers.models.pixtral.modeling_pixtral import PixtralVisionRotaryEmbedding
from transformers.models.qwen2_vl import modeling_qwen2_vl as qwen2
from transformers.models.qwen3_vl import modeling_qwen3_vl as qwen3
from transformers.models.vit_mae.modeling_vit_mae import build_2d_sinusoidal_position_embedding

from headway import Attention, Causal, HeadShape, KVCache, Rotary, Transformer
from headway.positions import Axial, MRope, Sinusoidal2D
from headway.positions.axial import raster


def grid(*sizes: int) -> Tensor:
    """Coordinates of a grid, the last axis fastest, (1, N, axes)."""
    return torch.tensor(list(itertools.product(*map(range, sizes))))[None]


# --- axial --------------------------------------------------------------------------------------------------------


def test_axial_as_in_the_vision_tower_of_qwen2_vl() -> None:
    """Its rotation is done in float32."""
    config = SimpleNamespace(
        rope_parameters={"rope_type": "axial", "rope_theta": 10000.0}, embed_dim=48, num_attention_heads=3
    )
    where = grid(20, 31)
    q, k = torch.randn(2, 1, 3, 620, 16, requires_grad=True)
    cos, sin = qwen2.Qwen2VLVisionRotaryEmbedding(config)(q, where[0])
    theirs = qwen2.apply_rotary_pos_emb_vision(q[0].transpose(0, 1), k[0].transpose(0, 1), cos, sin)
    got = Axial(base=10000.0).rotate(q, k, where, where)
    for g, e, x in zip(got, theirs, (q, k), strict=True):
        same_with_gradients(g, e.transpose(0, 1)[None], [x], 1e-5)


def test_pixtral_deals_one_rotary_s_frequencies_out_to_two_axes() -> None:
    """The same rotation of the same pairs: only the frequencies differ, by a factor that is one per axis."""
    config = SimpleNamespace(
        rope_parameters={"rope_type": "axial", "rope_theta": 100.0}, hidden_size=48, num_attention_heads=3
    )
    where = grid(6, 9)
    cos, sin = PixtralVisionRotaryEmbedding(config)(torch.zeros(()).double(), where[0])
    angles = Axial(base=100.0).angles(where, 8)[0, 0].clone()
    angles[:, 4:] *= 100.0 ** (-2 / 16)
    close(cos, angles.cos().repeat(1, 2), 1e-5)
    close(sin, angles.sin().repeat(1, 2), 1e-5)


@pytest.mark.parametrize("sizes", [(20, 31), (5, 6, 7)])
def test_axial_as_in_rotary_embedding_torch(sizes: tuple[int, ...]) -> None:
    width = 8
    theirs = RotaryEmbedding(dim=width, theta=100, cache_if_possible=False)
    theirs.freqs.data = torch.tensor([100.0 ** (-2 * i / width) for i in range(width // 2)], dtype=torch.float64)
    where = grid(*sizes)
    x = torch.randn(2, 3, where.shape[1], width * len(sizes), dtype=torch.float64, requires_grad=True)
    expected = apply_rotary_emb(theirs.get_axial_freqs(*sizes), x.unflatten(2, sizes)).flatten(2, -2)
    q, k = Axial(dims=len(sizes), pairing="interleaved").rotate(x, x, where, where)
    assert torch.equal(q, k)
    same_with_gradients(q, expected, [x])


@pytest.mark.parametrize("pairing", ["half", "interleaved"])
def test_mixed_is_the_paper_s_complex_product(pairing: str) -> None:
    """Re[q·conj(k)·e^{i((Δx)ω_x + (Δy)ω_y)}] summed over pairs, with ω of the key head; the formula written anew."""
    position = Axial(mixed=True, pairing=pairing).attach(HeadShape.of(60, 6, 2)).double()
    randomise(position)
    q = torch.randn(1, 6, 12, 10, dtype=torch.float64, requires_grad=True)
    k = torch.randn(1, 2, 12, 10, dtype=torch.float64, requires_grad=True)
    where = torch.randint(0, 30, (1, 12, 2))

    def complex_pairs(x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1) if pairing == "half" else (x[..., 0::2], x[..., 1::2])
        return torch.complex(a, b)

    rows = []
    for h, i in itertools.product(range(6), range(12)):
        for j in range(12):
            away = where[0, i] - where[0, j]
            angle = away[0] * position.frequency[h // 3, 0] + away[1] * position.frequency[h // 3, 1]
            turned = complex_pairs(q[0, h, i]) * complex_pairs(k[0, h // 3, j]).conj() * torch.exp(1j * angle)
            rows.append(turned.real.sum())
    q_rotated, k_rotated = position.rotate(q, k, where, where)
    got = q_rotated @ k_rotated.repeat_interleave(3, 1).mT
    same_with_gradients(got, torch.stack(rows).view(1, 6, 12, 12), [q, k, position.frequency])


def test_mixed_begins_as_axial_in_turned_directions() -> None:
    frequency = Axial(mixed=True).attach(HeadShape.of(64, 4)).frequency.detach().double()
    size = torch.tensor([100.0 ** (-i / 4) for i in range(4)], dtype=torch.float64)
    close(frequency.norm(dim=1), size.repeat(2).expand(4, -1), 1e-5)
    close((frequency[..., :4] * frequency[..., 4:]).sum(1), torch.zeros(4, 4).double(), 1e-5)
    assert (frequency[:, 0, 0] - frequency[0, 0, 0]).abs()[1:].min() > 1e-3


@pytest.mark.parametrize("spec", ["axial", "axial(mixed=True)", "axial(dims=3)", "mrope", "comrope(dims=2)"])
def test_moving_all_coordinates_changes_nothing(spec: str) -> None:
    module = attention(spec)
    axes = module.position.axes
    x, where = torch.randn(2, 10, 48).double(), torch.randint(0, 40, (2, 10, axes))
    still = module(x, coordinates=where)
    for shift in (torch.eye(axes).long() * 17, torch.full((1, axes), 10**6)):
        for each in shift:
            close(module(x, coordinates=where + each), still, 1e-8)
    for axis in range(axes):
        other = where.clone()
        other[:, 3:, axis] += 5
        assert not torch.allclose(module(x, coordinates=other), still, atol=1e-3)


@pytest.mark.parametrize(("dims", "sizes"), [(2, (6, 8)), (3, (3, 2, 8))])
def test_counted_positions_are_a_grid_line_by_line(dims: int, sizes: tuple[int, ...]) -> None:
    assert torch.equal(raster(torch.arange(48)[None], sizes[1:]), grid(*sizes))
    module, x = attention(f"axial(dims={dims}, width=8, height=2)"), torch.randn(2, 48, 48).double()
    close(module(x, coordinates=grid(*sizes)), module(x))
    close(module(x[:, 5:], coordinates=grid(*sizes)[:, 5:]), module(x[:, 5:], pos=torch.arange(5, 48)))


@pytest.mark.parametrize("spec", ["axial", "mrope", "sinusoidal2d", "comrope(dims=2)"])
def test_coordinates_with_a_cache_and_padding(spec: str) -> None:
    module = attention(spec, mask=Causal())
    x, where = torch.randn(2, 9, 48).double(), torch.randint(0, 40, (2, 9, module.position.axes))
    whole, cache = module(x, coordinates=where), KVCache()
    parts = [module(x[:, i : i + 3], coordinates=where[:, i : i + 3], cache=cache) for i in (0, 3, 6)]
    close(torch.cat(parts, 1), whole)
    pos = torch.tensor([[-1, -1, 0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 4, 5, 6, 7, 8]])
    close(module(x, pos=pos, coordinates=where)[:1, 2:], module(x[:1, 2:], coordinates=where[:1, 2:]))


def test_what_axial_refuses() -> None:
    with refusal("expected 2 or 3 axial dims, got 1: for one axis use rotary"):
        Axial(dims=1)
    with refusal("expected axial width and height of at least 1, got 0 and 8"):
        Axial(width=0)
    with refusal("expected a finite axial base above 0, got inf"):
        Axial(base=math.inf)
    with refusal("expected axial pairing half or interleaved, got 'x'"):
        Axial(pairing="x")
    with refusal("expected 2 axial dims, because mixed was given, got 3"):
        Axial(dims=3, mixed=True)
    with refusal(
        "expected an even head width of at least 6, because axial rotates pairs for each of 3 axes, got 4: change "
        "heads or head_dim"
    ):
        Attention(16, 4, position=Axial(dims=3))


# --- M-RoPE -------------------------------------------------------------------------------------------------------

QWEN = [([16, 24, 24], "chunked"), ([24, 20, 20], "interleaved")]


def axis_of(sections: list[int], layout: str) -> list[int]:
    """The axis of each pair: one section after the other, or rows and columns in turn between those of time."""
    if layout == "chunked":
        return [axis for axis, size in enumerate(sections) for _ in range(size)]
    axes = [0] * sum(sections)
    for axis in (1, 2):
        axes[axis : 3 * sections[axis] : 3] = [axis] * sections[axis]
    return axes


@pytest.mark.parametrize(("sections", "layout"), QWEN, ids=["qwen2", "qwen3"])
@pytest.mark.parametrize("width", [128, 32])
def test_m_rope_as_qwen_writes_it(sections: list[int], layout: str, width: int) -> None:
    """At a width of 32 the sections are a quarter, as in Qwen's smaller models."""
    q = torch.randn(2, 4, 50, width, dtype=torch.float64, requires_grad=True)
    k = torch.randn(2, 2, 50, width, dtype=torch.float64, requires_grad=True)
    where = torch.randint(0, 5000, (2, 50, 3))
    got = MRope(base=1e6, sections=tuple(sections), layout=layout).rotate(q, k, where, where)
    rates = torch.tensor([1e6 ** (-2 * i / width) for i in range(width // 2)], dtype=torch.float64)
    angles = where[..., axis_of([s * width // 128 for s in sections], layout)] * rates
    for g, x in zip(got, (q, k), strict=True):
        rotated = torch.complex(*x.chunk(2, -1)) * torch.exp(1j * angles[:, None])
        same_with_gradients(g, torch.cat((rotated.real, rotated.imag), -1), [x])


@pytest.mark.parametrize(("sections", "layout"), QWEN, ids=["qwen2", "qwen3"])
def test_m_rope_as_in_qwen(sections: list[int], layout: str) -> None:
    """The attention of whole text models, given coordinates."""
    config_type, model_type = (
        (qwen2.Qwen2VLTextConfig, qwen2.Qwen2VLTextModel)
        if layout == "chunked"
        else (qwen3.Qwen3VLTextConfig, qwen3.Qwen3VLTextModel)
    )
    sizes = {"vocab_size": 9, "hidden_size": 48, "intermediate_size": 16, "num_hidden_layers": 1, "head_dim": 32}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2}
    parameters = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [s // 4 for s in sections]}
    if layout == "chunked":  # its heads divide the model
        sizes["hidden_size"] = 128
    model = model_type(config_type(**sizes, rope_parameters=parameters)).double().eval()
    randomise(model)
    part = "layers.0.self_attn"
    weights = {name.replace("_proj", ""): one for name, one in model.get_submodule(part).named_parameters()}
    ours = Attention(
        sizes["hidden_size"],
        4,
        kv_heads=2,
        head_dim=32,
        position=MRope(base=1e6, sections=tuple(sections), layout=layout),
        mask=Causal(),
        bias=layout == "chunked",
        out_bias=False,
        qk_norm=layout == "interleaved",
    ).double()
    where = torch.randint(0, 60, (2, 60, 3))
    follows(ours, model, part, weights, {"position_ids": where.permute(2, 0, 1)}, {"coordinates": where})


@pytest.mark.parametrize("layout", ["chunked", "interleaved"])
def test_m_rope_of_text_is_rotary(layout: str) -> None:
    q, k, pos = torch.randn(2, 4, 9, 16), torch.randn(2, 2, 9, 16), torch.randint(0, 10**6, (2, 9))
    position = MRope(layout=layout, fraction=0.5, pairing="interleaved")
    expected = Rotary(fraction=0.5, pairing="interleaved").rotate(q, k, pos, pos)
    for where in (pos, pos[..., None].expand(-1, -1, 3)):
        assert all(map(torch.equal, position.rotate(q, k, where, where), expected))


@pytest.mark.parametrize("layout", ["chunked", "interleaved"])
def test_m_rope_gives_out_every_pair_at_any_width(layout: str) -> None:
    for pairs in range(1, 70):
        axis = MRope(layout=layout).axis(pairs, torch.device("cpu"))
        assert set(axis.tolist()) <= {0, 1, 2}
        assert len(axis) == pairs
        if layout == "chunked":
            share = torch.bincount(axis, minlength=3) / pairs
            assert (share - torch.tensor([16, 24, 24]) / 64).abs().max() <= 1 / pairs


def test_what_m_rope_refuses() -> None:
    with refusal("expected three mrope sections, for time, row and column, none below 0, got (1, 2)"):
        MRope(sections=(1, 2))
    with refusal("expected three mrope sections, for time, row and column, none below 0, got (1, -1, 2)"):
        MRope(sections=(1, -1, 2))
    with refusal("expected mrope layout chunked or interleaved, got 'x'"):
        MRope(layout="x")


# --- 2D sinusoidal ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [4, 16, 96])
def test_2d_sinusoidal_as_in_mae(dim: int) -> None:
    expected = build_2d_sinusoidal_position_embedding(9, 14, dim, dtype=torch.float64)
    position = Sinusoidal2D(width=14)
    close(position(torch.zeros(1, 126, dim).double())[0], expected)
    close(position.embed(torch.zeros(1, 126, dim).double(), grid(9, 14))[0], expected)
    model = Transformer(vocab=5, dim=16, layers=1, heads=2, position=Sinusoidal2D(width=14), kind="encoder")
    tokens = torch.randint(5, (2, 126))
    torch.testing.assert_close(model(tokens, coordinates=grid(9, 14)), model(tokens))


@pytest.mark.parametrize("dim", [1, 2, 7, 10])
def test_2d_sinusoidal_of_any_width(dim: int) -> None:
    vectors = Sinusoidal2D(layout="interleaved")(torch.zeros(1, 20, dim))
    assert vectors.isfinite().all()
    close(vectors[0, :, 0], grid(3, 8)[0, :20, 0].sin(), 1e-6)


def test_what_2d_sinusoidal_refuses() -> None:
    with refusal("expected sinusoidal2d width of at least 1, got 0"):
        Sinusoidal2D(width=0)
