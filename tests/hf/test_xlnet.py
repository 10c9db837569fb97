"""XLNet: products by distance and segments, against its own code in float64."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import family_laws
import pytest
import torch
from models import accelerated, as_exact, far, padding, randomised, same, tokens
from transformers import XLNetConfig, XLNetForSequenceClassification, XLNetLMHeadModel, XLNetModel

import headway.hf

CONFIG = {"vocab_size": 90, "d_model": 30, "n_layer": 2, "n_head": 5, "d_inner": 40, "dropout": 0.0}


@cache
def made(**more: Any) -> Any:
    torch.manual_seed(0)
    return randomised(XLNetModel(XLNetConfig(**{**CONFIG, **more})))


def states(model: Any) -> torch.Tensor:
    real = padding(3, 41, "left")
    segments = tokens(3, 41, words=7)
    found: torch.Tensor = model(tokens(3, 41), attention_mask=real, token_type_ids=segments)[0][real.bool()]
    return found


@pytest.mark.parametrize("more", [{}, {"clamp_len": 13}])
def test_states_and_gradients(more: dict[str, Any]) -> None:
    family_laws.same_with_padding(made(**more), 41)
    same(made(**more), states)
    real, segments = padding(2, 23, "right"), tokens(2, 23, words=5)
    hidden = {"output_hidden_states": True, "return_dict": False, "input_mask": 1.0 - real.double()}
    for place in (0, 2):

        def run(model: Any, place: int = place) -> torch.Tensor:
            out = model(tokens(2, 23), token_type_ids=segments, **hidden)[place]
            chosen: torch.Tensor = (out if place == 0 else out[1])[real.bool()]
            return chosen

        same(made(**more), run)


def test_memories() -> None:
    with torch.no_grad():
        expected = made()(tokens(2, 9), use_mems=True).mems
        with accelerated(made()):
            found = made()(tokens(2, 9), use_mems=True).mems
            later = made()(tokens(2, 9, seed=1), mems=found, use_mems=True)[0]
            assert made()(tokens(2, 9), use_mems=False).mems is None
        own = made()(tokens(2, 9, seed=1), mems=expected, use_mems=True)[0]
    assert all(far(*pair) < 1e-12 for pair in zip(found, expected, strict=True))
    assert far(later, own) < 1e-12


def test_training_copies_and_files(tmp_path: Path) -> None:
    model = made().train()
    same(model, states)
    model.eval()
    family_laws.same_copies(model, states)
    family_laws.same_files(model, tmp_path)


def test_each_text_drops_its_own_distances() -> None:
    model = randomised(XLNetModel(XLNetConfig(**{**CONFIG, "dropout": 0.5})), torch.float32)
    rows = []
    held = model.layer[0].register_forward_pre_hook(lambda layer, given: rows.append(given[4]))
    with accelerated(model):
        model.train()(tokens(2, 9), attention_mask=padding(2, 9, "left"))[0].sum().backward()
        model.eval()(tokens(2, 9))
    held.remove()
    assert [len(one[0]) for one in rows] == [2, 1]
    assert not torch.equal(rows[0][:, 0], rows[0][:, 1])


def test_narrow_dtypes() -> None:
    as_exact(made(), states, torch.bfloat16)


def test_nothing_per_pair() -> None:
    long = randomised(XLNetModel(XLNetConfig(**CONFIG)), torch.float32)
    given = {"token_type_ids": tokens(1, 600, words=5), "attention_mask": padding(2, 600, "left")[:1]}
    family_laws.nothing_quadratic(long, lambda m: m(tokens(1, 600), **given)[0], 600)


def test_what_the_models_own_code_computes() -> None:
    ids, order = tokens(2, 9), (torch.rand(2, 9, 9, generator=torch.Generator().manual_seed(2)) > 0.6).double()
    same(made(), lambda m: m(ids, perm_mask=order)[0])
    target = torch.zeros(2, 1, 9, dtype=torch.float64)
    target[:, 0, -1] = 1
    narrow = randomised(XLNetModel(XLNetConfig(**CONFIG)), torch.float32)  # its own code for two streams knows no other
    same(narrow, lambda m: m(ids, perm_mask=order.float(), target_mapping=target.float())[0], within=0)
    same(made(attn_type="uni"), lambda m: m(ids)[0])
    with torch.no_grad():
        expected = made()(ids, output_attentions=True).attentions
        with accelerated(made()):
            found = made()(ids, output_attentions=True).attentions
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_generation_and_classification() -> None:
    model = randomised(XLNetLMHeadModel(XLNetConfig(**CONFIG)), torch.float32)
    asked = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    expected = model.generate(tokens(1, 9), **asked)
    with accelerated(model):
        assert torch.equal(model.generate(tokens(1, 9), **asked), expected)
    classifier = randomised(XLNetForSequenceClassification(XLNetConfig(**CONFIG)))
    same(classifier, lambda m: m(tokens(2, 9)).logits)


def test_padding_that_sees_itself_is_not_compared() -> None:
    found = headway.hf.verify(made(), lengths=(9,))
    assert found.weights.layers == 2
    assert found.passed
