"""Methods that act on the embedding, against independent implementations.

Held against: transformers (XLM, Marian, M2M-100, Speech2Text, GPT-2, BERT).
"""

from __future__ import annotations

import pytest
import torch
from common import close, randomise
from torch import Tensor
from transformers import BertConfig, GPT2Config, GPT2Model, MarianConfig, MarianModel, XLMConfig, XLMModel
from transformers.models.bert.modeling_bert import BertEmbeddings
from transformers.models.m2m_100.modeling_m2m_100 import M2M100SinusoidalPositionalEmbedding
from transformers.models.speech_to_text.modeling_speech_to_text import Speech2TextSinusoidalPositionalEmbedding

from headway import Learned, Sinusoidal

POS = torch.arange(600)[None]


def ours(dim: int, **given: object) -> Tensor:
    return Sinusoidal(**given)(torch.zeros(1, 600, dim), POS)[0]


@pytest.mark.parametrize("dim", [2, 16, 64, 130])
def test_interleaved_as_in_the_paper_and_xlm(dim: int) -> None:
    sizes = {"emb_dim": dim, "n_layers": 1, "n_heads": 1, "n_words": 9}
    model = XLMModel(XLMConfig(**sizes, sinusoidal_embeddings=True, max_position_embeddings=600))
    close(ours(dim), model.get_parameter("position_embeddings.weight"), 1e-5)


@pytest.mark.parametrize("dim", [2, 16, 64, 130])
def test_split_as_in_marian(dim: int) -> None:
    sizes = {"d_model": dim, "vocab_size": 9, "pad_token_id": 8, "encoder_layers": 1, "decoder_layers": 1}
    sizes |= {f"{side}_{what}": 1 for side in ("encoder", "decoder") for what in ("attention_heads", "ffn_dim")}
    model = MarianModel(MarianConfig(**sizes, max_position_embeddings=600, eos_token_id=0, decoder_start_token_id=8))
    close(ours(dim, layout="split"), model.get_parameter("encoder.embed_positions.weight"), 1e-5)


@pytest.mark.parametrize("dim", [4, 16, 64, 130])
@pytest.mark.parametrize(
    "theirs", [M2M100SinusoidalPositionalEmbedding, Speech2TextSinusoidalPositionalEmbedding], ids=["m2m", "speech"]
)
def test_split_with_endpoint_as_in_fairseq(dim: int, theirs: type) -> None:
    """fairseq's angles are float32 products: at position 600 they err by 3e-5 and more. Its first token has position 2,
    because 0 and 1 are special; that is a matter of ids, not of the formula.
    """
    got = theirs(600, dim, padding_idx=1)(torch.full((1, 598), 5))[0]
    close(ours(dim, layout="split", endpoint=True)[2:], got, 2e-4)


def test_learned_as_in_gpt2() -> None:
    theirs = GPT2Model(GPT2Config(n_embd=24, n_head=2, n_layer=0, n_positions=300, vocab_size=9, embd_pdrop=0.0))
    theirs.ln_f = torch.nn.Identity()
    position = Learned(max_length=300).attach(24)
    randomise(position)
    with torch.no_grad():
        theirs.wpe.weight.copy_(position.weight)
    x, pos = torch.randn(2, 7, 24), torch.tensor([[0, 1, 2, 3, 100, 298, 299], [5, 5, 5, 4, 3, 2, 1]])
    got, expected = position(x, pos), theirs(inputs_embeds=x, position_ids=pos).last_hidden_state
    assert torch.equal(got, expected)
    weight = torch.randn_like(got)
    (got * weight).sum().backward()
    (expected * weight).sum().backward()
    close(position.weight.grad, theirs.wpe.weight.grad, 1e-5)


def test_learned_as_in_bert() -> None:
    theirs = BertEmbeddings(
        BertConfig(hidden_size=24, max_position_embeddings=50, vocab_size=9, hidden_dropout_prob=0.0)
    ).eval()
    theirs.LayerNorm = torch.nn.Identity()
    randomise(theirs)
    position = Learned(max_length=50).attach(24)
    with torch.no_grad():
        position.weight.copy_(theirs.position_embeddings.weight)
    x = torch.randn(2, 50, 24)
    close(position(x), theirs(inputs_embeds=x) - theirs.token_type_embeddings.weight[0], 1e-5)
