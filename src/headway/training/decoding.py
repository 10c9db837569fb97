"""Decoding beyond one sampled sequence: batches of prompts, beam search, and speculative sampling.

All of them drive a Transformer with its cache: prompts of a batch are padded on the left (position −1), beams reorder
the cache, and a rejected draft is rolled back by cropping it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headway.schema import Number, Whole, require
from headway.shapes import HeadwayError, as_count
from headway.training.generation import Sampling, check_decoder, check_prompt, drawn, probabilities
from headway.training.loop import evaluating
from headway.transformer import Transformer


def generate_batch(
    model: Transformer,
    prompts: Sequence[Int[Tensor, "_"]],
    *,
    tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    stop: Collection[int] | None = None,
    sources: Sequence[Int[Tensor, "_"]] | None = None,
) -> Iterator[list[int | None]]:
    """Continue several prompts together, one token of each at a time.

    Each sequence gets the tokens that :func:`headway.generate` would give it alone with the same seed. Prompts of
    different lengths are padded on the left, which attention does not see; sources on the right.

    Args:
        model: a decoder, or an encoder-decoder.
        prompts: ids (N,) of each, at least one.
        tokens: how many to write, at least 0.
        temperature: as in :func:`headway.generate`, like all that follow.
        top_k: choose among this many.
        top_p: choose among the likeliest with this total probability.
        seed: of the drawing.
        stop: ids that end a sequence; the one met is still returned.
        sources: ids (M,) of what the encoder of an encoder-decoder reads, one for each prompt.

    Returns:
        An iterator of lists with the next token of each sequence, None where it has ended; it ends when all have.

    Raises:
        HeadwayError: at once on a bad argument.

    >>> model = Transformer(vocab=9, dim=16, layers=1, heads=2)
    >>> prompts = [torch.tensor([1, 2, 3]), torch.tensor([4])]
    >>> [len(row) for row in generate_batch(model, prompts, tokens=2, temperature=0)]
    [2, 2]
    """
    check_decoder(model, sources is not None)
    sampling = Sampling(temperature, top_k, top_p, seed)
    as_count(tokens, "tokens of at least 0")
    if not isinstance(prompts, Sequence) or not prompts:
        raise HeadwayError("expected at least one prompt, as a list of tensors of ids, got none")
    if sources is not None and len(sources) != len(prompts):
        raise HeadwayError(f"expected a source for each of {len(prompts)} prompts, got {len(sources)}")
    begun, given = [check_prompt(model, one) for one in prompts], _padded_sources(model, sources)
    return _write_batch(model, begun, tokens, sampling, frozenset(stop or ()), given)


def _padded_sources(model: Transformer, sources: Sequence[Tensor] | None) -> dict[str, Tensor]:
    """Sources of different lengths as arguments of an encoder-decoder."""
    if sources is None:
        return {}
    device, rows = model.embedding.weight.device, [check_prompt(model, one, "source") for one in sources]
    pad = torch.nn.utils.rnn.pad_sequence
    pos = [torch.arange(len(row)) for row in rows]
    return {"source": pad(rows, True).to(device), "source_pos": pad(pos, True, -1).to(device)}


def _write_batch(
    model: Transformer,
    prompts: list[Tensor],
    tokens: int,
    sampling: Sampling,
    stop: frozenset[int],
    given: dict[str, Tensor],
) -> Iterator[list[int | None]]:
    device, longest = model.embedding.weight.device, max(map(len, prompts))
    rows = torch.stack([torch.nn.functional.pad(one, (longest - len(one), 0)) for one in prompts]).to(device)
    pos = torch.stack([(torch.arange(longest) - (longest - len(one))).clamp(min=-1) for one in prompts]).to(device)
    drawing = [sampling.generator() for _ in prompts]
    ended = [False] * len(prompts)
    with evaluating(model):
        cache = model.new_cache()
        for _ in range(tokens):
            with torch.no_grad():
                logits = model(rows, pos=pos, cache=cache, **given)[:, -1].cpu()
                chosen = [sampling.choose(row, generator) for row, generator in zip(logits, drawing, strict=True)]
            yield [None if over else token for token, over in zip(chosen, ended, strict=True)]
            ended = [over or token in stop for token, over in zip(chosen, ended, strict=True)]
            if all(ended):
                return
            rows, pos = torch.tensor(chosen, device=device)[:, None], pos[:, -1:] + 1


@dataclass(frozen=True)
class Beam:
    """One continuation of a prompt.

    Args:
        ids: its tokens, without the prompt's.
        score: its log-probability divided by its length to the power ``length_penalty``.
    """

    ids: tuple[int, ...]
    score: float


def beam_search(
    model: Transformer,
    prompt: Int[Tensor, "_"],
    *,
    tokens: int,
    beams: int = 4,
    length_penalty: float = 1.0,
    stop: int | None = None,
    source: Int[Tensor, "_"] | None = None,
) -> list[Beam]:
    """The likeliest continuations of a prompt that a search with so many beams finds, best first.

    Every step continues all beams at once, keeps the ``beams`` likeliest of their continuations, and reorders the cache
    to match. A continuation that ends with ``stop`` leaves the search; it ends when no beam can become better than the
    worst of ``beams`` that have left it, or after ``tokens``. :func:`stream_beams` gives the best as it is found.

    Args:
        model: a decoder, or an encoder-decoder.
        prompt: ids (N,) or (1, N), at least one.
        tokens: how many to write at most, at least 1.
        beams: how many, at least 1; 1 is greedy.
        length_penalty: above 0 favours longer continuations, below 0 shorter ones.
        stop: the id that ends a continuation, or None.
        source: ids (M,) or (1, M) that the encoder of an encoder-decoder reads.

    Raises:
        HeadwayError: on a bad argument.

    >>> model = Transformer(vocab=9, dim=16, layers=1, heads=2)
    >>> found = beam_search(model, torch.tensor([1]), tokens=3, beams=2)
    >>> len(found), found[0].score >= found[1].score
    (2, True)
    """
    steps = [found for _, found in _search(*_checked(model, prompt, tokens, beams, length_penalty, source), stop)]
    return steps[-1]


def stream_beams(
    model: Transformer,
    prompt: Int[Tensor, "_"],
    *,
    tokens: int,
    beams: int = 4,
    length_penalty: float = 1.0,
    stop: int | None = None,
    source: Int[Tensor, "_"] | None = None,
) -> Iterator[int]:
    """The best continuation that :func:`beam_search` finds, each token as soon as it is certain.

    The search goes on from the live beams, and may end with the best continuation that has left it: what all of these
    begin with is final. So tokens come late, several at a time, and the last together. Arguments and errors are those
    of :func:`beam_search`; errors come at once.

    >>> model = Transformer(vocab=9, dim=16, layers=1, heads=2)
    >>> best = beam_search(model, torch.tensor([1]), tokens=6, beams=3)[0]
    >>> tuple(stream_beams(model, torch.tensor([1]), tokens=6, beams=3)) == best.ids
    True
    """
    return _stream(_search(*_checked(model, prompt, tokens, beams, length_penalty, source), stop))


def _stream(search: Iterator[tuple[tuple[int, ...], list[Beam]]]) -> Iterator[int]:
    given = 0
    for certain, _ in search:
        yield from certain[given:]
        given = len(certain)


def _checked(
    model: Transformer, prompt: Tensor, tokens: int, beams: int, length_penalty: float, source: Tensor | None
) -> tuple[Transformer, Tensor, dict[str, Tensor], int, int, float]:
    """The arguments of a search, checked; the source as the model takes it."""
    check_decoder(model, source is not None)
    prompt = check_prompt(model, prompt)
    given: dict[str, Tensor] = {} if source is None else _padded_sources(model, [source])
    tokens, beams = as_count(tokens, "tokens of at least 1", 1), as_count(beams, "beams of at least 1", 1)
    require(length_penalty, Number(), "length_penalty")
    return model, prompt, given, tokens, beams, length_penalty


def _search(
    model: Transformer,
    prompt: Tensor,
    given: dict[str, Tensor],
    tokens: int,
    beams: int,
    length_penalty: float,
    stop: int | None,
) -> Iterator[tuple[tuple[int, ...], list[Beam]]]:
    """After each step what the best continuation certainly begins with, and the continuations that have left the
    search; at last all of the best, and the result.
    """
    device, done = model.embedding.weight.device, list[Beam]()
    written: list[tuple[int, ...]] = [()]
    scores = torch.zeros(1)
    rows = prompt[None].to(device)
    with evaluating(model):
        cache = model.new_cache()
        for length in range(1, tokens + 1):
            with torch.no_grad():
                step = scores[:, None] + model(rows, cache=cache, **given)[:, -1].double().log_softmax(-1).cpu()
            best, place = step.flatten().topk(min(2 * beams, step.numel()))
            beam_of, token_of = (place // step.shape[1]).tolist(), (place % step.shape[1]).tolist()
            found = list(zip(best.tolist(), beam_of, token_of, strict=True))
            for rank, (score, beam, token) in enumerate(found):
                if token == stop and rank < beams:
                    done.append(Beam((*written[beam], token), score / length**length_penalty))
            kept = [one for one in found if one[2] != stop][:beams]
            done = sorted(done, key=lambda one: -one.score)[:beams]
            best_left = (
                kept[0][0] / (tokens if length_penalty > 0 else length) ** length_penalty if kept else -torch.inf
            )
            if not kept or (len(done) == beams and done[-1].score >= best_left):
                yield done[0].ids, done
                return
            cache.reorder([beam for _, beam, _ in kept])
            written = [(*written[beam], token) for _, beam, token in kept]
            scores = torch.tensor([score for score, _, _ in kept], dtype=torch.float64)
            rows = torch.tensor([[token] for _, _, token in kept], device=device)
            columns = zip(*written, *(one.ids for one in done[:1]), strict=False)
            yield tuple(column[0] for column in takewhile(lambda column: len(set(column)) == 1, columns)), done
    done += [Beam(ids, float(score) / tokens**length_penalty) for ids, score in zip(written, scores, strict=True)]
    done = sorted(done, key=lambda one: -one.score)[:beams]
    yield done[0].ids, done


def speculate(
    model: Transformer,
    draft: Transformer,
    prompt: Int[Tensor, "_"],
    *,
    tokens: int,
    ahead: int = 4,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    stop: Collection[int] | None = None,
) -> Iterator[int]:
    """Continue a prompt as :func:`headway.generate` does, with a small model that guesses ahead.

    The draft writes ``ahead`` tokens, the model reads them all in one pass, and each is kept with probability
    min(1, p/q); at the first that is not, one is drawn from what the draft underrates, max(0, p − q). What is written
    is distributed exactly as if the model had written it (arXiv:2211.17192); with temperature 0 it is the same text.

    Args:
        model: a decoder.
        draft: a smaller decoder of the same vocabulary.
        prompt: ids (N,) or (1, N), at least one.
        tokens: how many to write, at least 0.
        ahead: how many the draft writes before they are checked, at least 1.
        temperature: as in :func:`headway.generate`, like all that follow.
        top_k: choose among this many.
        top_p: choose among the likeliest with this total probability.
        seed: of the drawing.
        stop: ids that end the writing; the one met is still returned.

    Raises:
        HeadwayError: at once on a bad argument.

    >>> model, draft = (Transformer(vocab=9, dim=width, layers=1, heads=2) for width in (32, 16))
    >>> len(list(speculate(model, draft, torch.tensor([1]), tokens=5)))
    5
    """
    for one in (model, draft):
        check_decoder(one)
    if model.config.vocab != draft.config.vocab:
        raise HeadwayError(
            f"expected a draft of the model's vocabulary of {model.config.vocab}, got one of {draft.config.vocab}"
        )
    require(tokens, Whole(0), "tokens")
    require(ahead, Whole(1), "ahead")
    sampling = Sampling(temperature, top_k, top_p, seed)
    return _speculate(model, draft, check_prompt(model, prompt), tokens, ahead, sampling, frozenset(stop or ()))


def _speculate(
    model: Transformer,
    draft: Transformer,
    prompt: Tensor,
    tokens: int,
    ahead: int,
    sampling: Sampling,
    stop: frozenset[int],
) -> Iterator[int]:
    device, generator, text = model.embedding.weight.device, sampling.generator(), prompt.tolist()
    with evaluating(model), evaluating(draft):
        caches = model.new_cache(), draft.new_cache()
        written = 0
        while written < tokens:
            guessed, guesses = list[int](), list[Tensor]()
            with torch.no_grad():
                for _ in range(min(ahead, tokens - written - 1)):
                    rows = torch.tensor([(text + guessed)[len(caches[1]) :]], device=device)
                    guesses.append(probabilities(draft(rows, cache=caches[1])[0, -1], sampling))
                    guessed.append(drawn(guesses[-1], generator))
                rows = torch.tensor([(text + guessed)[len(caches[0]) :]], device=device)
                logits = model(rows, cache=caches[0])[0, -len(guessed) - 1 :]
                accepted = _accepted(guessed, guesses, [probabilities(row, sampling) for row in logits], generator)
            for token in accepted:
                text.append(token)
                written += 1
                yield token
                if token in stop:
                    return
            for cache in caches:
                cache.crop(min(len(cache), len(text) - 1))


def _accepted(
    guessed: list[int], guesses: list[Float[Tensor, "_"]], own: list[Float[Tensor, "_"]], generator: torch.Generator
) -> list[int]:
    """The guesses that stay, and one more token of the model's own."""
    for number, (token, q) in enumerate(zip(guessed, guesses, strict=True)):
        p = own[number]
        if float(torch.rand(1, generator=generator)) * float(q[token]) >= float(p[token]):
            missing = (p - q).clamp(min=0)
            return [*guessed[:number], drawn(missing, generator)]
    return [*guessed, drawn(own[-1], generator)]
