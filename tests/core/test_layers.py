"""Layers with their own options, other residual streams, and a model in a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from common import refusal
from safetensors.torch import load_file, save_file

from headway import Causal, HeadwayError, Transformer, Window
from headway.config import LayerConfig, TransformerConfig
from headway.masks import Chunks
from headway.memory import peak_memory
from headway.positions import methods

GEMMA = [{"window": 7, "position": "rotary(base=10000)"}] * 5 + [{"position": "rotary(base=1000000)"}]
SMOL = [{}, {}, {}, {"position": "none"}]
BASE: dict[str, Any] = {"vocab": 11, "dim": 32, "layers": 6, "heads": 4}
TOKENS = torch.randint(0, 11, (2, 30), generator=torch.Generator().manual_seed(0))


def test_layers_are_as_the_pattern_says() -> None:
    model = Transformer(**BASE, pattern=GEMMA)
    found = model.stack.attentions()
    assert [attention.mask for attention in found] == [*[Window(7)] * 5, Causal()]
    assert [attention.position.spec() for attention in found] == [*["rotary"] * 5, "rotary(base=1000000.0)"]
    assert len({id(attention.position) for attention in found}) == 2  # equal methods are one object
    assert [a.position.spec() for a in Transformer(**BASE, pattern=SMOL).stack.attentions()][2:5] == [
        "rotary",
        "none",
        "rotary",
    ]
    options = [{"softcap": 5.0, "sinks": True, "qk_norm": True, "scale": 1.0, "log_scale": 64, "chunk": 4}, {}]
    first, second = Transformer(**BASE, pattern=options).stack.attentions()[:2]
    assert (first.softcap, first.sinks is None, first.q_norm is None, first.scale, first.log_scale) == (
        5.0,
        False,
        False,
        1.0,
        64,
    )
    assert (second.softcap, second.sinks, second.q_norm, second.log_scale) == (None, None, None, None)
    assert repr(first.mask) == repr(Causal() & Chunks(4))
    encoder = Transformer(**BASE, kind="encoder", pattern=[{"window": 3}])
    assert encoder.stack.attentions()[0].mask == Window(3, 3)


@pytest.mark.parametrize("pattern", [GEMMA, SMOL, [{"position": "alibi"}, {"position": "t5"}]])
def test_a_pattern_decodes_as_one_pass_and_keeps_causality(pattern: list[dict[str, Any]]) -> None:
    torch.manual_seed(0)
    model = Transformer(**BASE, pattern=pattern).eval()
    with torch.no_grad():
        whole = model(TOKENS)
        cache = model.new_cache()
        steps = torch.cat([model(TOKENS[:, n : n + 1], cache=cache) for n in range(TOKENS.shape[1])], 1)
        changed = TOKENS.clone()
        changed[:, 20:] = 3
        assert torch.allclose(steps, whole, atol=1e-5)
        assert torch.allclose(model(changed)[:, :20], whole[:, :20], atol=1e-6)


def test_a_pattern_goes_through_json_and_back() -> None:
    config = TransformerConfig(**BASE, pattern=GEMMA)
    assert TransformerConfig.of(json.loads(json.dumps(config.plain()))) == config
    model = Transformer(config)
    assert TransformerConfig.of(json.loads(json.dumps(model.config.plain()))) == model.config
    longer = model.extended(4096, "linear", trained=64)
    assert all("interpolated" in a.position.spec() for a in longer.stack.attentions())
    assert longer.config.pattern[0].position == longer.stack.attentions()[0].position.spec()
    model.drop_position()
    assert {a.position.spec() for a in model.stack.attentions()} == {"none"}
    assert Transformer.from_config(model.config.plain()).config == model.config


@pytest.mark.parametrize(
    "options", [{"sandwich_norm": True}, {"parallel": True}, {"parallel": True, "sandwich_norm": True}]
)
def test_other_residual_streams(options: dict[str, bool]) -> None:
    torch.manual_seed(0)
    model = Transformer(**BASE, **options).double().eval()
    block = model.stack.blocks[0]
    x = torch.randn(2, 9, 32, dtype=torch.float64)
    residual, mlp = block.attention, block.mlp
    normed = residual.norm(x)
    after = [one.after or torch.nn.Identity() for one in (residual, mlp)]
    attended = x + after[0](residual.part(normed))
    expected = attended + after[1](mlp.part(normed if options.get("parallel") else mlp.norm(attended)))
    found = block(
        x, pos=None, coordinates=None, mask=None, cache=None, context=None, context_pos=None, context_cache=None
    )
    assert torch.allclose(found, expected, atol=1e-12)
    assert sum("norm" in name for name, _ in mlp.named_parameters()) == (0 if options.get("parallel") else 1)


def test_layers_computed_again_give_the_same_gradients_with_less_memory() -> None:
    torch.manual_seed(0)
    model = Transformer(**{**BASE, "dim": 128, "layers": 8}, dropout=0.1, attention_dropout=0.1)
    tokens = torch.randint(0, 11, (4, 256))

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        torch.manual_seed(5)
        model(tokens).square().mean().backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    plain, held = gradients(), peak_memory(gradients)
    model.checkpoint_layers()
    again, less = gradients(), peak_memory(gradients)
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))
    assert less < 0.6 * held


def test_devices_and_dtypes() -> None:
    model = Transformer(**BASE, device="meta", dtype=torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {("meta", torch.bfloat16)}
    assert Transformer(**BASE, dtype=torch.float64)(TOKENS).dtype is torch.float64
    with refusal("expected dtype as a floating dtype, as torch.bfloat16, got torch.int64"):
        Transformer(**BASE, dtype=torch.int64)


# --- a folder -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", methods())
def test_a_saved_model_is_the_same_model(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Transformer(**BASE, position=name).eval()
    assert model.save(tmp_path / "new" / "model") == tmp_path / "new" / "model"
    again = Transformer.load(tmp_path / "new" / "model")
    assert again.config == model.config
    assert not again.training
    assert torch.equal(again(TOKENS), model(TOKENS))
    held = load_file(tmp_path / "new" / "model" / "model.safetensors")
    assert sum(x.numel() for x in held.values()) == sum(
        x.numel() for x in [*model.parameters(), *(b for n, b in model.named_buffers() if n in model.state_dict())]
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_it_has_the_weights_of_the_file_rounded_once(dtype: torch.dtype, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Transformer(**BASE, position="t5", tie=True, dtype=dtype)
    model.save(tmp_path)
    for other in (None, torch.float64, torch.float32, torch.bfloat16, torch.float16):
        again = Transformer.load(tmp_path, dtype=other)
        assert again.head.weight is again.embedding.weight
        for name, weight in model.state_dict().items():
            expected, got = weight.to(other or dtype), again.state_dict()[name]
            assert got.dtype is expected.dtype
            assert torch.equal(got, expected), name
    with refusal("expected dtype as a floating dtype, as torch.bfloat16, got torch.int8"):
        Transformer.load(tmp_path, dtype=torch.int8)


def test_what_does_not_fit_is_refused_by_name(tmp_path: Path) -> None:
    model = Transformer(**BASE, position="t5")
    folder = model.save(tmp_path / "m")
    weights = load_file(folder / "model.safetensors")
    with pytest.raises(HeadwayError, match=r"^expected a folder with config\.json, as Transformer"):
        Transformer.load(tmp_path)
    for change, said in (
        (lambda w: w.pop("stack.position.weight"), "got a file without stack.position.weight"),
        (lambda w: w.update(more=torch.zeros(1)), "got a file with unknown more"),
        (lambda w: w.update({"embedding.weight": torch.zeros(2, 2)}), "embedding.weight in .* of shape"),
        (lambda w: w.update({"embedding.weight": w["embedding.weight"].int()}), "as torch.float32, got torch.int32"),
    ):
        changed = dict(weights)
        change(changed)
        save_file(changed, folder / "model.safetensors")
        with pytest.raises(HeadwayError, match=said):
            Transformer.load(folder)
    (folder / "model.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(HeadwayError, match="got a damaged file"):
        Transformer.load(folder)
    (folder / "config.json").write_text('{"model": {"vocab": 3, "position": "t6"}}')
    with pytest.raises(HeadwayError, match="did you mean t5"):
        Transformer.load(folder)
    for text, said in (
        ("[]", "expected its content to be an object, got a list of 0"),
        ('{"headway": "1"}', "expected model, which is missing, in .*config.json"),
        ('{"model": 3}', "expected model to be an object, got 3"),
        ('{"model": {"dropout": NaN}}', "expected JSON in .*config.json, .*: NaN is not JSON"),
    ):
        (folder / "config.json").write_text(text)
        with pytest.raises(HeadwayError, match=said):
            Transformer.load(folder)


def test_refusals() -> None:
    with refusal("expected pattern to be a list of layers, each an object of options, got 'local'"):
        Transformer(**BASE, pattern="local")
    with refusal("expected a layer of known names, got 'windows': did you mean window?"):
        Transformer(**BASE, pattern=[{"windows": 3}])
    with refusal("expected a layer's own position to act inside attention, as rotary, got sinusoidal", whole=False):
        Transformer(**BASE, pattern=[{"position": "sinusoidal"}])
    with refusal("expected post_norm without sandwich_norm and parallel, got both: leave one out"):
        Transformer(**BASE, post_norm=True, parallel=True)
    assert LayerConfig(softcap=3.0).plain() == {"softcap": 3.0}
