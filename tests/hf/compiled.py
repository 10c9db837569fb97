"""Accelerated models compiled without a break in their graph, equal to themselves; run by test_interface.py."""

from __future__ import annotations

import sys

import torch
import transformers as hf
from models import accelerated, far, gradients, padding, randomised, tokens

SMALL = {"vocab_size": 96, "hidden_size": 48, "intermediate_size": 48, "num_hidden_layers": 1}
SMALL |= {"num_attention_heads": 6, "num_key_value_heads": 3}
llama = randomised(hf.LlamaForCausalLM(hf.LlamaConfig(**SMALL)), torch.float32)
t5 = randomised(
    hf.T5ForConditionalGeneration(
        hf.T5Config(
            vocab_size=96,
            d_model=40,
            d_kv=12,
            d_ff=48,
            num_layers=1,
            num_heads=3,
            dropout_rate=0.0,
            decoder_start_token_id=0,
        )
    ),
    torch.float32,
)
bloom = randomised(
    hf.BloomForCausalLM(hf.BloomConfig(vocab_size=96, hidden_size=42, n_layer=1, n_head=3, hidden_dropout=0.0)),
    torch.float32,
)
deberta = randomised(
    hf.DebertaV2Model(
        hf.DebertaV2Config(
            vocab_size=96, hidden_size=42, num_hidden_layers=1, num_attention_heads=3, intermediate_size=48,
            relative_attention=True, position_buckets=8, max_position_embeddings=64, pos_att_type=["p2c", "c2p"],
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )
    ),
    torch.float32,
)  # fmt: skip


def run(model, n=31):
    if getattr(model, "_orig_mod", model).config.is_encoder_decoder:
        return model(
            input_ids=tokens(2, n), attention_mask=padding(2, n, "right"), decoder_input_ids=tokens(2, 20)
        ).logits
    more = {"use_cache": False} if hasattr(model, "lm_head") else {}
    return model(input_ids=tokens(2, n), attention_mask=padding(2, n, "right"), **more)[0]


for model in [{"llama": llama, "t5": t5, "bloom": bloom, "deberta": deberta}[name] for name in sys.argv[2:]]:
    with accelerated(model):
        if sys.argv[1] == "step":
            given = {"input_ids": tokens(1, 9), "max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
            expected = model.generate(**given, cache_implementation="static", disable_compile=True)
            assert torch.equal(model.generate(**given, cache_implementation="static"), expected)
            continue
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
        if sys.argv[1] == "training":
            (expected, grads), (found, new) = (gradients(each, run) for each in (model, compiled))
            assert far(found, expected) < 1e-4
            for name, grad in grads.items():
                assert far(new["_orig_mod." + name], grad) < 1e-3, name
        else:
            with torch.no_grad():
                for n in (31, 47):
                    assert far(run(compiled, n), run(model, n)) < 1e-4
