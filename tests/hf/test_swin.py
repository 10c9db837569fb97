"""Swin and its relatives with headway's kernels: values, gradients and everything of the model's own stay."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from models import accelerated, as_exact, randomised, same
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    DonutSwinConfig,
    DonutSwinModel,
    MaskFormerSwinConfig,
    Swin2SRConfig,
    Swin2SRModel,
    SwinBackbone,
    SwinConfig,
    SwinForImageClassification,
    Swinv2Config,
    Swinv2ForImageClassification,
)
from transformers.models.maskformer.modeling_maskformer_swin import MaskFormerSwinModel

from headway.hf.families import swin

SMALL: dict[str, Any] = {"patch_size": 2, "embed_dim": 12, "depths": [2, 2], "num_heads": [3, 6], "window_size": 3}
SMALL |= {"image_size": 24, "mlp_ratio": 2.0, "drop_path_rate": 0.0}
KINDS: dict[str, tuple[type, Any, int]] = {
    "swin": (SwinForImageClassification, SwinConfig(**SMALL), 24),
    "backbone": (SwinBackbone, SwinConfig(**SMALL, out_features=["stage1", "stage2"]), 21),
    "donut": (DonutSwinModel, DonutSwinConfig(**SMALL), 24),
    "maskformer": (MaskFormerSwinModel, MaskFormerSwinConfig(**SMALL), 26),
    "v2": (Swinv2ForImageClassification, Swinv2Config(**SMALL, pretrained_window_sizes=[3, 2]), 24),
    "sr": (Swin2SRModel, Swin2SRConfig(**SMALL | {"patch_size": 1, "image_size": 12}), 12),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the kernel compute these few scores too."""
    monkeypatch.setattr(swin, "FEW", 0)


def built(kind: str, dtype: torch.dtype = torch.float64) -> Any:
    """A tiny model."""
    made, config, _ = KINDS[kind]
    return randomised(made(copy.deepcopy(config)), dtype)


def images(kind: str, rows: int = 2) -> Tensor:
    """Random images of the size that the kind takes."""
    size = KINDS[kind][2]
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, 3, size, size, generator=generator, dtype=torch.float64)


def run(kind: str, rows: int = 2, **more: Any) -> Any:
    """A function of a model: its main result."""
    pixels = images(kind, rows)

    def first(model: Any) -> Tensor:
        out = model(pixels.to(next(model.parameters()).dtype), **more)
        found = out.logits if "logits" in out else out[0]
        return found if isinstance(found, Tensor) else torch.cat([x.flatten() for x in found])

    return first


@every_kind
@pytest.mark.parametrize("rows", [1, 3])
def test_values_and_gradients(kind: str, rows: int) -> None:
    """Output and all gradients are the model's own, with shifted windows and images that are padded."""
    same(built(kind), run(kind, rows))


@every_kind
@pytest.mark.parametrize("rows", [1, 3])
def test_few_scores(kind: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same without the kernel, which they leave alone."""
    monkeypatch.setattr(swin, "FEW", 2**19)
    monkeypatch.setattr(swin, "attend", lambda *_, **__: pytest.fail("called the kernel"))
    same(built(kind), run(kind, rows))
    as_exact(built(kind, torch.float32), run(kind, rows), torch.bfloat16 if rows == 1 else torch.float32)


@pytest.mark.parametrize("few", [0, 2**19])
@pytest.mark.parametrize("kind", ["donut", "v2"])
def test_what_hides_is_a_number(kind: str, few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Added once, or by Swin V2 twice; any other number shows it."""
    monkeypatch.setattr(swin, "FEW", few)
    model = built(kind)
    at = next(module for name, module in model.named_modules() if name.endswith("attention.self"))
    x, mask = torch.randn(8, 9, 12, dtype=torch.float64), torch.randn(4, 9, 9, dtype=torch.float64)
    expected = at(x, mask)[0]
    with accelerated(model):
        torch.testing.assert_close(at(x, mask)[0], expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", ["donut", "v2"])
def test_few_scores_are_dropped_as_by_the_model(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swin, "FEW", 2**19)
    made, config, _ = KINDS[kind]
    model = randomised(made(type(config)(**config.to_dict() | {"attention_probs_dropout_prob": 0.4}))).train()

    def dropped() -> Tensor:
        torch.manual_seed(0)
        out: Tensor = run(kind)(model)
        return out

    expected = dropped()
    with accelerated(model):
        torch.testing.assert_close(dropped(), expected, rtol=0, atol=1e-9)
    assert not torch.allclose(run(kind)(model.eval()), expected)


def test_eager() -> None:
    """Swin's eager attention, whose softmax is in float32."""
    model = built("swin")
    model.set_attn_implementation("eager")
    expected = run("swin")(model)
    with accelerated(model):
        torch.testing.assert_close(run("swin")(model), expected, rtol=0, atol=1e-6)


@every_kind
def test_training(kind: str) -> None:
    """In training, with gradient checkpointing, which recomputes each layer."""
    made, config, _ = KINDS[kind]
    still = dict.fromkeys(("attention_probs_dropout_prob", "hidden_dropout_prob"), 0.0)
    model = randomised(made(type(config)(**config.to_dict() | still))).train()
    if model.supports_gradient_checkpointing:
        model.activation_checkpointing_enable()
    same(model, run(kind))


@every_kind
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_exact(kind: str, dtype: torch.dtype) -> None:
    """As exact as the model's own code."""
    as_exact(built(kind, torch.float32), run(kind), dtype)


@every_kind
def test_autocast(kind: str) -> None:
    """Under autocast, as exact as the model's own code."""
    model = built(kind, torch.float32)

    def cast(model: Any) -> Tensor:
        if next(model.parameters()).dtype is torch.float64:
            return run(kind)(model)
        with torch.autocast("cpu", torch.bfloat16):
            return run(kind)(model)

    as_exact(model, cast, torch.float32)


@pytest.mark.parametrize("kind", ["swin", "donut", "v2"])
def test_attentions(kind: str) -> None:
    """Attentions, where asked for, are those of the model's own code."""
    model = built(kind)
    if kind == "swin":
        model.set_attn_implementation("eager")  # with SDPA it has none
    expected = model(images(kind), output_attentions=True).attentions
    with accelerated(model):
        found = model(images(kind), output_attentions=True).attentions
    assert len(found) == len(expected) > 0
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


@every_kind
def test_files(kind: str) -> None:
    """Names, files, copies and hooks of an accelerated model."""
    model = built(kind)
    names, file = list(model.state_dict()), io.BytesIO()
    expected = run(kind)(built(kind))
    with accelerated(model):
        assert list(model.state_dict()) == names
        copies = [copy.deepcopy(model)]
        if kind != "backbone":  # whose own hooks cannot be pickled
            torch.save(model, file)
            file.seek(0)
            copies.append(torch.load(file, weights_only=False))
        for other in copies:
            torch.testing.assert_close(run(kind)(other), expected, rtol=0, atol=1e-10)
        fired = []
        part = next(m for name, m in model.named_modules() if name.endswith((".query", ".q_proj")))
        part.register_forward_hook(lambda *_: fired.append(1))
        run(kind)(model)
        assert fired


@every_kind
def test_lora(kind: str) -> None:
    """An adapter on queries and values takes part, and gets the same gradients."""
    peft = pytest.importorskip("peft")
    targets = ["q_proj", "v_proj"] if kind in ("swin", "backbone") else ["query", "value"]
    model = built(kind)
    peft.inject_adapter_in_model(peft.LoraConfig(r=3, target_modules=targets), model)
    same(randomised(model), run(kind))


class NoScores(TorchDispatchMode):
    """Fails on any tensor with a value for each image, window, head and pair of a window's 9 tokens."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for x in torch.utils._pytree.tree_leaves(out):
            if isinstance(x, Tensor) and tuple(x.shape[-2:]) == (9, 9):
                assert x.numel() <= 16 * 3 * 9 * 9, function
        return out


@pytest.mark.parametrize("kind", ["swin", "donut", "v2"])
def test_no_scores(kind: str) -> None:
    """Nothing of all pairs is made for each image; the model's own code makes scores."""
    model = built(kind, torch.float32)
    if kind == "swin":
        model.set_attn_implementation("eager")
    with pytest.raises(AssertionError), NoScores():
        run(kind, 5)(model)
    with accelerated(model), NoScores():
        run(kind, 5)(model).sum().backward()


def test_report() -> None:
    """What was done is printed."""
    with accelerated(built("v2")) as done:
        assert "4 × Swinv2SelfAttention" in str(done)
        assert "continuous bias" in str(done)
