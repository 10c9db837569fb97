"""Another position method in a transformers model: what it had is gone, what is new acts, all of it can be undone."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers as hf
from common import refusal
from models import far, randomised, tokens
from test_recording import FAMILIES, SMALL, N, inputs, made
from torch import Tensor

import headway.hf
from headway.hf.float64 import in_float64
from headway.hf.swap import METHODS, swap_position
from headway.inspect import recorded, split
from headway.positions.registry import methods
from headway.shapes import HeadwayError

SAME: dict[str, Any] = {
    "llama": "rotary",
    "gpt2": "learned(max_length=64)",
    "bloom": "alibi",
    "mpt": "alibi",
    "falcon": "rotary",
    "bert": "learned(max_length=64)",
    "roberta": "learned(max_length=62)",
    "opt": "learned(max_length=64)",
    "bart": "learned(max_length=64)",
    "t5": {"encoder": "t5(bidirectional=True)", "decoder": "t5"},
    "gemma3_text": {"global": "rotary(base=1000000.0)", "local": "rotary"},
    "cohere2": {"global": "none", "local": "rotary(pairing='interleaved')"},
    "deepseek_v3": "rotary(pairing='interleaved')",
    "gpt_neox": "rotary(fraction=0.25)",
}
"""What models have already."""


def run(model: Any, given: dict[str, Tensor]) -> Tensor:
    """The output for tokens that are no padding."""
    with torch.no_grad(), in_float64():
        out: Tensor = model(**given)[0]
    real = given.get("attention_mask")
    return out[real.bool()] if real is not None and real.shape == out.shape[:2] else out


def parameters(model: Any, seed: int = 1) -> None:
    """Make those of the methods random."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in getattr(model, METHODS).parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))


@pytest.mark.parametrize("name", SAME)
def test_what_a_model_has_changes_nothing(name: str) -> None:
    model = made(name)
    given = inputs(model, "right")
    before, names = run(model, given), list(model.state_dict())
    for method in (SAME[name], "alibi"):
        done = swap_position(model, method, quiet=True)
        after = run(model, given)
        assert (far(after, before) < 1e-10) == (method == SAME[name] or FAMILIES[name][1] == {"alibi"})
        done.undo()
        assert torch.equal(run(model, given), before)
        assert list(model.state_dict()) == names


@pytest.mark.parametrize("name", ["none", "alibi", "t5", "rotary", "sinusoidal", "fox", "cope", "path", "swin"])
def test_padding_and_caches(name: str) -> None:
    padding_and_caches(made("llama"), name)


@pytest.mark.slow
@pytest.mark.parametrize("name", methods())
@pytest.mark.parametrize("family", ["llama", "bert", "gpt2", "t5", "gemma3_text"])
def test_every_method_in_every_kind_of_model(family: str, name: str) -> None:
    padding_and_caches(made(family), name)


def padding_and_caches(model: Any, name: str) -> None:
    """What stands where padding is does not matter, nor on which side it is, nor whether tokens came one by one."""
    done = swap_position(model, name, quiet=True)
    parameters(model)
    right, left = inputs(model, "right"), inputs(model, "left")
    real = int(right["attention_mask"][0].sum())
    left["input_ids"][0, -real:] = right["input_ids"][0, :real]
    found = run(model, right)
    other = right | {"input_ids": right["input_ids"].masked_fill(right["attention_mask"] == 0, 5)}
    assert torch.isfinite(found).all()
    assert far(run(model, other), found) < 1e-12
    if not model.config.is_encoder_decoder:
        assert far(run(model, left)[:real], found[:real]) < 1e-6  # transformers' own angles are float32
    if model.config.model_type in ("llama", "gemma3_text"):
        ids = tokens(2, N)
        whole = run(model, {"input_ids": ids})
        with torch.no_grad(), in_float64():
            out = model(ids[:, :8], use_cache=True)
            parts = [out[0]]
            for at in range(8, N):
                parts.append(model(ids[:, at : at + 1], cache=out.past_key_values)[0])
        assert far(torch.cat(parts, 1), whole) < 1e-10
    done.undo()


def test_it_trains_and_is_saved(tmp_path: Path) -> None:
    model = randomised(hf.LlamaForCausalLM(hf.LlamaConfig(**SMALL)))
    plain = {name: parameter.clone() for name, parameter in model.named_parameters()}
    done = swap_position(model, ["t5", "fire"], quiet=True)
    new = dict(getattr(model, METHODS).named_parameters())
    assert {name for name, _ in model.named_parameters()} - plain.keys() == {f"{METHODS}.{name}" for name in new}
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    before = {name: parameter.clone() for name, parameter in new.items()}
    ids = tokens(2, N)
    model(ids, labels=ids).loss.backward()
    optimizer.step()
    moved = [name for name, parameter in new.items() if not torch.equal(parameter, before[name])]
    assert moved == list(new)
    done.save(tmp_path)
    opened = headway.hf.load(tmp_path).double()
    given = {"input_ids": ids}
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in opened.state_dict().items())
    assert far(run(opened, given), run(model, given)) < 1e-14  # products differ with where weights lie in memory
    assert [layer.attention.position.spec() for layer in recorded(opened, ids)] == ["t5", "fire"]
    auto: Any = hf.AutoModelForCausalLM
    without = auto.from_pretrained(tmp_path, dtype=torch.float64)  # warnings are errors
    done.undo()
    assert far(run(without, given), run(model, given)) < 1e-14


@pytest.mark.filterwarnings("ignore")  # Trainer warns of what this machine lacks
def test_a_trainers_checkpoint_holds_the_methods_or_is_refused(tmp_path: Path) -> None:
    rows = [{"input_ids": tokens(1, 12, seed=i)[0], "labels": tokens(1, 12, seed=i)[0]} for i in range(8)]
    made: dict[str, Any] = {"per_device_train_batch_size": 4, "learning_rate": 1e-2, "report_to": [], "use_cpu": True}
    first = hf.LlamaForCausalLM(hf.LlamaConfig(**SMALL))

    def trained(resume: str | None = None, **more: Any) -> Any:
        model = copy.deepcopy(first)
        torch.manual_seed(0)
        swap_position(model, "fire", quiet=True)
        folder = str(tmp_path / "trained")
        options = hf.TrainingArguments(output_dir=folder, max_steps=4, save_steps=2, disable_tqdm=True, **made)
        trainer = hf.Trainer(model=model, args=options, train_dataset=rows)
        trainer.train(resume_from_checkpoint=resume)
        return model

    whole = trained()
    checkpoint = tmp_path / "trained" / "checkpoint-2"
    moved = safetensors.torch.load_file(checkpoint / "model.safetensors")
    names = [name for name in whole.state_dict() if name.startswith(METHODS)]
    assert any(not torch.equal(moved[name], whole.state_dict()[name]) for name in names)
    resumed = trained(str(checkpoint))
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())
    with pytest.raises(HeadwayError, match="got their weights alone"):
        headway.hf.load(checkpoint)
    safetensors.torch.save_file(
        {name: value for name, value in moved.items() if name not in names},
        checkpoint / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(HeadwayError, match="expected the parameters of the swapped position methods"):
        trained(str(checkpoint))


def test_gradients_are_those_of_headways_own_layer() -> None:
    model = made("llama")
    swap_position(model, "t5", quiet=True)
    parameters(model)
    ids = tokens(1, N)
    table = next(iter(getattr(model, METHODS).parameters()))
    table.requires_grad_(True)
    weights = torch.randn(1, N, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    def loss() -> Tensor:
        with in_float64():
            out: Tensor = (model(ids)[0] * weights).sum()
        return out

    loss().backward()
    assert table.grad is not None
    for place in ((0, 0), (3, 5), (1, 12)):
        with torch.no_grad():
            table[place] += 1e-3
            up = loss()
            table[place] -= 2e-3
            down = loss()
            table[place] += 1e-3
        assert abs(float((up - down) / 2e-3 - table.grad[place])) < 1e-3 * (1 + abs(float(table.grad[place])))


def test_what_is_recorded_of_it() -> None:
    model = made("bert")
    swap_position(model, "rotary", quiet=True)
    layer = recorded(model, tokens(1, N))[0]
    parts = split(layer)
    assert set(parts.parts) == {"content", "rotation"}
    assert far(parts.total, layer.scores()) < 1e-10


def test_a_cache_that_was_changed_is_refused() -> None:
    model = made("llama")
    swap_position(model, "fox", quiet=True)
    ids = tokens(2, N)
    with torch.no_grad():
        cache = model(ids[:, :8], use_cache=True).past_key_values
        cache.reorder_cache(torch.tensor([1, 0]))
        with refusal("got one that was changed", whole=False):
            model(ids[:, 8:9], cache=cache)


def test_refusals(tmp_path: Path) -> None:
    model = made("llama")
    with refusal("expected a method, a dictionary by type of layer, or 2 methods, got 1"):
        swap_position(model, ["alibi"])
    with refusal("expected a method for each type of layer (full_attention), got 'local'"):
        swap_position(model, {"local": "alibi"})
    with refusal("expected a model that reads text", whole=False):
        swap_position(made("vit"), "alibi")
    done = swap_position(model, "alibi", quiet=True)
    with refusal("undo() that first", whole=False):
        swap_position(model, "rotary")
    with refusal("expected no output_attentions", whole=False):
        model(tokens(1, 5), output_attentions=True)
    done.save(tmp_path)
    held = json.loads((tmp_path / "headway.json").read_text())
    for changed, words in (
        ({"positions": {}}, "those of another model"),
        ({"positions": {key: {"method": "nothing", "parameters": 0} for key in held["positions"]}}, "nothing"),
        ({"positions": {key: {"method": 3, "parameters": 0} for key in held["positions"]}}, "the text of a method"),
        ({"positions": {key: {"method": "t5", "parameters": 0} for key in held["positions"]}}, "without"),
        ({"rope": 1}, "positions"),
    ):
        (tmp_path / "headway.json").write_text(json.dumps(changed))
        with refusal(words, whole=False):
            headway.hf.load(tmp_path)
    done.undo()
