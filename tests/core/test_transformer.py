"""Transformer: its kinds and parts, its configuration, encoder-decoders with a cache, and error messages."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
import torch
from common import close, every_method, every_place, refusal, transformer

from headway import Causal, Documents, Transformer, attend
from headway.backends import BACKENDS
from headway.config import ACTIVATIONS, KINDS
from headway.stack import NORMS

SMALL = {"vocab": 17, "dim": 24, "layers": 2, "heads": 4}


def source_of(model: Transformer, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    return {} if model.encoder is None else {"source": tokens.flip(1)}


# --- kinds and parts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "norm", "post_norm", "activation", "tie"),
    list(itertools.product(KINDS, NORMS, (False, True), ACTIVATIONS, (True, False))),
)
def test_every_combination_learns(kind: str, norm: str, post_norm: bool, activation: str, tie: bool) -> None:
    model = Transformer(
        **SMALL, kind=kind, norm=norm, post_norm=post_norm, activation=activation, tie=tie, kv_heads=2, bias=True
    )
    assert (model.head.weight is model.embedding.weight) == tie
    tokens = torch.randint(17, (2, 7))
    logits = model(tokens, **source_of(model, tokens))
    assert logits.shape == (2, 7, 17)
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all()
    assert json.loads(json.dumps(model.config.plain())) == model.config.plain()


@every_place("causality", models=True)
def test_a_decoder_sees_no_future(spec: str) -> None:
    model, tokens = transformer(spec), torch.randint(17, (2, 8))
    changed = tokens.clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % 17
    # within a rounding: forgetting gates are summed from the newest key, and softmax takes out what that adds to all
    close(model(tokens)[:, :5], model(changed)[:, :5])
    assert not torch.equal(model(tokens)[:, 5:], model(changed)[:, 5:])
    first, later = torch.arange(5)[None], torch.arange(8)[None]
    for text in (first, later):
        (gradient,) = torch.autograd.grad(model.stack(text)[:, :5].square().sum(), model.embedding.weight)
        assert (gradient.abs().amax(1) > 1e-9).nonzero()[:, 0].tolist() == [0, 1, 2, 3, 4]


@every_method("encoder", variants=False)
def test_an_encoder_sees_everything_and_order(spec: str) -> None:
    if spec == "none":
        with pytest.warns(UserWarning, match="^an encoder without position is blind to the order of its tokens$"):
            model = transformer(spec, kind="encoder", layers=1)
    else:
        model = transformer(spec, kind="encoder", layers=1)
    tokens = torch.arange(8)[None]
    changed = tokens.clone()
    changed[:, 7] = 9
    assert (model(tokens) != model(changed)).any(-1).all()
    order = torch.randperm(8)
    assert torch.allclose(model(tokens[:, order]), model(tokens)[:, order]) == (spec == "none")


def test_the_encoder_of_an_encoder_decoder_is_two_sided() -> None:
    model = Transformer(**SMALL, kind="encoder-decoder", position="t5(buckets=8)")
    assert model.encoder.position.spec() == "t5(buckets=8, bidirectional=True)"
    assert model.position.spec() == "t5(buckets=8)"
    assert [block.cross.part.position.spec() for block in model.stack.blocks] == ["none", "none"]
    assert all(block.cross is None for block in model.encoder.blocks)


@pytest.mark.parametrize(
    ("spec", "share", "objects"), [("t5", None, 1), ("shaw", None, 2), ("t5", False, 2), ("shaw", True, 1)]
)
def test_layers_share_a_position_as_its_paper_does(spec: str, share: bool | None, objects: int) -> None:
    model = Transformer(**SMALL, position=spec, share_position=share)
    found = {id(block.attention.part.position) for block in model.stack.blocks}
    assert len(found) == objects
    again = Transformer.from_config(model.config)
    assert {name: p.shape for name, p in again.named_parameters()} == {
        name: p.shape for name, p in model.named_parameters()
    }


def test_activations_and_widths() -> None:
    assert Transformer(**SMALL).stack.blocks[0].mlp.part.up.out_features == 96
    swiglu = Transformer(**SMALL, activation="swiglu").stack.blocks[0].mlp.part
    assert swiglu.up.out_features == 64  # 8/3 · 24
    assert swiglu.gate is not None
    assert Transformer(**SMALL, hidden=10).stack.blocks[0].mlp.part.down.in_features == 10
    x = torch.randn(1, 3, 24)
    torch.testing.assert_close(swiglu(x), swiglu.down(torch.nn.functional.silu(swiglu.gate(x)) * swiglu.up(x)))


def test_dropout_acts_in_training_only() -> None:
    model, tokens = Transformer(**SMALL, dropout=0.5), torch.randint(17, (2, 7))
    assert not torch.equal(model(tokens), model(tokens))
    model.eval()
    assert torch.equal(model(tokens), model(tokens))


def test_one_layer_by_hand() -> None:
    """X = E·√d;  X += Attention(rms X);  X += MLP(rms X);  logits = rms(X) Eᵀ."""
    model = transformer("none", layers=1)
    tokens = torch.randint(17, (2, 6))
    block = model.stack.blocks[0]

    def rms(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight

    x = model.embedding.weight[tokens] * 24**0.5
    a, y = block.attention.part, rms(x, block.attention.norm.weight)
    q, k, v = (linear(y).unflatten(-1, (3, 8)).transpose(1, 2) for linear in (a.q, a.k, a.v))
    x = x + a.o(attend(q, k, v, mask=Causal()).transpose(1, 2).flatten(2))
    m, y = block.mlp.part, rms(x, block.mlp.norm.weight)
    x = x + m.down(torch.nn.functional.gelu(m.up(y)))
    close(model(tokens), rms(x, model.stack.norm.weight) @ model.embedding.weight.T)


# --- encoder-decoder ----------------------------------------------------------------------------------------------


@every_place("decode")
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded source"])
def test_an_encoder_decoder_with_a_cache(spec: str, padded: bool) -> None:
    model = transformer(spec, kind="encoder-decoder")
    source, tokens = torch.randint(17, (2, 7)), torch.randint(17, (2, 6))
    given: dict[str, Any] = {"source": source}
    if padded:
        given["source_pos"] = torch.tensor([[0, 1, 2, 3, -1, -1, -1], [0, 1, 2, 3, 4, 5, 6]])
    whole = model(tokens, **given)
    for pieces in ([1] * 6, [3, 1, 2]):
        cache = model.new_cache()
        close(torch.cat([model(part, cache=cache, **given) for part in tokens.split(pieces, 1)], 1), whole)
        assert len(cache) == 6
    cache = model.new_cache()
    first = model(tokens[:, :2], cache=cache, **given)
    # its padding is in the cache, so that source_pos need not be said again
    close(torch.cat([first, model(tokens[:, 2:], source=source, cache=cache)], 1), whole)
    if padded:
        close(model(tokens[:1], source=source[:1, :4]), whole[:1])


# --- configuration ------------------------------------------------------------------------------------------------


@every_method("config")
def test_a_configuration_round_trips_through_json(spec: str) -> None:
    given = {**SMALL, "heads": 3, "kv_heads": 1, "activation": "swiglu", "norm": "layer", "scale": 1, "dropout": 0}
    model = Transformer(**given, position=spec).eval()
    again = Transformer.from_config(json.loads(json.dumps(model.config.plain()))).eval()
    assert again.config == model.config
    assert model.config.position == spec
    assert again.position.hyperparameters() == model.position.hyperparameters()
    again.load_state_dict(model.state_dict())
    tokens = torch.randint(17, (2, 7))
    assert torch.equal(again(tokens), model(tokens))


HOSTILE: list[tuple[Any, str]] = [
    ([1, 2], "expected a model configuration as a JSON object, got a list of 2"),
    (None, "expected a model configuration as a JSON object, got None"),
    ({"dim": 8}, "expected a model configuration with vocab, which is missing"),
    ({"vocab": 8, "class": "os.system"}, "expected a model configuration of known names, got 'class'"),
    ({"vocab": 8, 3: 4}, "expected a model configuration of known names, got 3"),
    ({"vocab": 8, "self": 4}, "expected a model configuration of known names, got 'self'"),
    ({"vocab": "8"}, "expected vocab to be a whole number from 1 to 2,147,483,648, got '8'"),
    ({"vocab": True}, "expected vocab to be a whole number from 1 to 2,147,483,648, got True"),
    ({"vocab": 8.0}, "expected vocab to be a whole number from 1 to 2,147,483,648, got 8.0"),
    ({"vocab": 8, "kv_heads": 2.0}, "expected kv_heads to be a whole number from 1 to 65,536, got 2.0"),
    ({"vocab": 8, "bias": 1}, "expected bias to be true or false, got 1"),
    ({"vocab": 8, "scale": True}, "expected scale to be a finite number, got True"),
    (
        {"vocab": 8, "position": ["rotary"]},
        "expected position to be a position method or a string such as 'rotary', got a list of 1",
    ),
    (
        {"vocab": 8, "position": "__import__('os')"},
        "expected a position method such as rotary or rotary(base=500000), got \"__import__('os')\": "
        "`headway methods` lists all",
    ),
    ({"vocab": 0}, "expected vocab to be a whole number from 1 to 2,147,483,648, got 0"),
    ({"vocab": 8, "layers": 0}, "expected layers to be a whole number from 1 to 1,024, got 0"),
    ({"vocab": 8, "dim": -4}, "expected dim to be a whole number from 1 to 65,536, got -4"),
    ({"vocab": 8, "hidden": 0}, "expected hidden to be a whole number from 1 to 262,144, got 0"),
    ({"vocab": 8, "kind": "rnn"}, "expected kind to be one of decoder, encoder, encoder-decoder, got 'rnn'"),
    ({"vocab": 8, "norm": "batch"}, "expected norm to be one of rms, layer, got 'batch'"),
    ({"vocab": 8, "activation": "relu"}, "expected activation to be one of gelu, swiglu, got 'relu'"),
    ({"vocab": 8, "init": "he"}, "expected init to be one of xavier, normal, gpt2, t5, orthogonal, got 'he'"),
    ({"vocab": 8, "dropout": 1}, "expected dropout to be a number in [0, 1), got 1"),
    ({"vocab": 8, "dropout": -0.1}, "expected dropout to be a number in [0, 1), got -0.1"),
    ({"vocab": 8, "dropout": float("nan")}, "expected dropout to be a number in [0, 1), got nan"),
    ({"vocab": 8, "scale": float("nan")}, "expected scale to be a finite number, got nan"),
    ({"vocab": 8, "backend": "x"}, f"expected backend 'auto' or one of {', '.join(BACKENDS)}, got 'x'"),
    (
        {"vocab": 8, "dim": 30},
        "expected heads to divide dim, got dim=30 and heads=4: choose heads that divide 30, or give head_dim",
    ),
]


@pytest.mark.parametrize(
    ("config", "message"), HOSTILE, ids=lambda value: "" if isinstance(value, str) else repr(value)[:40]
)
def test_hostile_configurations(config: Any, message: str) -> None:
    with refusal(message):
        Transformer.from_config(config)


def test_a_huge_configuration_is_shown_in_part() -> None:
    from headway import HeadwayError

    with pytest.raises(HeadwayError) as caught:
        Transformer.from_config({"x": "y" * 10**6})
    assert len(str(caught.value)) < 200


# --- error messages -----------------------------------------------------------------------------------------------


def test_tokens_that_do_not_fit() -> None:
    model = Transformer(**SMALL)
    with refusal("expected token ids from 0 to 16, got 17"):
        model(torch.tensor([[0, 17]]))
    with refusal("expected token ids from 0 to 16, got -1"):
        model(torch.tensor([[0, -1]]))
    with refusal("expected integer token ids of shape (batch, tokens), got torch.float32 of (1, 2)"):
        model(torch.zeros(1, 2))
    with refusal("expected integer token ids of shape (batch, tokens), got torch.bool of (1, 2)"):
        model(torch.zeros(1, 2, dtype=torch.bool))
    with refusal("expected integer token ids of shape (batch, tokens), got torch.int64 of (2,)"):
        model(torch.zeros(2, dtype=torch.long))
    with refusal("expected tokens on cpu, where the weights are, got meta"):
        model(torch.zeros(1, 2, dtype=torch.long, device="meta"))
    with refusal("expected integer positions, got torch.float32"):
        model(torch.zeros(1, 2, dtype=torch.long), pos=torch.zeros(2))


def test_a_source_where_it_belongs() -> None:
    tokens = torch.zeros(1, 2, dtype=torch.long)
    with refusal("expected no source, because this Transformer is of kind 'decoder', got one"):
        Transformer(**SMALL)(tokens, source=tokens)
    with refusal("expected a source, because this Transformer is an encoder-decoder, got none"):
        Transformer(**SMALL, kind="encoder-decoder")(tokens)


def test_empty_and_single() -> None:
    model = Transformer(**SMALL)
    for shape in ((2, 0), (0, 5), (2, 1)):
        assert model(torch.zeros(shape, dtype=torch.long)).shape == (*shape, 17)


def test_a_cache_and_packed_documents() -> None:
    """The ids of the cached keys go with the mask."""
    model, tokens = transformer("rotary"), torch.randint(17, (1, 6))
    ids = torch.tensor([[0, 0, 0, 1, 1, 1]])
    whole = model(tokens, mask=Documents(ids))
    cache = model.new_cache()
    parts = [model(tokens[:, :4], mask=Documents(ids[:, :4]), cache=cache)]
    parts += [
        model(tokens[:, i : i + 1], mask=Documents(ids[:, i : i + 1], ids[:, : i + 1]), cache=cache) for i in (4, 5)
    ]
    close(torch.cat(parts, 1), whole)
