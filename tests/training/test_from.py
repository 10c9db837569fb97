"""Continuing a checkpoint of transformers: `headway train --from`."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from typer.testing import CliRunner

import headway.hf
from headway.cli import app
from headway.shapes import HeadwayError
from headway.training import RunResult, TrainSettings, load_model, train
from headway.training.checkpoint import read_checkpoint
from headway.training.vocabulary import alphabet

TEXT = "the cat sat on the mat and the dog sat on the log; " * 60
SETTINGS: dict[str, Any] = {
    "steps": 6,
    "batch": 2,
    "length": 16,
    "lr": 5e-3,
    "checkpoint_every": 2,
    "validate_every": 3,
}


def tokenizer(folder: Path) -> None:
    byte_level = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet())}, merges=[]))
    byte_level.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    byte_level.decoder = decoders.ByteLevel()
    made: Any = transformers.PreTrainedTokenizerFast
    made(tokenizer_object=byte_level).save_pretrained(folder)


def llama() -> Any:
    sizes: Any = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "max_position_embeddings": 64}
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=256, **sizes))


def gpt2() -> Any:
    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=260, n_embd=32, n_layer=1, n_head=2))


def saved(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("from")
    (path / "text.txt").write_text(TEXT)
    saved(llama(), path / "llama")
    saved(gpt2(), path / "gpt2")
    return path


def run(folder: Path, out: Path, base: str = "llama", lora: int | None = None, **more: Any) -> RunResult:
    settings = TrainSettings(**{**SETTINGS, **more.pop("settings", {})})
    config = {"from": str(folder / base), "lora": lora}
    return train(folder / "text.txt", out=out, model_config=config, settings=settings, **more)


def command(*arguments: object) -> Any:
    found = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if isinstance(found.exception, HeadwayError):
        raise found.exception
    return found


def after(steps: int) -> Any:
    """Stops after so many steps."""
    left = iter(range(steps - 1))
    return lambda: next(left, None) is None


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.eval()(torch.arange(40)[None] * 5).logits
    return found


@pytest.mark.parametrize(("base", "lora"), [("llama", None), ("gpt2", None), ("llama", 2), ("gpt2", 2)])
def test_a_killed_run_is_resumed_to_the_bit(folder: Path, tmp_path: Path, base: str, lora: int | None) -> None:
    whole = run(folder, tmp_path / "whole", base, lora)
    first = run(folder, tmp_path / "parts", base, lora, stop=after(3))
    assert first.history.status == "interrupted"
    assert not (tmp_path / "parts/checkpoint").exists()
    second = run(folder, tmp_path / "parts", base, lora)
    assert (second.resumed_from, second.history.status) == (3, "done")
    assert second.history.loss == whole.history.loss
    assert second.history.validation_loss == whole.history.validation_loss
    assert whole.history.loss[-1] < whole.history.loss[0]
    for name in ("adapter_model.safetensors",) if lora else ("model.safetensors", "config.json"):
        written = [(tmp_path / part / "checkpoint" / name).read_bytes() for part in ("whole", "parts")]
        assert written[0] == written[1]


def test_plain_transformers_loads_what_is_written(folder: Path, tmp_path: Path) -> None:
    done = run(folder, tmp_path, settings={"steps": 2})
    plain: Any = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint")
    assert torch.equal(logits(plain), logits(done.model))
    assert not torch.equal(logits(plain), logits(llama()))
    words: Any = transformers.AutoTokenizer.from_pretrained(tmp_path / "checkpoint")
    assert (
        words("the cat").input_ids == transformers.AutoTokenizer.from_pretrained(folder / "llama")("the cat").input_ids
    )
    configs = [json.loads((at / "config.json").read_text()) for at in (folder / "llama", tmp_path / "checkpoint")]
    assert configs[0] == configs[1]


def test_adapters_alone_are_trained_and_saved(folder: Path, tmp_path: Path) -> None:
    done = run(folder, tmp_path, lora=2, settings={"steps": 2})
    kept = read_checkpoint(tmp_path / "checkpoints/step-00000002").model
    assert kept
    assert all("lora_" in name for name in kept)
    for name, parameter in llama().named_parameters():
        frozen = done.model.get_parameter(f"base_model.model.{name}".replace("_proj.w", "_proj.base_layer.w"))
        assert torch.equal(frozen, parameter)
    opened = headway.hf.load(tmp_path / "checkpoint")
    torch.testing.assert_close(logits(opened), logits(done.model))
    assert (logits(opened) - logits(llama())).abs().max() > 1e-3


def test_weights_are_written_in_the_dtype_they_had(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "text.txt", tmp_path)
    saved(llama().to(torch.bfloat16), tmp_path / "half")
    run(tmp_path, tmp_path / "run", "half", settings={"steps": 1})
    kept = read_checkpoint(tmp_path / "run/checkpoints/step-00000001").model
    assert {x.dtype for x in kept.values()} == {torch.float32}
    plain = headway.hf.load(tmp_path / "run/checkpoint")
    assert {x.dtype for x in plain.parameters()} == {torch.bfloat16}


def test_a_changed_base_is_refused_and_a_moved_one_is_not(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "text.txt", tmp_path)
    shutil.copytree(folder / "llama", tmp_path / "llama")
    run(tmp_path, tmp_path / "run", stop=after(2))
    run(folder, tmp_path / "run", stop=after(1))
    model: Any = headway.hf.load(tmp_path / "llama")
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    model.save_pretrained(tmp_path / "llama")
    with pytest.raises(HeadwayError, match=r"expected the model of the run in .* got another \(sha256 was"):
        run(tmp_path, tmp_path / "run")


def test_adapters_that_read_more_than_themselves_are_refused(folder: Path, tmp_path: Path) -> None:
    run(folder, tmp_path, lora=1, settings={"steps": 1})
    written = tmp_path / "checkpoint/adapter_config.json"
    values = json.loads(written.read_text())
    for changed, said in (
        ({"peft_type": "XLORA"}, "adapters of LoRA"),
        ({"megatron_config": {"a": 1}}, "adapters of LoRA"),
        ({"init_lora_weights": "corda"}, "adapters of LoRA"),
        ({"base_model_name_or_path": "meta/llama"}, "write its path there"),
        ({"r": 3}, "adapters that fit"),
    ):
        written.write_text(json.dumps(values | changed))
        with pytest.raises(HeadwayError, match=said):
            headway.hf.load(tmp_path / "checkpoint")


def test_a_finished_run_is_continued_to_more_steps_and_its_checkpoint_restored(folder: Path, tmp_path: Path) -> None:
    run(folder, tmp_path, settings={"steps": 1})
    before = (tmp_path / "checkpoint/model.safetensors").read_bytes()
    shutil.rmtree(tmp_path / "checkpoint")
    assert "already finished" in run(folder, tmp_path, settings={"steps": 1}).notes[0]
    assert (tmp_path / "checkpoint/model.safetensors").read_bytes() == before
    run(folder, tmp_path, settings={"steps": 2})
    assert (tmp_path / "checkpoint/model.safetensors").read_bytes() != before


def test_no_rate_is_a_small_one(folder: Path, tmp_path: Path) -> None:
    assert run(folder, tmp_path, settings={"steps": 1, "lr": None}).run.settings.lr == 5e-5


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"model_config": {"dim": 8}}, "got dim: leave them out"),
        ({"model_config": {"lora": 0}}, "lora"),
        ({"watch": 1}, "no watch and no log_dir"),
        ({"vocabulary": "bpe"}, "no vocabulary beside a checkpoint"),
        ({"settings": TrainSettings(length=65)}, "length of at most 64"),
        ({"settings": TrainSettings(length=16, steps=9, drop_position=1)}, "drop_position"),
    ],
)
def test_what_a_checkpoint_does_not_have_is_refused(folder: Path, tmp_path: Path, given: Any, said: str) -> None:
    config = {"from": str(folder / "llama"), **given.pop("model_config", {})}
    with pytest.raises(HeadwayError, match=said):
        train(folder / "text.txt", out=tmp_path, **{"settings": TrainSettings(length=16), **given}, model_config=config)


def test_models_that_predict_no_next_token_are_refused(folder: Path, tmp_path: Path) -> None:
    sizes: Any = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    saved(transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=256, **sizes)), tmp_path / "bert")
    saved(transformers.LlamaModel(llama().config), tmp_path / "headless")
    for base, said in (("bert", "see those after them"), ("headless", "which does not")):
        with pytest.raises(HeadwayError, match=f"predicts the next token.*{said}"):
            train(folder / "text.txt", out=tmp_path / "run", model_config={"from": str(tmp_path / base)})


def test_a_folder_without_its_tokenizer_is_refused(folder: Path, tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path / "llama")
    with pytest.raises(HeadwayError, match=r"expected a tokenizer.json beside the weights, got none"):
        train(folder / "text.txt", out=tmp_path / "run", model_config={"from": str(tmp_path / "llama")})


def test_adapters_need_peft(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(HeadwayError, match="pip install peft"):
        run(folder, tmp_path, lora=2)


def test_the_command(folder: Path, tmp_path: Path) -> None:
    base = ["train", folder / "text.txt", "--out", tmp_path / "run", "--length", 16, "--batch", 2, "--steps", 1]
    said = command(*base, "--from", folder / "llama")
    assert said.exit_code == 0
    assert f"--model {tmp_path / 'run/checkpoint'}" in said.output
    shown = command("explain", "the cat", "--model", tmp_path / "run/checkpoint")
    assert shown.exit_code == 0
    with pytest.raises(HeadwayError, match=r"open .*/checkpoint"):
        load_model(tmp_path / "run")
    with pytest.raises(HeadwayError, match="expected --from with --lora"):
        command(*base, "--lora", 2)
    with pytest.raises(HeadwayError, match="expected no vocabulary with --from"):
        command(*base, "--from", folder / "llama", "--vocabulary", "bytes")
