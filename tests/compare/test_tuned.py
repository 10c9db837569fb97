"""Comparing position methods of one checkpoint: `headway compare --model`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from common import refusal
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from typer.testing import CliRunner

import headway.hf
from headway.cli import app
from headway.compare import compute as module
from headway.compare.cells import RESULTS
from headway.compare.claims import Claims
from headway.compare.run import Comparison, Job, compare
from headway.compare.settings import OF_CHECKPOINT
from headway.training.files import read_json
from headway.training.vocabulary import alphabet

SMALL: dict[str, Any] = {"train_length": 8, "test_lengths": (8, 32), "seeds": (0,), "steps": 3, "batch": 4}
SIZES: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}


def save(folder: Path, model: Any, scale: float = 0.3) -> Path:
    """A checkpoint folder with a tokenizer of bytes, and random matrices large enough for position to matter."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(std=scale, generator=generator)
    model.save_pretrained(folder)
    words = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet())}, merges=[]))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    made: Any = hf.PreTrainedTokenizerFast
    made(tokenizer_object=words).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("compare")
    (path / "text.txt").write_text("the cat sat on the mat and the dog sat on the log; " * 60, encoding="utf-8")
    llama = hf.LlamaForCausalLM(hf.LlamaConfig(vocab_size=260, max_position_embeddings=16, **SIZES))
    save(path / "llama", llama)
    sizes: Any = {"n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 16, "bos_token_id": 1, "eos_token_id": 2}
    save(path / "gpt2", hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=260, **sizes)))
    return path


def small(folder: Path, model: str = "llama", **changes: Any) -> Comparison:
    given = {"positions": ("own", "t5"), "model": str(folder / model), "text": str(folder / "text.txt"), **changes}
    return Comparison(**{**SMALL, **given})


@pytest.fixture(scope="module")
def finished(folder: Path) -> dict[str, Any]:
    return compare(small(folder), folder / "out")


def test_methods_of_one_checkpoint_are_compared(folder: Path, finished: dict[str, Any]) -> None:
    own, t5 = finished["cells"]
    for cell in (own, t5):
        assert (cell["status"], cell["train"]["steps"]) == ("ok", [1, 2, 3])
        assert [(test["length"], test["status"]) for test in cell["tests"]] == [(8, "ok"), (32, "ok")]
        assert cell["tests"][0]["bits_per_byte"] > 0
    assert own["position_parameters"] is None
    assert t5["position_parameters"] == t5["parameters"] - own["parameters"] > 0
    assert own["train"]["loss"][0] != t5["train"]["loss"][0]
    assert finished["methods"][0]["title"] == "The checkpoint's own (rotary)"
    settings = finished["settings"]
    assert (settings["lr"], settings["vocabulary"]) == (5e-5, "the tokenizer in llama")
    assert settings["tokenizer"]
    assert not {"dim", "layers", "heads"} & set(settings)
    assert any("begins with the weights of llama, which were trained with rotary" in x for x in finished["notes"])
    assert {view["key"] for view in finished["views"]["own"]} == {"rotation", "distance"}
    assert {view["key"] for view in finished["views"]["t5"]} == {"bias", "distance"}
    assert json.dumps(read_json(folder / "out/results.json", RESULTS)) == json.dumps(finished)


def test_own_is_the_checkpoint_as_it_is(folder: Path) -> None:
    """Before a step is made its loss is that of plain transformers; with its own method given anew, too."""
    job = Job.of(small(folder), Claims(folder / "as it is"))
    inputs, targets = job.task.batches(8, 4, 0)(0)
    plain: Any = hf.AutoModelForCausalLM.from_pretrained(folder / "llama")
    with torch.no_grad():
        wanted = plain(inputs).logits
        for spec in ("own", "rotary"):
            torch.testing.assert_close(job.models.build(spec, 0, job.task.vocab)(inputs), wanted)
        assert (job.models.build("none", 0, job.task.vocab)(inputs) - wanted).abs().max() > 1e-3
    assert targets.shape == inputs.shape


def test_only_what_is_new_is_computed(
    folder: Path, finished: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[Any] = []

    class Counted(module.Trainer):
        def run(self, *args: Any, **given: Any) -> Any:
            history = super().run(*args, **given)
            ran.append((self.settings.seed, self.resumed_from))
            return history

    monkeypatch.setattr(module, "Trainer", Counted)
    shutil.copytree(folder / "out", tmp_path / "out")
    again = compare(small(folder), tmp_path / "out")
    assert not ran
    assert again["cells"] == finished["cells"]
    more = compare(small(folder, test_lengths=(8, 16, 32)), tmp_path / "out")
    assert ran == [(0, 3), (0, 3)]
    assert [cell["train"] for cell in more["cells"]] == [cell["train"] for cell in finished["cells"]]
    assert [cell["tests"][2] for cell in more["cells"]] == [cell["tests"][1] for cell in finished["cells"]]

    save(tmp_path / "llama", headway.hf.load(folder / "llama"), scale=0.2)
    ran.clear()
    other = compare(small(folder, model=str(tmp_path / "llama"), positions=("own",)), tmp_path / "out")
    assert ran == [(0, None)]
    assert other["cells"][0]["train"] != finished["cells"][0]["train"]


def test_a_table_of_positions_ends_and_a_method_in_its_place_does_not(folder: Path, tmp_path: Path) -> None:
    arguments = ["compare", folder / "text.txt", "--model", folder / "gpt2", "--positions", "own,alibi"]
    arguments += ["--train-length", 8, "--test-lengths", "8,32", "--steps", 2, "--batch", 2, "--seeds", "0"]
    shown = CliRunner().invoke(app, [*map(str, arguments), "--out", str(tmp_path)])
    assert shown.exit_code == 0, shown.output
    own, alibi = read_json(tmp_path / "results.json", RESULTS)["cells"]
    assert [test["status"] for test in own["tests"]] == ["ok", "cannot"]
    assert "expected a text that the model can read, got 32 tokens" in own["tests"][1]["message"]
    assert [test["status"] for test in alibi["tests"]] == ["ok", "ok"]
    assert "own" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_refusals(folder: Path, tmp_path: Path) -> None:
    assert Comparison(model="x").positions == OF_CHECKPOINT
    with refusal("expected task text, on which a checkpoint is tuned, got recall", whole=False):
        Comparison(model="x", task="recall")
    with refusal("expected no sizes beside a checkpoint, which has its own, got dim, heads", whole=False):
        Comparison(model="x", dim=96, heads=4)
    with refusal("expected no vocabulary beside a checkpoint", whole=False):
        Comparison(model="x", vocabulary="bpe")
    with refusal("expected no extend beside a checkpoint, got yarn", whole=False):
        Comparison(model="x", extend=("yarn",))
    with refusal("expected length of at most 16", whole=False):
        compare(small(folder, train_length=32, test_lengths=(32,)), tmp_path / "out")
    bert: Any = hf.BertForMaskedLM(hf.BertConfig(vocab_size=260, max_position_embeddings=16, **SIZES))
    save(tmp_path / "bert", bert)
    with refusal("expected a model that predicts the next token", whole=False):
        compare(small(tmp_path, "bert", text=str(folder / "text.txt")), tmp_path / "out")
    model = headway.hf.load(folder / "llama")
    shutil.copytree(folder / "llama", tmp_path / "swapped")
    headway.hf.swap_position(model, "alibi", quiet=True).save(tmp_path / "swapped")
    with refusal("expected a checkpoint with its own positions", whole=False):
        compare(small(tmp_path, "swapped", text=str(folder / "text.txt")), tmp_path / "out")
    assert not (tmp_path / "out").exists()
