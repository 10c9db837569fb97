from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from headway.shapes import HeadwayError
from headway.training.generation import generate, prompt_ids, stream_text
from headway.training.vocabulary import Bpe, Bytes


class Sums(nn.Module):
    """Logits depend on all tokens so far, through a cache that is a running sum."""

    def __init__(self, vocab: int = 32) -> None:
        super().__init__()
        self.config = {"vocab": vocab}
        self.table = nn.Parameter(torch.randn(vocab, vocab, generator=torch.Generator().manual_seed(0)))
        self.dropout = nn.Dropout(0.5)
        self.limit = 10**9

    def new_cache(self) -> dict[str, Any]:
        return {"sum": 0.0, "length": 0}

    def forward(self, tokens: Tensor, pos: Tensor | None = None, cache: dict[str, Any] | None = None) -> Tensor:
        cache = self.new_cache() if cache is None else cache
        cache["length"] += tokens.shape[1]
        if cache["length"] > self.limit:
            raise HeadwayError(f"expected at most {self.limit} positions, got {cache['length']}: use rotary")
        rows = self.table[tokens].cumsum(1) + cache["sum"]
        cache["sum"] = rows[:, -1:]
        return self.dropout(rows)


PROMPT = torch.tensor([1, 2, 3])


def argmax_without_cache(model: nn.Module, prompt: Tensor, tokens: int) -> list[int]:
    ids = prompt[None]
    with torch.no_grad():
        for _ in range(tokens):
            ids = torch.cat([ids, model(ids)[:, -1].argmax(-1, keepdim=True)], 1)
    found: list[int] = ids[0, len(prompt) :].tolist()
    return found


def test_greedy_with_cache_equals_argmax_without() -> None:
    model = Sums().eval()
    expected = argmax_without_cache(model, PROMPT, 20)
    assert list(generate(model, PROMPT, tokens=20, temperature=0)) == expected
    assert list(generate(model, PROMPT[None], tokens=20, temperature=0)) == expected
    for one_choice in ({"top_k": 1}, {"top_p": 1e-9}, {"top_p": 1e-50}, {"temperature": 1e-320}):
        assert list(generate(model, PROMPT, tokens=20, seed=3, **one_choice)) == expected


def test_a_limit_above_the_vocabulary_is_none() -> None:
    model = Sums()
    expected = list(generate(model, PROMPT, tokens=9, seed=1))
    assert list(generate(model, PROMPT, tokens=9, seed=1, top_k=10**22)) == expected


@pytest.mark.parametrize("kind", ["encoder", "encoder-decoder"])
def test_only_a_decoder_goes_on(kind: str) -> None:
    from headway.transformer import Transformer

    model = Transformer(32, 16, layers=1, heads=2, position="rotary", kind=kind)
    with pytest.raises(HeadwayError, match=rf"^expected a decoder to continue a prompt, got an {kind}, which "):
        generate(model, PROMPT, tokens=1)
    with pytest.raises(
        HeadwayError,
        match=r"^expected seed to be a whole number from 0 to 9,223,372,036,854,775,807, got 9999999999999999999999$",
    ):
        generate(Sums(), PROMPT, tokens=1, seed=9999999999999999999999)


@pytest.mark.parametrize("position", ["rotary", "alibi"])
def test_transformer_with_cache_equals_argmax_without(position: str) -> None:
    transformer = pytest.importorskip("headway.transformer")
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = transformer.Transformer(64, dim=32, layers=2, heads=4, position=position).double().eval()
    expected = argmax_without_cache(model, PROMPT, 24)
    assert list(generate(model, PROMPT, tokens=24, temperature=0)) == expected


def test_learned_table_has_an_end() -> None:
    transformer = pytest.importorskip("headway.transformer")
    model = transformer.Transformer(64, dim=16, layers=1, heads=2, position="learned(max_length=8)")
    written: list[int] = []
    with pytest.raises(HeadwayError, match=r"could not go on after 6 of 20 tokens: .*8"):
        written.extend(generate(model, PROMPT, tokens=20))
    assert len(written) == 6
    assert model.training


def test_same_seed_same_tokens_and_global_generator_untouched() -> None:
    before = torch.get_rng_state()
    a, b, c = (list(generate(Sums(), PROMPT, tokens=30, seed=seed)) for seed in (1, 1, 2))
    assert a == b != c
    assert torch.equal(before, torch.get_rng_state())


def test_draws_follow_temperature_top_k_and_top_p() -> None:
    probabilities = torch.tensor([0.5, 0.25, 0.15, 0.1])

    class Fixed(nn.Module):
        def new_cache(self) -> None:
            return None

        def forward(self, tokens: Tensor, cache: object = None) -> Tensor:
            return probabilities.log().expand(1, tokens.shape[1], 4)

    def frequencies(**settings: Any) -> Tensor:
        ids = torch.tensor(list(generate(Fixed(), torch.tensor([0]), tokens=1500, **settings)))
        return torch.bincount(ids, minlength=4) / 1500

    def close(found: Tensor, expected: list[float]) -> None:
        torch.testing.assert_close(found, torch.tensor(expected), atol=0.03, rtol=0)
        assert all(f == 0 for f, e in zip(found.tolist(), expected, strict=True) if e == 0)

    close(frequencies(), probabilities.tolist())
    close(frequencies(temperature=0.5), (probabilities**2 / (probabilities**2).sum()).tolist())
    close(frequencies(top_k=2), [2 / 3, 1 / 3, 0, 0])
    close(frequencies(top_k=99), probabilities.tolist())
    close(frequencies(top_p=0.5), [1.0, 0, 0, 0])
    close(frequencies(top_p=0.7), [2 / 3, 1 / 3, 0, 0])
    close(frequencies(top_p=0.8), [5 / 9, 2.5 / 9, 1.5 / 9, 0])
    close(frequencies(top_p=1.0), probabilities.tolist())
    close(frequencies(top_k=3, top_p=0.8), [2 / 3, 1 / 3, 0, 0])


def test_stops_at_a_stop_id_and_writes_no_more_than_asked() -> None:
    model = Sums()
    greedy = list(generate(model, PROMPT, tokens=20, temperature=0))
    stop = greedy[4]
    expected = greedy[: greedy.index(stop) + 1]
    assert list(generate(model, PROMPT, tokens=20, temperature=0, stop=[stop])) == expected
    assert list(generate(model, PROMPT, tokens=0)) == []


def test_modes_are_put_back_also_when_closed_early_and_gradients_stay_on() -> None:
    model = Sums()
    model.dropout.eval()
    ids = generate(model, PROMPT, tokens=5)
    next(ids)
    assert not model.training
    assert torch.is_grad_enabled()
    ids.close()
    assert model.training
    assert not model.dropout.training


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": [1, 2]}, r"as a tensor of integer ids"),
        ({"prompt": torch.zeros(2)}, r"as a tensor of integer ids"),
        ({"prompt": torch.zeros(2, 3).long()}, r"shape \(N,\) or \(1, N\), got \(2, 3\)"),
        ({"prompt": torch.zeros(0).long()}, r"at least one prompt token, got none: begin with a newline"),
        ({"prompt": torch.tensor([32])}, r"prompt ids in 0 … 31, got 32 … 32"),
        ({"prompt": torch.tensor([-1, 3])}, r"prompt ids in 0 … 31, got -1 … 3"),
        ({"tokens": -1}, r"tokens to be a whole number of at least 0, got -1"),
        ({"tokens": 2.5}, r"tokens to be a whole number of at least 0, got 2.5"),
        ({"top_k": 0}, r"top_k to be a whole number of at least 1, got 0"),
        ({"seed": True}, r"seed to be a whole number of at least 0, got True"),
        ({"temperature": -0.1}, r"temperature to be a number of at least 0, got -0.1"),
        ({"temperature": math.nan}, r"temperature to be a number of at least 0, got nan"),
        ({"top_p": 0}, r"top_p to be a number in \(0, 1\], got 0"),
        ({"top_p": 1.1}, r"top_p to be a number in \(0, 1\], got 1.1"),
    ],
)
def test_bad_arguments_are_refused_at_once(changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"prompt": PROMPT, "tokens": 3, **changes}
    with pytest.raises(HeadwayError, match=message):
        generate(Sums(), **arguments)


def test_logits_that_are_not_finite_are_named() -> None:
    model = Sums()
    with torch.no_grad():
        model.table[3] = torch.nan
    with pytest.raises(HeadwayError, match=r"expected finite logits, got NaN or infinity"):
        list(generate(model, PROMPT, tokens=3))


def test_empty_prompt_becomes_a_newline() -> None:
    assert prompt_ids(Bytes(), "").tolist() == [10]
    assert prompt_ids(Bytes(), "é").tolist() == list("é".encode())


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_stream_never_splits_a_character(kind: str) -> None:
    vocabulary = Bytes() if kind == "bytes" else Bpe.train("añb 語言 🙂".encode() * 20, size=262)
    text = "añb 語言 🙂 ﬁn"
    parts = list(stream_text(vocabulary, vocabulary.encode(text.encode()).tolist()))
    assert "".join(parts) == text
    assert "�" not in "".join(parts)
    assert all(parts)


def test_stream_replaces_what_is_not_utf8_and_flushes_a_half_character() -> None:
    assert "".join(stream_text(Bytes(), b"a\xffb\xe8\xaa")) == "a�b�"
    assert list(stream_text(Bytes(), [])) == []
