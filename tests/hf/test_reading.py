"""Checkpoint folders in the views: their own tokenizer's labels, the parts of an encoder-decoder, cross attention."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from common import refusal
from models import randomised
from test_recording import BOTH, SMALL, T5, made
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from typer.testing import CliRunner

import headway
from headway.cli import app
from headway.hf.reading import Reader, reader
from headway.inspect import Trace, recorded
from headway.inspect.head import Head
from headway.studio.fields import asked
from headway.studio.library import Heavy, Library
from headway.views import CROSS, view
from headway.views.question import Question, Recording

TEXT = "The cat 猫 sat."


def save(folder: Path, model: Any) -> Path:
    """A checkpoint folder with a tokenizer of bytes."""
    model.float().save_pretrained(folder)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(
        models.BPE({"<pad>": 0, "<s>": 1, "</s>": 2} | {x: i + 3 for i, x in enumerate(alphabet)}, [])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def gpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = SMALL | {"vocab_size": 260, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
    return save(tmp_path_factory.mktemp("gpt") / "small", randomised(hf.GPT2LMHeadModel(hf.GPT2Config(**sizes))))


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    sizes = SMALL | T5 | {"vocab_size": 260, "decoder_start_token_id": 0}
    model = hf.T5ForConditionalGeneration(hf.T5Config(**sizes))
    return reader(save(tmp_path_factory.mktemp("t5") / "t5", randomised(model)))


def test_labels_are_what_tokens_are_of_the_text(gpt: Path) -> None:
    ids, labels = reader(gpt).tokens("a 猫 b")
    assert labels == ["a", "␣", "猫₁", "猫₂", "猫₃", "␣", "b"]
    assert ids.shape == (1, 7)


def test_the_commands_open_a_folder(gpt: Path, tmp_path: Path) -> None:
    run = CliRunner().invoke
    shown = run(app, ["explain", TEXT, "--model", str(gpt), "--layer", "1", "--head", "2"])
    assert shown.exit_code == 0, shown.output
    assert "d_model = 32" in shown.output
    page = tmp_path / "page.html"
    assert run(app, ["explain", TEXT, "--model", str(gpt), "--html", str(page)]).exit_code == 0
    assert "learned" in page.read_text(encoding="utf-8")
    out = tmp_path / "split.svg"
    drawn = run(app, ["draw", "split", "--model", str(gpt), "--text", TEXT, "--out", str(out)])
    assert drawn.exit_code == 0, drawn.output
    assert "position" in out.read_text(encoding="utf-8")


def test_the_studio_opens_a_folder(gpt: Path) -> None:
    library = Library([gpt.parent])
    (entry,) = library.entries().values()
    assert entry.kind == "checkpoint"
    (shown,) = library.plain()["runs"]
    assert {name: shown[name] for name in ("position", "dim", "layers", "heads")} == {
        "position": "gpt2",
        "dim": 32,
        "layers": 2,
        "heads": 4,
    }
    question = library.question(
        asked({"view": "head", "model": {"run": entry.id}, "text": TEXT, "layer": 1}), lambda text: None
    )  # type: ignore[arg-type, return-value]
    assert question.labels[:3] == ["T", "h", "e"]
    assert view("split", question).finding["en"]
    with pytest.raises(Heavy):
        Library([gpt.parent], quick=True).question(
            asked({"view": "head", "model": {"run": entry.id}, "text": TEXT}), lambda text: None
        )  # type: ignore[arg-type, return-value]


def test_the_parts_of_an_encoder_decoder(both: Reader) -> None:
    assert len(both.question(TEXT).trace) == 2
    own = both.question(TEXT, target="Le chat", layer=1)
    assert own.labels == ["<pad>", *"Le chat".replace(" ", "␣")]
    assert own.position.spec() == "t5"
    cross = both.question(TEXT, target="Le chat", part="cross", layer=1, head=3)
    assert cross.keys is not None
    assert len(cross.keys) == len(TEXT.encode())
    shown = view("head", cross).figures[0]
    assert shown.values.shape == (len(cross.labels), len(cross.keys))  # type: ignore[union-attr]
    for name in CROSS:
        assert "first" in view(name, cross).finding["en"] or name == "softmax"
    with refusal("expected one of the views of cross attention", whole=False):
        view("stepper", cross)
    with refusal("expected part encoder, decoder, cross, got 'all'"):
        both.question(TEXT, part="all")


def test_cross_attention_of_headways_own_layers() -> None:
    attention = headway.Attention(dim=32, heads=4, position="none")
    with headway.inspect.record(attention) as trace, torch.no_grad():
        attention(torch.randn(1, 5, 32), context=torch.randn(1, 9, 32))
    drawing = headway.draw(trace, view="head", labels=["a", "b", "c", "d", "e"], keys=[f"key{i}" for i in range(9)])
    texts = {text.get_text() for axes in drawing.axes for text in axes.get_xticklabels()}
    assert any("key" in text for text in texts)
    assert isinstance(trace, Trace)


def scores(trace: Any, layer: int = 0) -> Any:
    return Head(trace[layer], 1).scores


def test_a_checkpoint_is_looked_at_after_a_change(gpt: Path, both: Reader, tmp_path: Path) -> None:
    opened = reader(gpt)
    asked = opened.question(TEXT, layer=1, head=1)
    ids = opened.tokens(TEXT)[0]
    changes = asked.recording.changes
    assert changes is not None
    there = torch.arange(ids.shape[1])[None] + 5
    assert torch.equal(scores(changes.shifted(5)), scores(recorded(opened.model, ids, position_ids=there)))
    assert "nothing changes" not in view("whatif", asked).finding["en"]  # a learned table
    order = torch.arange(ids.shape[1]).flip(0)
    assert torch.equal(scores(changes.shuffled(order)), scores(recorded(opened.model, ids[:, order])))
    trace, made = changes.swapped("alibi")
    assert not made
    assert trace[1].attention.position.spec() == "alibi"
    assert torch.equal(scores(recorded(opened.model, ids)), scores(asked.trace))  # and it is taken back
    said = view("whatif", replace(asked, options={"change": "swap", "position": "fire"}))
    assert "untrained" in said.notes[0]["en"]
    llama = hf.LlamaForCausalLM(hf.LlamaConfig(**SMALL | {"vocab_size": 260}))
    turned = reader(save(tmp_path / "llama", randomised(llama))).question(TEXT, head=1)
    assert "nothing changes" in view("whatif", turned).finding["en"]
    encoder = both.question(TEXT, head=1)
    assert encoder.recording.changes is not None
    assert len(encoder.recording.changes.shuffled(order)) == len(encoder.trace)
    with refusal("expected a model to which positions can be given, got t5, which counts them itself", whole=False):
        view("whatif", encoder)


def test_roberta_counts_from_its_own_first_position(tmp_path: Path) -> None:
    sizes = SMALL | {"vocab_size": 260, "pad_token_id": 1, "max_position_embeddings": 64}
    opened = reader(save(tmp_path / "roberta", randomised(hf.RobertaForMaskedLM(hf.RobertaConfig(**sizes)))))
    changes = opened.question(TEXT).recording.changes
    ids = opened.tokens(TEXT)[0]
    assert changes is not None
    there = torch.arange(ids.shape[1])[None] + 2 + 3
    assert torch.equal(scores(changes.shifted(3)), scores(recorded(opened.model, ids, position_ids=there)))


def test_the_studio_swaps_the_position_of_a_checkpoint(gpt: Path) -> None:
    library = Library([gpt], quick=False)
    run = next(iter(library.entries()))
    given = {"text": TEXT, "model": {"run": run}, "layer": 1, "head": 1}

    def question(**more: Any) -> Question:
        return library.question(asked(given | more), lambda text: pytest.fail(text))

    beside = question(view="sidebyside", others=[{"fresh": {"position": "alibi"}}, {"fresh": {"position": "t5"}}])
    assert [one.position.spec() for one in beside.others] == ["alibi", "t5"]
    assert [bool(one.notes) for one in beside.others] == [False, True]
    assert len(view("sidebyside", beside).figures[0].columns) == 3
    view("whatif", question(view="whatif", options={"change": "swap", "position": "rotary"}))
    with refusal("expected a model of at most", whole=False):
        question(view="whatif", options={"change": "swap", "position": "learned(max_length=1000000000)"})


def test_unknown_tokens_are_said(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\ncat\n")
    sizes = SMALL | {"vocab_size": 6}
    opened = Reader(randomised(hf.BertModel(hf.BertConfig(**sizes))), hf.BertTokenizer(str(tmp_path / "vocab.txt")), "")
    assert not opened.question("cat cat").notes
    question = opened.question("猫 cat 狗 猫")
    assert question.labels == ["[CLS]", "猫", "cat", "狗", "猫", "[SEP]"]
    (note,) = view("head", question).notes[-1:]
    assert note["en"].startswith("3 of 6 tokens are unknown to the vocabulary ([UNK])")
    assert note["en"].endswith(": 猫 狗")
    assert "6 个词元中有 3 个" in note["zh"]


@pytest.mark.parametrize(
    ("name", "formulas"),
    [
        ("llama", ["X = norm(E)", "X = norm(x)"]),
        ("olmo2", ["X = E", "X = x"]),
        ("gpt2", ["X = norm(E + P)", "X = norm(x)"]),
        ("albert", ["X = E + P", "X = norm(x)"]),
    ],
)
def test_where_x_comes_from_is_as_the_model_has_it(name: str, formulas: list[str]) -> None:
    trace = recorded(made(name), torch.arange(3, 8)[None])
    labels = [str(i) for i in range(5)]
    steps = [view("stepper", Question(Recording(trace=trace), labels, layer=layer)).figures[0] for layer in (0, 1)]
    assert [one.stages[0].formula for one in steps] == formulas  # type: ignore[union-attr]


def test_refusals(gpt: Path) -> None:
    opened = reader(gpt)
    with refusal("expected a text, got an empty one: give a sentence"):
        opened.question("")
    with refusal("is no encoder-decoder", whole=False):
        opened.question(TEXT, part="cross")
    with refusal("expected a text that small can read, got 70 tokens", whole=False):
        opened.question("a" * 70)
    with refusal("expected a tokenizer beside the weights", whole=False):
        Reader(opened.model, None, "small").question(TEXT)


def test_a_model_of_sound_is_recorded_too() -> None:
    sizes = SMALL | BOTH | {"max_source_positions": 20, "max_target_positions": 20, "num_mel_bins": 8}
    model = randomised(hf.WhisperModel(hf.WhisperConfig(**sizes)))
    sound = torch.randn(1, 8, 40, dtype=torch.float64)
    trace = recorded(model, input_features=sound, decoder_input_ids=torch.tensor([[1, 5, 6]]))
    assert [layer.crosses for layer in trace] == [False, False, False, True, False, True]
