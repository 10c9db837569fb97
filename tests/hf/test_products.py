"""Linear layers of other people's models, multiplied by the faster library."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from common import by_onednn
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, T5Config, T5EncoderModel

from headway.hf import accelerate, products

TOKENS = torch.randint(1, 300, (1, 256), generator=torch.Generator().manual_seed(0))


def t5() -> T5EncoderModel:
    config = T5Config(vocab_size=300, d_model=256, d_kv=64, d_ff=512, num_layers=1, num_heads=4, dropout_rate=0.0)
    return T5EncoderModel(config)


def gpt2() -> GPT2LMHeadModel:
    drop = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    special = dict.fromkeys(("bos_token_id", "eos_token_id"))
    return GPT2LMHeadModel(GPT2Config(vocab_size=300, n_embd=256, n_layer=1, n_head=4, **drop, **special))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    monkeypatch.setattr(products, "halved", lambda: True)
    return by_onednn(monkeypatch)


def results(model: Any) -> dict[str, Tensor]:
    """Output and gradients."""
    model.zero_grad()
    out = model(input_ids=TOKENS)[0]
    (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)).sum().backward()
    return {"out": out.detach(), **{name: x.grad.clone() for name, x in model.named_parameters() if x.grad is not None}}


@pytest.mark.parametrize(("make", "linears"), [(t5, 6), (gpt2, 5)])
def test_a_model_is_as_exact_and_is_given_back(
    make: Callable[[], Any], linears: int, calls: list[tuple[int, ...]]
) -> None:
    model = make()
    usual, names = results(model), list(model.state_dict())
    done = accelerate(model, quiet=True)
    assert len(done.linears) == linears
    assert f"{linears} × linear layer" in str(done)
    assert "oneDNN" in str(done)
    got = results(model)
    assert len(calls) >= 2 * linears
    assert list(model.state_dict()) == names
    done.undo()
    count = len(calls)
    assert all(torch.equal(one, usual[name]) for name, one in results(model).items())
    assert len(calls) == count
    exact = results(model.double())
    for name, truth in exact.items():
        off, fair = ((one[name].double() - truth).abs().max() / truth.abs().max() for one in (got, usual))
        assert off <= max(2 * fair, 1e-6), name


def test_hooks_copies_and_files(calls: list[tuple[int, ...]]) -> None:
    model = t5()
    seen: list[int] = []
    wide = model.encoder.block[0].layer[1].DenseReluDense.wi
    wide.register_forward_hook(lambda *_: seen.append(1))
    kept = pickle.dumps(wide.state_dict())
    accelerate(model, quiet=True)
    results(model)
    assert seen == [1]
    assert pickle.dumps(wide.state_dict()) == kept
    stream = io.BytesIO()
    torch.save(model.encoder.block[0].layer[0].SelfAttention.q, stream)
    stream.seek(0)
    loaded = torch.load(stream, weights_only=False)
    assert loaded.__dict__["forward"].layer is loaded
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for one in twin.modules():
            if isinstance(one, nn.Linear):
                one.weight.zero_()
    assert not torch.equal(model(input_ids=TOKENS)[0], twin(input_ids=TOKENS)[0])


def test_what_somebody_else_has_replaced_stays(calls: list[tuple[int, ...]]) -> None:
    model = t5()
    attention = model.encoder.block[0].layer[0].SelfAttention
    attention.q.forward = own = attention.q.forward
    done = accelerate(model, quiet=True)
    assert len(done.linears) == 5
    attention.k.forward = later = lambda x: own(x)
    done.undo()
    assert attention.q.__dict__["forward"] is own
    assert attention.k.__dict__["forward"] is later
    assert "forward" not in attention.v.__dict__


@pytest.mark.filterwarnings("ignore")  # of torch, about its own quantization
def test_other_dtypes_and_torchs_quantization(calls: list[tuple[int, ...]]) -> None:
    model = t5().bfloat16()
    accelerate(model, quiet=True)
    model(input_ids=TOKENS)
    assert not calls
    model = t5()
    accelerate(model, quiet=True)
    quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    assert not any(type(one) is nn.Linear for one in quantized.modules())
    quantized(input_ids=TOKENS)
    assert not calls


def test_on_other_processors_linear_layers_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "halved", lambda: False)
    model = t5()
    done = accelerate(model, quiet=True)
    assert not done.linears
    assert "linear" not in str(done)
    assert not any("forward" in one.__dict__ for one in model.modules())
