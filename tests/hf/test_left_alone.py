"""Models whose attention is not of the usual kind are left alone, with a reason of their own."""

from __future__ import annotations

from typing import Any

import pytest
import transformers as hf

import headway.hf
from headway.shapes import HeadwayError

BERT = {"vocab_size": 96, "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 24}
LAYERS = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 3, "decoder_attention_heads": 3}
SEQ2SEQ = LAYERS | {"vocab_size": 96, "d_model": 24, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24}
T5 = {"vocab_size": 96, "d_model": 24, "d_kv": 8, "num_heads": 3, "num_layers": 1, "d_ff": 24}
FUNNEL = {"vocab_size": 96, "d_model": 24, "n_head": 3, "d_head": 8, "d_inner": 24, "block_sizes": [1, 1]}


@pytest.mark.parametrize(
    ("model", "config", "sizes", "reason"),
    [
        (hf.BigBirdModel, hf.BigBirdConfig, BERT, "BigBirdBlockSparseAttention: its attention is block-sparse"),
        (hf.BigBirdPegasusModel, hf.BigBirdPegasusConfig, SEQ2SEQ, "its attention is block-sparse"),
        (hf.LongformerModel, hf.LongformerConfig, BERT | {"attention_window": 4}, "sliding window, with global tokens"),
        (hf.LEDModel, hf.LEDConfig, SEQ2SEQ | {"attention_window": 4}, "sliding window, with global tokens"),
        (hf.FunnelBaseModel, hf.FunnelConfig, FUNNEL, "its queries are pooled"),
        (hf.LongT5EncoderModel, hf.LongT5Config, T5, "in blocks and their neighbours"),
        (
            hf.LongT5EncoderModel,
            hf.LongT5Config,
            T5 | {"encoder_attention_type": "transient-global"},
            "a summary of each block",
        ),
    ],
)
def test_reason(model: Any, config: Any, sizes: dict[str, Any], reason: str) -> None:
    """Each says why."""
    with pytest.raises(HeadwayError, match=reason):
        headway.hf.accelerate(model(config(**sizes)))
