"""Batches, beams, stop texts and speculative sampling: against one sequence, transformers, and exact distributions."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import pytest
import torch
from common import named, refusal
from options import models
from torch import Tensor

from headway import KVCache, Transformer, generate
from headway.positions import methods, parse
from headway.training import Bytes, beam_search, generate_batch, speculate, stream_beams
from headway.training.generation import Sampling, probabilities, stream_text, stream_texts

# with a matrix of its own behind it: through the embedding's a model without training repeats the last token
SMALL: dict[str, Any] = {"vocab": 11, "dim": 32, "layers": 2, "heads": 4, "tie": False}
PROMPTS = [torch.tensor([1, 2, 3, 4, 5]), torch.tensor([6]), torch.tensor([7, 8, 9])]


def model(position: str = "rotary", seed: int = 0, **changes: Any) -> Transformer:
    torch.manual_seed(seed)
    made = Transformer(**{**SMALL, **getattr(position, "config", {}), **changes}, position=str(position))
    with torch.no_grad():
        made.head.weight.mul_(3)  # clear preferences
    return made


@pytest.mark.parametrize("name", [*methods(), *models()], ids=named)
def test_a_batch_gets_what_each_would_get_alone(name: str) -> None:
    own = model(name).double()
    for given in ({"temperature": 0}, {"temperature": 1.0, "top_k": 5, "seed": 3}):
        rows = list(generate_batch(own, PROMPTS, tokens=8, **given))
        for number, prompt in enumerate(PROMPTS):
            assert [row[number] for row in rows] == list(generate(own, prompt, tokens=8, **given))


def test_a_sequence_that_met_its_stop_is_over_and_the_others_go_on() -> None:
    own = model()
    alone = [list(generate(own, prompt, tokens=12, seed=1)) for prompt in PROMPTS]
    stop = alone[0][2]
    rows = list(generate_batch(own, PROMPTS, tokens=12, seed=1, stop=[stop]))
    for number, ids in enumerate(alone):
        end = ids.index(stop) + 1 if stop in ids else len(ids)
        found = [row[number] for row in rows]
        assert found[:end] == ids[:end]
        assert set(found[end:]) <= {None}


# --- caches ---------------------------------------------------------------------------------------------------------


def test_what_caches_refuse() -> None:
    cache = KVCache()
    cache.append(*(torch.randn(2, 1, 4, 8) for _ in "kv"), torch.arange(4)[None])
    with refusal("expected a number of tokens from 0 to 4, got 5"):
        cache.crop(5)
    with refusal("expected sequences from 0 to 1, got [2]"):
        cache.reorder([2])
    cache.keep([0, 2])
    with refusal("expected a cache that holds all its tokens to be cropped, got one after keep()"):
        cache.crop(1)


# --- beams ----------------------------------------------------------------------------------------------------------


def log_probabilities(own: Transformer, prompt: Tensor, texts: list[tuple[int, ...]]) -> list[float]:
    """Of each continuation, in one pass without a cache."""
    ids = torch.tensor(texts)
    with torch.no_grad():
        told = own.eval()(torch.cat([prompt.expand(len(ids), -1), ids], 1)).double().log_softmax(-1)
    found: list[float] = told[:, len(prompt) - 1 : -1].gather(2, ids[..., None]).sum((1, 2)).tolist()
    return found


@pytest.mark.parametrize("name", ["rotary", "alibi", "t5", "fox", "learned", "path", *models()], ids=named)
def test_enough_beams_find_the_likeliest_text_there_is(name: str) -> None:
    own, prompt = model(name, vocab=5), torch.tensor([1, 3])
    found = beam_search(own, prompt, tokens=4, beams=5**3, length_penalty=0.0)
    texts = list(itertools.product(range(5), repeat=4))
    every = dict(zip(texts, log_probabilities(own, prompt, texts), strict=True))
    best = sorted(every.values(), reverse=True)
    assert [beam.score for beam in found[:5]] == pytest.approx(best[:5], abs=1e-5)
    assert every[found[0].ids] == pytest.approx(best[0], abs=1e-5)


def test_one_beam_is_greedy() -> None:
    own, prompt = model(), PROMPTS[0]
    (beam,) = beam_search(own, prompt, tokens=9, beams=1)
    assert list(beam.ids) == list(generate(own, prompt, tokens=9, temperature=0))
    assert beam.score == pytest.approx(log_probabilities(own, prompt, [beam.ids])[0] / 9, abs=1e-5)


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("beams", [2, 4])
def test_beams_are_those_of_transformers(beams: int, penalty: float) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        vocab_size=17, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        tie_word_embeddings=False, pad_token_id=5, bos_token_id=None, eos_token_id=5,
    )  # fmt: skip
    theirs = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        theirs.lm_head.weight.mul_(30)

    class Same(Transformer):
        """Our search over their logits: what is compared is the search."""

        def new_cache(self) -> Any:
            return Texts()

        def forward(self, tokens: Tensor, *, cache: Any = None, **_: Any) -> Tensor:
            cache.text = tokens if cache.text is None else torch.cat([cache.text, tokens], 1)
            out: Tensor = theirs(cache.text).logits
            return out

    class Texts:
        text: Tensor | None = None

        def reorder(self, index: list[int]) -> None:
            assert self.text is not None
            self.text = self.text[index]

    own = Same(vocab=17, dim=8, heads=1, layers=1)
    for start in (1, 2, 7):
        prompt = torch.tensor([start, 3])
        made = theirs.generate(
            prompt[None], attention_mask=torch.ones(1, 2).long(), num_beams=beams, max_new_tokens=7, do_sample=False,
            length_penalty=penalty, num_return_sequences=beams, early_stopping=False, return_dict_in_generate=True,
            output_scores=True,
        )  # fmt: skip
        found = beam_search(own, prompt, tokens=7, beams=beams, length_penalty=penalty, stop=5)
        text = made.sequences[0, 2:].tolist()
        assert list(found[0].ids) == (text[: text.index(5) + 1] if 5 in text else text)
        assert found[0].score == pytest.approx(float(made.sequences_scores[0]), abs=1e-4)


@pytest.mark.parametrize("stop", [None, 4])
@pytest.mark.parametrize("penalty", [0.0, 2.0, -1.0])
@pytest.mark.parametrize("seed", range(3))
def test_a_stream_of_beams_is_the_best_of_them(seed: int, penalty: float, stop: int | None) -> None:
    own = model(seed=seed)
    for beams in (1, 4):
        given: dict[str, Any] = {"tokens": 8, "beams": beams, "length_penalty": penalty, "stop": stop}
        best = beam_search(own, PROMPTS[0], **given)[0]
        assert tuple(stream_beams(own, PROMPTS[0], **given)) == best.ids


def test_a_stream_of_beams_gives_each_token_as_soon_as_it_is_certain() -> None:
    """What came after each step is what all beams that could still become the best begin with, and no more."""
    own, calls = model(seed=2), []
    hook = own.register_forward_hook(lambda *_: calls.append(0))
    came = []
    for token in stream_beams(own, PROMPTS[0], tokens=16, beams=3):
        came.append((len(calls), token))
    hook.remove()
    assert came[0][0] < 10  # long before the end
    for steps in range(1, 16, 2):
        seen = [token for after, token in came if after <= steps]
        live = [beam.ids for beam in beam_search(own, PROMPTS[0], tokens=steps, beams=3)]
        shared = len(list(itertools.takewhile(lambda column: len(set(column)) == 1, zip(*live, strict=True))))
        assert seen == list(live[0][:shared])
    assert [after for after, _ in came] == sorted(after for after, _ in came)


# --- stop texts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [["\n\n"], ["注意"], ["ab", "abc", "c"], ["zzz"], []])
@pytest.mark.parametrize("text", ["one\n\ntwo", "one\ntwo", "看注意力", "xxabab", "aab", "abzabc", ""])
def test_a_stream_ends_before_a_stop_text_and_gives_none_of_it(text: str, stop: list[str]) -> None:
    pieces = list(stream_text(Bytes(), text.encode(), stop))
    ends = [text.index(one) for one in stop if one in text]
    # the stream ends at the first text that is complete, in the order of their last letters
    done = {text.index(one): text.index(one) + len(one) for one in stop if one in text}
    first = min(done, key=lambda at: (done[at], at)) if ends else len(text)
    assert "".join(pieces) == text[:first]


def test_what_cannot_be_a_stop_text() -> None:
    for wrong in ("ab", [""], [3]):
        with refusal("expected stop as texts of at least one letter, got", whole=False):
            list(stream_text(Bytes(), b"a", wrong))  # type: ignore[arg-type]


# --- speculative ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rotary", "alibi", "fox", "path", "transformerxl", "learned", *models()], ids=named)
@pytest.mark.parametrize("ahead", [1, 4])
def test_greedy_speculation_writes_the_models_own_text(name: str, ahead: int) -> None:
    own = model(name).double()
    near = copy.deepcopy(own)
    with torch.no_grad():
        near.head.weight.add_(0.5 * torch.randn_like(near.head.weight))
    expected = list(generate(own, PROMPTS[0], tokens=15, temperature=0))
    assert list(generate(near, PROMPTS[0], tokens=15, temperature=0)) != expected
    small = model("rotary", seed=1, dim=16, layers=1).double()
    for guide in (near, own) if ahead > 1 else (small,):  # drafts that err at times, never, and at nearly every token
        assert list(speculate(own, guide, PROMPTS[0], tokens=15, ahead=ahead, temperature=0)) == expected
        stop = expected[6]
        cut = expected[: expected.index(stop) + 1]
        assert list(speculate(own, guide, PROMPTS[0], tokens=15, ahead=ahead, temperature=0, stop=[stop])) == cut


def test_speculation_draws_from_the_models_own_distribution() -> None:
    own, draft = model(vocab=4), model("alibi", seed=5, vocab=4, dim=16, layers=1)
    prompt = torch.tensor([1, 2])
    sampling = Sampling(temperature=1.3, top_k=3)
    expected: dict[tuple[int, ...], float] = {}
    with torch.no_grad():
        first = probabilities(own.eval()(prompt[None])[0, -1], sampling)
        for a in range(4):
            text = torch.cat([prompt, torch.tensor([a])])[None]
            second = probabilities(own(text)[0, -1], sampling)
            expected |= {(a, b): float(first[a] * second[b]) for b in range(4)}
    count, drawn = 1500, dict.fromkeys(expected, 0)
    for seed in range(count):
        drawn[tuple(speculate(own, draft, prompt, tokens=2, ahead=2, temperature=1.3, top_k=3, seed=seed))] += 1
    assert all(not drawn[pair] for pair, share in expected.items() if share == 0)
    statistic = sum((drawn[pair] - count * share) ** 2 / (count * share) for pair, share in expected.items() if share)
    freedom = sum(share > 0 for share in expected.values()) - 1
    assert statistic < freedom + 4 * math.sqrt(2 * freedom)


def test_refusals() -> None:
    own = model()
    with refusal("expected at least one prompt, as a list of tensors of ids, got none"):
        generate_batch(own, [], tokens=1)
    with refusal("expected a draft of the model's vocabulary of 11, got one of 7"):
        speculate(own, model(vocab=7), PROMPTS[0], tokens=3)
    with refusal("expected ahead to be a whole number of at least 1, got 0"):
        speculate(own, own, PROMPTS[0], tokens=3, ahead=0)
    with refusal("expected beams of at least 1, got 0"):
        beam_search(own, PROMPTS[0], tokens=3, beams=0)
    with refusal("expected tokens of at least 1, got 0"):
        stream_beams(own, PROMPTS[0], tokens=0)
    with refusal("expected a decoder to continue a prompt, got an encoder", whole=False):
        beam_search(model(kind="encoder"), PROMPTS[0], tokens=3)
    with refusal("expected a prompt of shape (N,) or (1, N), got (2, 3)", whole=False):
        generate(own, torch.zeros(2, 3).long(), tokens=1)
    assert parse("rotary").method_name() == "rotary"


@pytest.mark.parametrize("stop", [(), ("wo",), ("ld", "ño"), ("zz",)])
def test_texts_of_a_batch_are_those_of_each(stop: tuple[str, ...]) -> None:
    texts = ["hello world", "señor, 世界", "", "zzz"]
    ids = [list(text.encode()) for text in texts]
    longest = max(map(len, ids))
    rows = [[one[n] if n < len(one) else None for one in ids] for n in range(longest)]
    found = list(stream_texts(Bytes(), rows, stop))
    assert ["".join(parts) for parts in zip(*found, strict=True)] == [
        "".join(stream_text(Bytes(), one, stop)) for one in ids
    ]
    assert list(stream_texts(Bytes(), [], stop)) == []
    # what waits for the rest of a character comes when the rows end
    assert list(stream_texts(Bytes(), [[97, 195]], stop)) == [["a", ""], ["", "\ufffd"]]
    # a batch ends when all have ended, whatever rows would follow
    endless = ([ord("w"), ord("o")][n % 2 : n % 2 + 1] for n in range(10**9))
    assert len(list(zip(range(50), stream_texts(Bytes(), endless, ("wo",)), strict=False))) == 2


def test_a_batch_is_generated_as_text() -> None:
    model = Transformer(256, 16, 1, 2)
    prompts = [torch.tensor([72, 105]), torch.tensor([97])]
    rows = list(generate_batch(model, prompts, tokens=8, seed=1))
    found = ["".join(parts) for parts in zip(*stream_texts(Bytes(), rows), strict=True)]
    alone = ["".join(stream_text(Bytes(), [row[n] for row in rows if row[n] is not None])) for n in range(2)]
    assert found == alone
