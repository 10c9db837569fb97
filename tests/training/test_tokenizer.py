from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from tiny_model import tiny_settings

from headway.characters import Piece
from headway.compare.tasks import TextTask
from headway.inspect.explain import explain
from headway.shapes import HeadwayError
from headway.studio.library import tokens
from headway.training.generation import stream_text
from headway.training.ours import own_results
from headway.training.run import load_model, train
from headway.training.text import read_text
from headway.training.tokenizer_json import TokenizerJson
from headway.training.vocabularies import Wanted, keep, vocabulary_from_json
from headway.training.vocabulary import token_texts

TEXT = read_text().data[:40_000]
HARD = "  añb 語言 🙂\r\n\tHello<|endoftext|>  world <s> the‥ ".encode()
LEVEL = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
SPACE = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
SPECIAL = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}


def trained(normalizer: Any, pre_tokenizer: Any, alphabet: list[str]) -> dict[str, Any]:
    """The values of a tokenizer.json whose BPE was learned on TEXT, with all that may surround it."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.normalizer, made.pre_tokenizer = normalizer, pre_tokenizer
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=500, show_progress=False, special_tokens=["<s>", "<|endoftext|>"], initial_alphabet=alphabet
    )
    made.train_from_iterator([TEXT.decode()], trainer)
    made.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    made.enable_truncation(8)
    made.enable_padding(length=8)
    values: dict[str, Any] = json.loads(made.to_str())
    return values


def byte_level() -> dict[str, Any]:
    """As GPT-2's, with a space before the text as some have it."""
    level = tokenizers.pre_tokenizers.ByteLevel
    return {**trained(None, level(add_prefix_space=True), level.alphabet()), "decoder": LEVEL}


def byte_fallback() -> dict[str, Any]:
    """As Llama 2's: spaces are U+2581, one is put before the text, and characters without a token become bytes."""
    normalizers = tokenizers.normalizers
    values = trained(normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]), None, [])
    vocab = values["model"]["vocab"]
    vocab |= {f"<0x{byte:02X}>": len(vocab) + byte for byte in range(256)}
    values["model"] |= {"byte_fallback": True, "fuse_unk": True}
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    values["decoder"] = {"type": "Sequence", "decoders": [SPACE, {"type": "ByteFallback"}, {"type": "Fuse"}, strip]}
    return values


def unigram() -> dict[str, Any]:
    """As Gemma's or T5's: pieces with scores."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁the", "H", "ell", "o"]
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    model = {"type": "Unigram", "unk_id": 0, "byte_fallback": True, "vocab": [[piece, -1.0] for piece in pieces]}
    decoder = {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, metaspace]}
    return {"version": "1.0", "added_tokens": [], "model": model, "pre_tokenizer": metaspace, "decoder": decoder}


FAMILIES: dict[str, Callable[[], dict[str, Any]]] = {f.__name__: f for f in (byte_level, byte_fallback, unigram)}


@pytest.fixture(scope="module", params=FAMILIES)
def file(request: pytest.FixtureRequest) -> bytes:
    return json.dumps(FAMILIES[request.param]()).encode()


@pytest.mark.parametrize("data", [b"", b" ", b"a", HARD, b"\n\n  Hello", bytes(range(256)), b"a\xff\xfe\x00b\xe7\x8c"])
def test_any_bytes_come_back(file: bytes, data: bytes) -> None:
    words = TokenizerJson(file)
    ids = words.encode(data)
    assert ids.dtype == torch.int64
    assert words.decode(ids) == data == b"".join(words.decode([i]) for i in ids.tolist())


def test_a_text_like_the_name_of_a_byte_is_no_byte(file: bytes) -> None:
    words = TokenizerJson(file)
    if json.loads(file)["model"]["type"] == "Unigram":  # there the library takes it for one
        with pytest.raises(HeadwayError, match=r"turns '<0x41>' at byte 0 into 'A'"):
            words.encode(b"<0x41>")
    else:
        assert words.decode(words.encode(b"<0x41>")) == b"<0x41>"


def test_characters_in_parts_are_written_whole(file: bytes) -> None:
    words, text = TokenizerJson(file), "añ語言 🙂!"
    pieces = list(stream_text(words, words.encode(text.encode()).tolist()))
    assert "".join(pieces) == text
    assert "\ufffd" not in "".join(pieces)
    assert len(pieces) > 3
    labels = token_texts(words, words.encode(text.encode()))
    firsts = [one for one in labels if not isinstance(one, Piece) or one.first]
    assert "".join(one.whole if isinstance(one, Piece) else one for one in firsts) == "añ語言␣🙂!"
    assert any(one.endswith("₂") for one in labels)


def test_ids_are_the_library_s_own_but_for_the_space_before_the_text() -> None:
    for family in (byte_level, byte_fallback):
        values = family()
        theirs = tokenizers.Tokenizer.from_str(json.dumps(values))
        theirs.no_truncation()
        theirs.no_padding()
        text = "the text that goes on, in every way: 猫"
        own = TokenizerJson(json.dumps(values).encode()).encode(f" {text}".encode()).tolist()
        assert theirs.encode(text, add_special_tokens=False).ids == own
        assert len(own) < len(text.encode())


def t5(scheme: dict[str, Any]) -> dict[str, Any]:
    """As T5's: pieces with scores of whole words, without bytes for what has no piece."""
    pieces = [
        "<pad>",
        "</s>",
        "<unk>",
        "▁",
        "▁the",
        "▁cat",
        "cat",
        "▁ca",
        "ts",
        "s",
        "t",
        "h",
        "e",
        ",",
        "é",
        "▁é",
        "猫",
    ]
    metaspace = {"type": "Metaspace", "replacement": "▁", "split": True, **scheme}
    model = {"type": "Unigram", "unk_id": 2, "vocab": [[piece, -float(len(piece))] for piece in pieces]}
    pre_tokenizer = {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, metaspace]}
    special = [{**SPECIAL, "id": i, "content": pieces[i]} for i in range(3)]
    values = {"added_tokens": special, "model": model, "pre_tokenizer": pre_tokenizer, "decoder": metaspace}
    return {"version": "1.0", **values}


@pytest.mark.parametrize("scheme", [{"prepend_scheme": "always"}, {"add_prefix_space": True}], ids=["new", "old"])
def test_words_of_t5(scheme: dict[str, Any]) -> None:
    values = json.dumps(t5(scheme))
    words, theirs = TokenizerJson(values.encode()), tokenizers.Tokenizer.from_str(values)
    for text in ("the cats, thé 猫 cat", "cat", "é é", "猫the"):
        ids = words.encode(f" {text}".encode()).tolist()
        assert ids == theirs.encode(text, add_special_tokens=False).ids
        assert theirs.decode(ids) == text
        assert "".join(stream_text(words, ids)) == f" {text}"
    for text in ("", " ", "   ", "cats", "the  cat ", " the"):  # where theirs adds or loses spaces
        ids = words.encode(text.encode()).tolist()
        assert words.decode(ids) == text.encode()
        assert "".join(stream_text(words, ids)) == text
    for text, got in (("the\ncat", "<unk>"), ("the dog", "<unk>")):
        with pytest.raises(
            HeadwayError, match=f"expected a tokenizer that gives the text back exactly, .* into '{got}"
        ):
            words.encode(text.encode())
    with pytest.raises(HeadwayError, match="has no tokens for single bytes, got the byte 0xFF"):
        words.encode(b"\xff")


def test_words_without_the_spaces_between_them() -> None:
    with pytest.raises(HeadwayError, match="gives the text back exactly"):
        TokenizerJson(json.dumps(t5({"prepend_scheme": "first"})).encode()).encode(b"the cat")


def test_special_tokens_in_a_text_are_text() -> None:
    words = TokenizerJson(json.dumps(byte_level()).encode())
    ids = words.encode(b"a<|endoftext|>b").tolist()
    assert not {0, 1} & set(ids)
    assert words.decode([1]) == b"<|endoftext|>"


def test_added_tokens_stand_for_their_letters() -> None:
    values = byte_level()  # é is also a character of its alphabet, for the byte 0xE9
    values["added_tokens"].append({**SPECIAL, "special": False, "id": 500, "content": "éé"})
    words = TokenizerJson(json.dumps(values).encode())
    assert words.encode("aéé".encode()).tolist()[1:] == [500]
    assert words.decode([500]) == "éé".encode()


def test_no_chance_decides_the_ids() -> None:
    values = byte_level()
    values["model"]["dropout"] = 0.5
    words, sure = (TokenizerJson(json.dumps(one).encode()) for one in (values, byte_level()))
    assert torch.equal(words.encode(TEXT), sure.encode(TEXT))


def lower(values: dict[str, Any]) -> None:
    values["normalizer"] = {"type": "Lowercase"}


def drops_spaces(values: dict[str, Any]) -> None:
    values["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, LEVEL]}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lower, r"^expected a tokenizer that gives the text back exactly, .* but cased\.json turns 'Über Wasser' at "),
        (drops_spaces, r"turns ' Wasser' at byte 5 into 'Wasser': take another tokenizer, or bytes or bpe, which read"),
    ],
)
def test_what_loses_something_is_refused_where_it_does(spoil: Callable[[Any], None], message: str) -> None:
    values = byte_level()
    spoil(values)
    with pytest.raises(HeadwayError, match=message):
        TokenizerJson(json.dumps(values).encode(), "cased.json").encode("Über Wasser".encode())


def test_bytes_and_characters_without_a_token_are_refused() -> None:
    values = unigram()
    values["model"] |= {"byte_fallback": False, "vocab": [["<unk>", 0.0], ["a", -1.0]]}
    words = TokenizerJson(json.dumps(values).encode(), "few.json")
    assert words.encode(b"aa").tolist() == [1, 1]
    with pytest.raises(HeadwayError, match=r"few.json turns 'b' at byte 2 into '<unk>'"):
        words.encode(b"aab")
    with pytest.raises(HeadwayError, match=r"text in UTF-8, because few.json has no tokens for single bytes, .* 0xFF"):
        words.encode(b"a\xff")
    assert Wanted("tokenizer", tokenizer=words).make(b"a" * 9).bytes_per_token == 1.0


def model(**changes: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda values: {**values, "model": {**values["model"], **changes}}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda v: [], "got JSON without a model$"),
        (lambda v: {"model": 3}, "got JSON without a model$"),
        (lambda v: {**v, "decoder": None}, "got no decoder in bad"),
        (lambda v: {**v, "decoder": {"type": "WordPiece"}}, "got WordPiece in bad"),
        (lambda v: {**v, "decoder": {"type": "Sequence", "decoders": 3}}, "got no decoder in bad"),
        (lambda v: {**v, "decoder": {"type": ["Fuse"]}}, r"got \['Fuse'\] in bad"),
        (model(type="Magic"), "content it refuses: "),
        (model(vocab={"a": 0}), "content it refuses: 'Token "),
        (model(vocab={"a": 2**32 - 1}, merges=[]), "expected token ids from 0 to 1,048,575 in bad, got 4,294,967,295$"),
        (model(vocab={"a": 2**40}, merges=[]), "content it refuses: "),
        (model(vocab={"a": -1}, merges=[]), "content it refuses: "),
        (model(vocab={"\ud800": 1}, merges=[]), "content it refuses: "),
        (lambda v: {**v, "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(("}}}, "content it refuses: "),
        (lambda v: {**v, "normalizer": 7}, "content it refuses: "),
    ],
)
def test_what_is_no_tokenizer_is_refused_in_one_sentence(spoil: Callable[[Any], Any], message: str) -> None:
    with pytest.raises(HeadwayError, match=message) as caught:
        TokenizerJson(json.dumps(spoil(byte_level())).encode(), "bad")
    assert "\n" not in str(caught.value)


def test_bad_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    whole = json.dumps(byte_level()).encode()
    for content in (b"", b"\xff\xfe", whole[: len(whole) // 2], b'{"model": NaN}'):
        path.write_bytes(content)
        with pytest.raises(HeadwayError, match=rf"^expected JSON in {path}, got content that does not parse: "):
            Wanted.of(str(path))
    with pytest.raises(HeadwayError, match=r"^could not finish reading .*: Is a directory$"):
        Wanted.of(str(tmp_path))


@pytest.mark.parametrize("name", ["none.json", "n" * 5000, "a\0b", "\ud800", "\x1b[2J"])
def test_names_of_no_file_are_refused(name: str) -> None:
    with pytest.raises(HeadwayError, match=r"^expected vocabulary to be bytes, .*, which is no file$") as caught:
        Wanted.of(name)
    assert len(str(caught.value)) < 200


def test_a_run_keeps_its_file(tmp_path: Path) -> None:
    source, text, out = tmp_path / "tokenizer.json", tmp_path / "text.txt", tmp_path / "run"
    source.write_bytes(json.dumps(byte_fallback()).encode())
    text.write_bytes(TEXT[:4000] + HARD)
    given: dict[str, Any] = {
        "model_config": {"dim": 16, "layers": 1, "heads": 2},
        "vocabulary": source,
        "settings": tiny_settings(),
    }
    whole = train(text, out=tmp_path / "whole", **given)
    train(text, out=out, stop=lambda: True, **given)
    assert train(text, out=out, **given).history.loss == whole.history.loss
    moved = source.rename(tmp_path / "moved.json")
    assert train(text, out=out, **{**given, "vocabulary": str(moved)}).resumed_from == 6
    moved.write_bytes(json.dumps(byte_level()).encode())
    with pytest.raises(HeadwayError, match=r"expected the vocabulary_request of the run .*sha256 was"):
        train(text, out=out, **{**given, "vocabulary": str(moved)})
    moved.unlink()

    loaded, words, run = load_model(out)
    assert isinstance(words, TokenizerJson)
    assert words.data == json.dumps(byte_fallback()).encode()
    assert 1 < words.bytes_per_token < 4
    assert run.config["vocab"] == words.size
    ids, labels = tokens(words, "the cat")
    assert labels[0].startswith("t")
    assert explain(loaded, ids, labels)["tokens"] == labels
    assert "tokenizer.json" in own_results(out, [path.name for path in out.iterdir()])
    (out / "tokenizer.json").write_bytes(json.dumps(byte_level()).encode())
    with pytest.raises(HeadwayError, match=r"tokenizer.json as the run was trained with it, got another file"):
        load_model(out)
    (out / "tokenizer.json").unlink()
    with pytest.raises(HeadwayError, match=r"reading .*tokenizer.json"):
        load_model(out)


def test_values_are_those_of_the_file(tmp_path: Path, file: bytes) -> None:
    words = TokenizerJson(file, bytes_per_token=2.5)
    keep(words, tmp_path)
    again = vocabulary_from_json(json.loads(json.dumps(words.to_json())), tmp_path)
    assert again.to_json() == words.to_json()
    assert torch.equal(again.encode(HARD), words.encode(HARD))
    with pytest.raises(HeadwayError, match=r"expected the folder with the vocabulary's tokenizer.json, got none"):
        vocabulary_from_json(words.to_json())


def test_a_comparison_reads_with_it(tmp_path: Path) -> None:
    path, text = tmp_path / "tokenizer.json", tmp_path / "text.txt"
    path.write_bytes(json.dumps(byte_level()).encode())
    text.write_bytes(TEXT)
    task = TextTask(str(text), train_length=16, longest=32, vocabulary=str(path))
    found = task.test(Uniform(task.vocab), 32)
    bits = torch.log2(torch.tensor(float(task.vocab))).item()
    assert task.describe()["tokenizer"] == TokenizerJson.read(path).seal
    assert found["bits_per_byte"] == pytest.approx(bits / task.bytes_per_token)
    assert task.bytes_per_token > 1.5


class Uniform(torch.nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return torch.zeros(*tokens.shape, self.size)
