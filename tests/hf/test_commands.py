"""``headway accelerate`` and ``headway verify``, on a folder as a stranger would have it."""

from __future__ import annotations

import json

import pytest
import torch
import transformers as hf
from models import randomised
from typer.testing import CliRunner

import headway.hf.inputs
from headway.cli import app
from headway.hf.loading import as_lengths, load
from headway.hf.verify import verify
from headway.shapes import HeadwayError

SMALL = {"vocab_size": 96, "d_model": 24, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 3}


@pytest.fixture
def folder(tmp_path):
    model = randomised(hf.T5EncoderModel(hf.T5Config(**SMALL, relative_attention_max_distance=20)), torch.float32)
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def run(*arguments):
    found = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return found.exit_code, found.output, found.exception


def test_accelerate_says_what_it_does_and_how_fast(folder, tmp_path):
    status, out, _ = run("accelerate", folder)
    assert status == 0
    assert "1 × T5Attention" in out
    assert "T5 buckets, a table by distance · native · exact" in out
    assert "bias of 2,048 tokens 48 →" in out
    options = ["--bench", "--lengths", "16,24", "--rounds", 1, "--out", tmp_path / "out"]
    status, out, _ = run("accelerate", folder, *options)
    assert status == 0, out
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert [(row["tokens"], row["mode"]) for row in rows] == [
        (n, mode) for n in (16, 24) for mode in ("forward", "forward+backward")
    ]
    for row in rows:
        assert row["speed"] == pytest.approx(row["own"] / row["ours"])
        assert row["own_memory"] > 0
    text = (tmp_path / "out" / "report.html").read_text()
    assert "transformers 自带实现" in text


def test_verify_compares_and_fails_when_the_formula_is_wrong(folder, monkeypatch):
    status, out, _ = run("verify", folder, "--lengths", "1,30")
    assert status == 0, out
    assert "as exact as the model's own code" in out
    from headway.hf.families.t5 import BucketAttention

    right = BucketAttention.by_distance
    monkeypatch.setattr(BucketAttention, "by_distance", lambda self, device: right(self, device) * 1.001)
    status, out, _ = run("verify", folder, "--lengths", "30")
    assert status == 1
    assert "too far: " in out


def test_verify_leaves_the_model_as_it_was(folder):
    model = load(folder).train()
    model.get_input_embeddings().weight.grad = torch.ones_like(model.get_input_embeddings().weight)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    assert verify(model, lengths=(9,)).passed
    assert model.training
    assert model.config._attn_implementation == "sdpa"
    assert bool((model.get_input_embeddings().weight.grad == 1).all())
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


def test_a_model_that_knows_no_float64_says_so():
    sizes = {"vocab_size": 96, "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3, "head_dim": 8}
    config = hf.AutoConfig.for_model(
        "openai_privacy_filter", **sizes, num_key_value_heads=1, num_local_experts=4, pad_token_id=0
    )
    with pytest.raises(
        HeadwayError, match="expected a model whose own code computes in float64, to compare with, got Op"
    ):
        headway.hf.verify(hf.AutoModel.from_config(config), lengths=(9,))


def test_families_and_lengths():
    with pytest.raises(HeadwayError, match="a folder or a family of transformers such as t5"):
        headway.hf.inputs.of_family("nonsense")
    with pytest.raises(HeadwayError, match=r"pi0: it would have 3,\d+,\d+,\d+ parameters, because its parts have siz"):
        headway.hf.inputs.of_family("pi0")
    with pytest.raises(
        HeadwayError, match=r"got nougat: Unrecognized model type for subconfig: donut_swin\..*\[\.\.\.\]$"
    ):
        headway.hf.inputs.of_family("nougat")
    assert headway.hf.inputs.of_family("gpt_oss").config.num_local_experts == 16
    for text in ("", "a", "0", "1,-2", "1.5"):
        with pytest.raises(HeadwayError, match="numbers of tokens"):
            as_lengths(text)
