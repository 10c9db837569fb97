"""LoRA by peft and quantization by torchao, applied to whole models as their documentation does."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from headway import Attention, Causal, HeadwayError, KVCache, LatentAttention, Transformer

pytestmark = pytest.mark.filterwarnings("ignore")  # of peft and torchao, about what they import


def model(position: str = "t5") -> Transformer:
    torch.manual_seed(0)
    return Transformer(50, dim=32, layers=2, heads=4, kv_heads=2, position=position).eval()


def ids() -> Tensor:
    return torch.randint(50, (2, 9), generator=torch.Generator().manual_seed(1))


def test_lora_is_trained_saved_loaded_and_merged(tmp_path: Path) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model

    base, tokens = model()(ids()), ids()
    adapted = get_peft_model(model(), LoraConfig(r=4, target_modules=["q", "k", "v", "o"]))
    assert torch.equal(adapted(tokens), base)
    adapted(tokens).square().sum().backward()
    given = {name for name, p in adapted.named_parameters() if p.grad is not None}
    assert given
    assert all("lora_" in name for name in given)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    changed = adapted(tokens)
    assert (changed - base).abs().max() > 0.1
    adapted.save_pretrained(tmp_path)
    assert torch.equal(PeftModel.from_pretrained(model(), tmp_path)(tokens), changed)
    merged = copy.deepcopy(adapted).merge_and_unload()
    assert type(merged) is Transformer
    torch.testing.assert_close(merged(tokens), changed, rtol=1e-4, atol=1e-4)


def test_heads_have_no_matrix_of_their_own_until_an_adapter_is_merged() -> None:
    from peft import LoraConfig, get_peft_model

    from headway.inspect import record, split

    config = LoraConfig(r=4, target_modules=["q"], init_lora_weights=False)
    adapted, tokens = get_peft_model(model("sinusoidal"), config).eval(), ids()
    attention = adapted.base_model.model.stack.attentions()[0]
    with pytest.raises(HeadwayError, match=r"^expected a projection that is one matrix, .* got peft.*Linear: merge an"):
        attention.head(0)
    with record(adapted.base_model.model) as trace:
        changed = adapted(tokens)
    with pytest.raises(HeadwayError, match=r"^expected a projection that is one matrix"):
        split(trace[0])
    merged = adapted.merge_and_unload()
    x = torch.randn(3, 32)
    head = merged.stack.attentions()[0].head(1).q
    torch.testing.assert_close(x @ head, merged.stack.attentions()[0].q(x)[:, 8:16])
    torch.testing.assert_close(merged(tokens), changed, rtol=1e-4, atol=1e-4)


def with_lora(attention: LatentAttention) -> torch.nn.Module:
    from peft import LoraConfig, get_peft_model

    made: torch.nn.Module = get_peft_model(
        attention, LoraConfig(r=4, target_modules=["q", "k", "v"], init_lora_weights=False)
    )
    return made.eval()


def test_lora_reaches_latent_attention_with_a_cache_and_without() -> None:
    torch.manual_seed(0)
    attention, x = LatentAttention(32, 4, latent_dim=16, position_dim=8, mask=Causal()).eval(), torch.randn(2, 9, 32)
    base = attention(x)
    adapted = with_lora(attention)
    changed = adapted(x)
    assert (changed - base).abs().max() > 0.1
    cache = KVCache()
    with torch.no_grad():
        parts = [adapted(x[:, :8], cache=cache), adapted(x[:, 8:], cache=cache)]
    torch.testing.assert_close(torch.cat(parts, 1), changed)
    torch.testing.assert_close(adapted.merge_and_unload()(x), changed, rtol=1e-4, atol=1e-4)


def test_a_matrix_that_is_not_there_cannot_be_moved() -> None:
    adapted = with_lora(LatentAttention(32, 4, mask=Causal()))
    with pytest.raises(HeadwayError, match=r"expected k as torch\.nn\.Linear, .* leave absorb out"):
        adapted(torch.randn(1, 3, 32), absorb=True)


@pytest.mark.parametrize("kind", ["Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig"])
def test_torchao_quantizes_models(kind: str) -> None:
    from torchao import quantization

    def quantized(module: torch.nn.Module) -> torch.nn.Module:
        quantization.quantize_(module, getattr(quantization, kind)())
        return module

    changes(model("rotary"), quantized, ids())


def changes(module: torch.nn.Module, change: Callable[[torch.nn.Module], torch.nn.Module], x: Tensor) -> None:
    """Results of the changed module are close to those of the module, and other ones."""
    with torch.no_grad():
        expected = module(x)
        error = change(module)(x) - expected
    assert 0 < error.std() < 0.05 * expected.std()


@pytest.mark.parametrize("kind", [Attention, LatentAttention])
def test_torchao_quantizes_attention_with_a_cache(kind: type[Attention | LatentAttention]) -> None:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    def quantized(module: torch.nn.Module) -> torch.nn.Module:
        quantize_(module, Int8WeightOnlyConfig())
        return module

    torch.manual_seed(0)
    attention, x = kind(32, 4, position="rotary", mask=Causal()).eval(), torch.randn(2, 9, 32)
    changes(attention, quantized, x)
    with pytest.raises(
        HeadwayError, match=r"expected a projection that is one matrix, .*torchao.*and quantize a copy$"
    ):
        attention.head(0)
    cache = KVCache()
    with torch.no_grad():
        parts = [attention(x[:, :8], cache=cache), attention(x[:, 8:], cache=cache)]
        torch.testing.assert_close(torch.cat(parts, 1), attention(x))
