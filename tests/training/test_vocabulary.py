from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Callable

import pytest
import torch

from headway.characters import Piece
from headway.shapes import HeadwayError
from headway.training.text import read_text
from headway.training.vocabularies import vocabulary_from_json
from headway.training.vocabulary import LONGEST, Bpe, Bytes, Vocabulary, token_texts

SAMPLES = [b"", b"a", "añb 語言 🙂\n\t".encode(), b"\xff\xfe\x00", bytes(range(256)), os.urandom(999), b"  \r\n\n  x "]


@pytest.fixture(scope="module")
def bpe() -> Bpe:
    return Bpe.train(read_text().data[:60_000], size=500)


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
@pytest.mark.parametrize("data", SAMPLES)
def test_roundtrip_is_exact_for_any_bytes(kind: str, data: bytes, bpe: Bpe) -> None:
    vocabulary: Vocabulary = Bytes() if kind == "bytes" else bpe
    again = vocabulary_from_json(json.loads(json.dumps(vocabulary.to_json())))
    ids = vocabulary.encode(data)
    assert ids.dtype == torch.int64
    assert torch.equal(again.encode(data), ids)
    assert again.size == vocabulary.size
    assert again.decode(ids) == data == vocabulary.decode(ids.tolist())
    assert not len(ids) or 0 <= int(ids.min()) <= int(ids.max()) < vocabulary.size


def test_bpe_is_shorter_than_bytes_and_agrees_with_the_library(bpe: Bpe) -> None:
    data = read_text().data[:20_000]
    assert bpe.size == 500
    assert len(bpe.encode(data)) < 0.6 * len(data)
    assert bpe.bytes_per_token > 1.6
    assert bpe._tokenizer.encode(data.decode()).ids == bpe.encode(data).tolist()


def test_bpe_training_is_deterministic_and_takes_any_bytes() -> None:
    data = read_text().data[:20_000]
    assert Bpe.train(data, size=300).to_json() == Bpe.train(data, size=300).to_json()
    assert Bpe.train(os.urandom(1000), size=300).size >= 256
    assert Bpe.train(b"", size=300).size == 256


def test_long_text_is_encoded_in_pieces(bpe: Bpe, monkeypatch: pytest.MonkeyPatch) -> None:
    import headway.training.vocabulary as module

    data = read_text().data[:30_000]
    pieces = module._pieces
    monkeypatch.setattr(module, "_pieces", lambda text: pieces(text, 100))
    assert bpe.decode(bpe.encode(data)) == data


def test_ids_outside_are_refused(bpe: Bpe) -> None:
    with pytest.raises(HeadwayError, match=r"expected token ids in 0 … 255, got 256"):
        Bytes().decode([256])
    with pytest.raises(HeadwayError, match=r"expected token ids in 0 … 499, got -1"):
        bpe.decode(torch.tensor([-1]))


def test_too_small_a_size_and_a_missing_library(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HeadwayError, match=r"at least 256 .*, got 255"):
        Bpe.train(b"x", size=255)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(HeadwayError, match=r"pip install 'headway\[bpe\]'"):
        Bpe.train(b"x", size=300)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda v: None,
        lambda v: [],
        lambda v: {"kind": "pickle"},
        lambda v: {"kind": "bytes", "more": 1},
        lambda v: {**v, "tokens": v["tokens"][1:]},
        lambda v: {**v, "tokens": [*v["tokens"], v["tokens"][0]]},
        lambda v: {**v, "tokens": [*v["tokens"], ""]},
        lambda v: {**v, "tokens": [*v["tokens"], "\n"]},
        lambda v: {**v, "tokens": [*v["tokens"], 3]},
        lambda v: {**v, "tokens": "abc"},
        lambda v: {**v, "merges": [["a"]]},
        lambda v: {**v, "merges": [["zzz", "q"]]},
        lambda v: {**v, "merges": [[1, 2]]},
        lambda v: {**v, "merges": {"a": "b"}},
        lambda v: {**v, "bytes_per_token": 0},
        lambda v: {**v, "bytes_per_token": "2"},
        lambda v: {name: value for name, value in v.items() if name != "merges"},
    ],
)
def test_damaged_json_is_refused(spoil: Callable[[dict[str, object]], object], bpe: Bpe) -> None:
    with pytest.raises(HeadwayError, match=r"expected"):
        vocabulary_from_json(spoil(bpe.to_json()))


def _whole(labels: list[str]) -> str:
    """What the labels say, each character once."""
    firsts = (one for one in labels if not isinstance(one, Piece) or one.first)
    return "".join(one.whole if isinstance(one, Piece) else one for one in firsts)


def test_labels_of_tokens_are_never_broken_characters() -> None:
    text = "Die Katze saß, 猫坐\n".encode() + b"\xff\xe7\x8c"
    labels = token_texts(Bytes(), text)
    assert len(labels) == len(text)
    assert "".join(labels) == "Die␣Katze␣saß₁ß₂,␣猫₁猫₂猫₃坐₁坐₂坐₃⏎\\xff\\xe7\\x8c"
    bpe = Bpe.train("猫坐在垫子上。猫坐在垫子上。the cat sat on the mat ".encode() * 20, size=300)
    labels = token_texts(bpe, bpe.encode("猫 the cat 狗".encode()))
    assert _whole(labels) == "猫␣the␣cat␣狗"
    assert not any("�" in label for label in labels)
    assert token_texts(Bytes(), []) == []


@pytest.mark.parametrize("characters", ["ab", "0123456789", "語文字化け", " \t", "-=#"])
def test_learning_from_a_text_without_spaces_takes_linear_time(characters: str) -> None:
    # how often the library looks at a pair cannot be counted from here; the length of what it looks into can
    dice = random.Random(0)
    text = "".join(dice.choice(characters) for _ in range(5000))
    tokenizer = Bpe.train(text.encode(), size=257)._tokenizer
    words = [end - begin for _, (begin, end) in tokenizer.pre_tokenizer.pre_tokenize_str(text)]
    assert max(words) <= LONGEST
    assert sum(words) == len(text)


def test_words_of_ordinary_text_are_never_cut() -> None:
    data = read_text().data[:200_000]
    cut = Bpe.train(data, size=600)
    uncut = Bpe(cut.tokens, cut.merges, cut.bytes_per_token, longest=None)
    assert torch.equal(cut.encode(data), uncut.encode(data))


def test_a_vocabulary_of_0_1_0_reads_long_runs_as_it_did() -> None:
    old = Bpe.train(b"abab " * 100, size=300).to_json()
    del old["longest"]
    again = vocabulary_from_json(old)
    assert isinstance(again, Bpe)
    assert again.longest is None
    assert again.to_json() == old
