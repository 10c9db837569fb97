"""Checkpoints predict next tokens: their own logits, their own cache, through the interface of headway's models."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from models import randomised
from test_reading import save
from test_recording import SMALL
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from headway import generate
from headway.backends.native import library as native
from headway.hf.reading import Reader, reader
from headway.inspect import recorded
from headway.shapes import HeadwayError
from headway.training.generation import Sampling
from headway.views import view
from headway.views.generating import written
from headway.views.predicting import next_tokens, predictor_of

TEXT = "The cat 猫 sat."
SIZES = SMALL | {"vocab_size": 260}
MODELS = {
    "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**SIZES, n_positions=64)),
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**SIZES)),
    "mistral": lambda: hf.MistralForCausalLM(hf.MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=6)),
}


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Reader]:
    folder = tmp_path_factory.mktemp("predicts")
    return {name: reader(save(folder / name, randomised(make()))) for name, make in MODELS.items()}


@pytest.mark.parametrize("name", MODELS)
def test_probabilities_are_the_models_own(readers: dict[str, Reader], name: str) -> None:
    opened = readers[name]
    ids = opened.tokens(TEXT)[0]
    with torch.no_grad():
        p = opened.model(input_ids=ids).logits[0].double().softmax(-1)
    question = opened.question(TEXT)
    true = [float(p[place, token]) for place, token in enumerate(ids[0, 1:])]
    assert view("prediction", question).figures[1].series[0][1][1:] == pytest.approx(true, rel=1e-9)
    found = next_tokens(question)
    assert [one["p"] for one in found["tokens"]] == pytest.approx(p[-1].topk(5).values.tolist(), rel=1e-9)
    added = {one["added"] for one in next_tokens(question, 260)["tokens"]}
    assert added == {None, "<s>"} | {chr(byte) for byte in range(128)}


@pytest.mark.parametrize("name", MODELS)
def test_a_short_text_waits_for_no_compiler(
    readers: dict[str, Reader], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compiled(source: str) -> Any:
        assert source == "rotate.cpp", source  # a small one
        return library(source)

    library = native.loaded

    monkeypatch.setattr(native, "loaded", compiled)
    question = readers[name].question(TEXT)
    for shown in ("stepper", "wall", "prediction"):
        view(shown, question)
    next_tokens(question)


@pytest.mark.parametrize("name", MODELS)
def test_generation_attends_as_the_whole_text_does(readers: dict[str, Reader], name: str) -> None:
    question = readers[name].question(TEXT, layer=1)
    predictor = predictor_of(question)
    steps = written(question, predictor, 5, Sampling(seed=2))
    ids = list(generate(predictor.model, predictor.ids, tokens=5, seed=2))
    assert [one.token for one in steps] == ids
    whole = torch.cat((predictor.ids, torch.tensor([ids])), 1)
    layer = recorded(readers[name].model, input_ids=whole)[1]
    tokens = predictor.ids.shape[1]
    for step, one in enumerate(steps):
        now = tokens + step
        expected = layer.weights(slice(now - 1, now))[0, :, 0, :now].double()
        assert torch.allclose(one.weights, expected, atol=1e-5)
    cached = 5 if name == "mistral" else tokens + 4  # a window of 6 keeps 5 tokens before the next
    heads = 2 if name == "mistral" else 4
    assert steps[-1].held.shape == (1, heads, cached, 8)
    assert steps[-1].held.needed == 2 * 2 * heads * cached * 8 * 4
    assert len(view("generation", question).figures[0].frames) == 12


def of_words(words: list[str]) -> hf.PreTrainedTokenizerFast:
    """A tokenizer of whole words, which sets [CLS] before a text and [SEP] after it."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    made = Tokenizer(WordLevel({word: n for n, word in enumerate(special + words)}, unk_token="[UNK]"))
    made.pre_tokenizer = Whitespace()
    made.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    return hf.PreTrainedTokenizerFast(tokenizer_object=made, **names)


def test_an_encoder_predicts_each_word_with_a_mask_in_its_place() -> None:
    model = randomised(hf.BertForMaskedLM(hf.BertConfig(**SIZES | {"vocab_size": 9}))).float().eval()
    opened = Reader(model, of_words(["the", "cat", "sat", "down"]), "bert")
    ids = opened.tokens("the cat foo sat")[0]
    assert ids.tolist() == [[2, 5, 6, 1, 7, 3]]

    def at(place: int, masked: list[int]) -> torch.Tensor:
        with torch.no_grad():
            found: torch.Tensor = model(input_ids=torch.tensor([masked])).logits[0, place]
        return found.double().softmax(-1)

    p = [at(place, [4 if place == n else one for n, one in enumerate(ids[0].tolist())]) for place in range(6)]
    question = opened.question("the cat foo sat")
    shown = view("prediction", question)
    bars, along, _, table = shown.figures
    assert along.series[0][1] == pytest.approx([None, *(float(p[n][ids[0, n]]) for n in range(1, 5)), None])
    assert [name["en"] for name, _ in table.rows] == ["1 · the", "2 · cat", "3 · foo", "4 · sat"]
    # the last query stands after the text: the word before it is masked instead
    assert bars.title["en"] == "Likeliest tokens at a mask in place of “sat” (token 4)"
    assert bars.series[0][1] == pytest.approx(p[4].sort(descending=True).values.tolist())
    bits = sum(-math.log2(p[n][ids[0, n]]) for n in range(1, 5)) / 4
    assert f"a token costs {bits:.3g} bits" in shown.finding["en"]
    assert "“[CLS]” “[SEP]” stand around the text" in " ".join(note["en"] for note in shown.notes)
    found = next_tokens(question)  # at a mask between the text and [SEP]
    assert found["masked"]
    assert [one["p"] for one in found["tokens"]] == pytest.approx(at(5, [2, 5, 6, 1, 7, 4, 3]).topk(5).values.tolist())
    with pytest.raises(HeadwayError, match="got an encoder, which predicts masked tokens and no next one"):
        view("generation", question)

    # a reader's own mask: what stands there is asked for, and no token is behind it
    asked = opened.question("the [MASK] sat")
    assert opened.tokens("the [MASK] sat")[0].tolist() == [[2, 5, 4, 7, 3]]
    shown = view("prediction", asked)
    bars, along, _, table = shown.figures
    first = at(2, [2, 5, 4, 7, 3]).topk(6)
    assert bars.series[0][1][:5] == pytest.approx(first.values[:5].tolist())
    likeliest = opened.tokenizer.convert_ids_to_tokens(first.indices[0].item())
    assert f"At “[MASK]” (token 2) the likeliest token is “{likeliest}”" in shown.finding["en"]
    assert along.series[0][1][2] is None
    assert table.rows[1][0]["en"] == "2 · [MASK]"
    assert table.rows[1][1][:3] == ["—"] * 3
    known = [at(1, [2, 4, 4, 7, 3])[5], at(3, [2, 5, 4, 4, 3])[7]]
    other = view("prediction", replace(asked, query=1)).finding["en"]
    assert f"a token costs {-sum(math.log2(p) for p in known) / 2:.3g} bits" in other
    assert view("prediction", opened.question("[MASK]")).finding["en"].startswith("At “[MASK]”")
    opened.tokenizer.mask_token = None
    with pytest.raises(HeadwayError, match="got an encoder, which predicts no next token"):
        view("prediction", opened.question("the cat sat"))


def test_positions_that_begin_after_padding_are_found_by_the_text(tmp_path: Path) -> None:
    config = hf.RobertaConfig(**SIZES | {"pad_token_id": 1}, is_decoder=True)
    question = reader(save(tmp_path, randomised(hf.RobertaForCausalLM(config)))).question(TEXT)
    question.options = {"shift": 5}
    assert "change" in view("prediction", question).finding["en"]
    assert question.predictor.model.first == 2


@pytest.mark.parametrize(("name", "said"), [("gpt2", "`learned(max_length=64)` change"), ("llama", "unchanged")])
def test_shifting_positions(readers: dict[str, Reader], name: str, said: str) -> None:
    question = readers[name].question(TEXT)
    question.options = {"shift": 5}
    assert said in view("prediction", question).finding["en"]


def test_what_predicts_nothing_says_so(readers: dict[str, Reader], tmp_path: Path) -> None:
    question = readers["gpt2"].question(TEXT)
    question.options = {"shift": 60}
    with pytest.raises(HeadwayError, match="expected positions that GPT2LMHeadModel has, got some up to 75"):
        view("prediction", question)
    silent: dict[str, Any] = {
        "no language-model head": hf.GPT2Model(readers["gpt2"].model.config),
        "an encoder reads": hf.BertLMHeadModel(hf.BertConfig(**SIZES, is_decoder=False)),
    }
    for said, model in silent.items():
        told = Reader(model.eval(), readers["gpt2"].tokenizer, "x").question(TEXT)
        assert said in next_tokens(told)["none"]["en"]
        with pytest.raises(HeadwayError, match="expected a decoder"):
            view("generation", told)
    alibi = hf.BloomForCausalLM(hf.BloomConfig(**SIZES))
    told = Reader(alibi.eval(), readers["gpt2"].tokenizer, "x").question(TEXT)
    told.options = {"shift": 1}
    with pytest.raises(HeadwayError, match="takes positions"):
        view("prediction", told)
