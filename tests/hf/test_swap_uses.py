"""A swapped position method in use: long generation, copies, packed documents, positions that are given, training."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import transformers as hf
from common import refusal
from models import far, randomised, tokens
from test_recording import SMALL, N, made
from test_swap import parameters, run
from torch import Tensor

from headway.hf.swap import METHODS, swap_position
from headway.positions import T5
from headway.shapes import HeadShape

LONG = 30
"""Tokens, so many that of some token the cosine of the first angle is below its sine."""
PACKED = torch.cat((torch.arange(5), torch.arange(N - 5)))[None]


@pytest.fixture(scope="module")
def llama() -> Any:
    return made("llama")


@contextmanager
def swapped(model: Any, method: Any) -> Iterator[None]:
    done = swap_position(model, method, quiet=True)
    try:
        yield
    finally:
        done.undo()


def one_by_one(model: Any, ids: Tensor, first: int) -> Tensor:
    """The output for tokens of which those from ``first`` on come one by one."""
    with torch.no_grad():
        out = model(ids[:, :first], use_cache=True)
        parts = [out[0]]
        for at in range(first, ids.shape[1]):
            parts.append(model(ids[:, at : at + 1], cache=out.past_key_values, use_cache=True)[0])
    return torch.cat(parts, 1)


@pytest.mark.parametrize("name", ["none", "alibi", "t5", "rotary(base=500.0)", "sinusoidal", "fox", "cope"])
def test_long_generation(llama: Any, name: str) -> None:
    ids = tokens(2, LONG)
    with swapped(llama, name):
        parameters(llama)
        assert far(one_by_one(llama, ids, 14), run(llama, {"input_ids": ids})) < 1e-10


@pytest.mark.parametrize("name", ["fox", "path"])
def test_long_generation_of_latent_attention(name: str) -> None:
    model, ids = made("deepseek_v3"), tokens(2, LONG)
    swap_position(model, name, quiet=True)
    parameters(model)
    assert far(one_by_one(model, ids, 14), run(model, {"input_ids": ids})) < 1e-10


def test_generation_of_a_model_that_takes_sin_before_cos() -> None:
    sizes: dict[str, Any] = {
        "vocab_size": 96,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "rotary_dim": 4,
        "n_positions": 64,
    }
    model = randomised(hf.GPTJModel(hf.GPTJConfig(**sizes, bos_token_id=1, eos_token_id=2)))
    ids = tokens(2, LONG)
    swap_position(model, "none", quiet=True)
    whole = run(model, {"input_ids": ids})
    assert far(one_by_one(model, ids, 14), whole) < 1e-10
    ids[:, :5] = ids[:, [3, 1, 4, 0, 2]]
    assert (
        far(run(model, {"input_ids": ids})[:, 6], whole[:, 6]) > 1e-3
    )  # causal masks tell order from the second layer on
    assert far(run(model, {"input_ids": ids})[:, 5], run(model, {"input_ids": ids[:, :6]})[:, 5]) < 1e-10


@pytest.mark.parametrize("name", ["dynamicntk(original=8)", "alibi"])
def test_free_room_in_a_static_cache_is_no_text(name: str) -> None:
    model = randomised(hf.LlamaForCausalLM(hf.LlamaConfig(**SMALL)))
    swap_position(model, name, quiet=True)
    ids = tokens(2, N)
    given: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "output_scores": True}
    given |= {"return_dict_in_generate": True, "attention_mask": torch.ones_like(ids)}
    grown = torch.stack(model.generate(ids, **given).scores)
    static = model.generate(ids, cache_implementation="static", disable_compile=True, **given)
    assert far(torch.stack(static.scores), grown) < 1e-6  # generate returns float32


@pytest.mark.parametrize("name", ["learned", "fox", "alibi(learned=True)"])
def test_copies_have_methods_of_their_own(name: str) -> None:
    model = made("llama")
    swap_position(model, name, quiet=True)
    parameters(model)
    ids = {"input_ids": tokens(2, N)}
    model(**ids)[0].sum().backward()
    before, again, file = run(model, ids), copy.deepcopy(model), io.BytesIO()
    torch.save(model, file)
    for parameter in getattr(model, METHODS).parameters():
        parameter.data.mul_(3)
    file.seek(0)
    assert far(run(model, ids), before) > 1e-3
    for other in (again, torch.load(file, weights_only=False)):
        assert torch.equal(run(other, ids), before)


@pytest.mark.parametrize("name", ["learned", "sinusoidal", "alibi", "path", "grapeap", "fox", "dynamicntk(original=8)"])
def test_packed_documents_are_as_separate_ones(llama: Any, name: str) -> None:
    ids = tokens(1, N)
    with swapped(llama, name), torch.no_grad():
        parameters(llama)
        packed = llama(ids, position_ids=PACKED, use_cache=False)[0]
        separate = [run(llama, {"input_ids": part}) for part in (ids[:, :5], ids[:, 5:])]
    assert far(packed, torch.cat(separate, 1)) < 1e-10


def test_given_positions_are_kept_or_refused(llama: Any) -> None:
    model = made("gpt2")
    given = {"input_ids": tokens(2, N), "position_ids": PACKED.flip(1).expand(2, -1)}
    given["attention_mask"] = torch.ones_like(given["input_ids"])
    before = run(model, given)
    swap_position(model, "learned(max_length=64)", quiet=True)
    assert far(run(model, given), before) < 1e-10
    with swapped(llama, "alibi"):
        with refusal("expected position_ids that count the tokens from 0", whole=False):
            llama(**given)
        with refusal("pass use_cache=False", whole=False):
            llama(tokens(1, N), position_ids=PACKED, use_cache=True)
        with refusal("expected position_ids of shape (batch, 13)", whole=False):
            llama(tokens(1, N), position_ids=PACKED[None])


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_embeddings_that_are_given_get_their_position(family: str) -> None:
    model = made(family)
    ids, real = tokens(2, N), torch.ones(2, N, dtype=torch.long)
    real[0, :4] = 0
    x = model.get_input_embeddings()(ids)
    swap_position(model, "sinusoidal", quiet=True)
    expected = run(model, {"input_ids": ids, "attention_mask": real})
    assert torch.equal(run(model, {"inputs_embeds": x, "attention_mask": real}), expected)
    with torch.no_grad():
        assert torch.equal(model(ids, real)[0][real.bool()], expected)  # by place instead of name


def test_positions_are_drawn_in_training() -> None:
    model = made("mistral")
    ids = {"input_ids": tokens(2, N)}
    with swapped(model, "randomized(method='rotary(base=50.0)', longest=512)"):
        assert torch.equal(run(model, ids), run(model, ids))
        model.train()
        assert far(run(model, ids), run(model, ids)) > 1e-3
        model.activation_checkpointing_enable()
        with refusal("expected no gradient checkpointing", whole=False):
            model(**ids)
        model.activation_checkpointing_disable()
    found = []
    for name in ("randomized(method='none', longest=512)", "none"):  # the window is of tokens, wherever they are
        with swapped(model, name):
            found.append(run(model, ids))
    assert far(*found) < 1e-12


@pytest.mark.parametrize(
    ("family", "method"),
    [("albert", "learned(max_length=64)"), ("deberta-v2", "deberta(clip=20, buckets=8, reverse=False)")],
)
def test_values_are_taken_over(family: str, method: str) -> None:
    model = made(family)
    ids = {"input_ids": tokens(2, N)}
    before = run(model, ids)
    swap_position(model, method, quiet=True)
    assert far(run(model, ids), before) < 1e-10


@pytest.mark.parametrize("family", ["bert", "roberta", "opt", "bart", "mpt"])
def test_tables_of_the_model_limit_no_text(family: str) -> None:
    model = made(family)
    kind = type(model)
    done = swap_position(model, "t5", quiet=True)
    long = tokens(1, 100)
    more = {"decoder_input_ids": long} if family == "bart" else {}
    assert model(input_ids=long, **more)[0].shape[1] == 100
    copy.deepcopy(model)
    done.undo()
    assert type(model) is kind
    assert not any(type(part).__module__ == "headway.hf.stack_start" for part in model.modules())


def test_whisper() -> None:
    model = made("whisper")
    swap_position(model, {"encoder": "alibi", "decoder": "t5"}, quiet=True)
    with refusal("expected layers of tokens", whole=False):
        swap_position(made("whisper"), "sinusoidal")


def test_what_is_said(llama: Any) -> None:
    model = made("mistral")  # whose configuration names no types, but a window
    swap_position(model, {"local": "alibi"}, quiet=True).undo()
    with refusal("expected a method without parameters", whole=False):
        swap_position(llama, T5().attach(HeadShape.of(32, 4)))
    with refusal("acts on the positions that they share", whole=False):
        swap_position(llama, ["randomized", "alibi"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`", "ignore:The .grad attribute")
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("family", "method"), [("gpt2", "kerple"), ("llama", "alibi")])
def test_compiled_it_is_as_eager(family: str, method: str) -> None:
    model, ids = made(family), tokens(2, N)
    seen = torch.ones_like(ids)
    seen[0, :3] = 0
    with swapped(model, method):
        if method == "kerple":
            parameters(model)
        torch.compiler.reset()
        results = []
        for called in (model, torch.compile(model, backend="eager")):
            out = called(input_ids=ids, attention_mask=seen)[0]
            learned = [one for one in model.parameters() if one.requires_grad]
            found = torch.autograd.grad(out[seen.bool()].square().sum(), learned, allow_unused=True)
            results.append([out[seen.bool()], *(one for one in found if one is not None)])
    assert len(results[0]) > 1
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_lora_trains_beside_it_and_is_merged() -> None:
    peft = pytest.importorskip("peft")
    model, ids = made("gpt2"), tokens(2, N)
    with swapped(model, "kerple"):
        before = model(input_ids=ids)[0]
        config = peft.LoraConfig(target_modules=["c_attn"], r=2, fan_in_fan_out=True)
        adapted = peft.get_peft_model(model, config).eval()
        torch.testing.assert_close(adapted(input_ids=ids)[0], before)  # one matrix of each adapter begins at zero
        learned = [one for one in adapted.parameters() if one.requires_grad]
        out = adapted(input_ids=ids)[0]
        for one, slope in zip(learned, torch.autograd.grad(out.square().mean(), learned), strict=True):
            one.data -= slope / slope.norm().clamp_min(1e-9)
        after = adapted(input_ids=ids)[0]
        assert (after - before).abs().max() > 1e-3
        torch.testing.assert_close(adapted.merge_and_unload()(input_ids=ids)[0], after)
