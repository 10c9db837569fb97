"""Autoregressive sampling: tokens one after another from a model, with its cache, and show them as text."""

from __future__ import annotations

import codecs
import contextlib
from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor, nn

from headway.schema import LARGEST, Number, Whole, require
from headway.settings import Settings
from headway.shapes import HeadwayError
from headway.training.loop import evaluating
from headway.training.vocabulary import Delimited, Vocabulary


def generate(
    model: nn.Module,
    prompt: Int[Tensor, "tokens"] | Int[Tensor, "1 tokens"],
    *,
    tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    stop: Collection[int] | None = None,
    source: Int[Tensor, "source"] | Int[Tensor, "1 source"] | None = None,
) -> Iterator[int]:
    """Continue a prompt, one token at a time.

    The prompt runs through the model once and fills the cache; after that each token costs one row. Each is drawn from
    softmax(logits / temperature), cut to the ``top_k`` most likely and then to the smallest set whose probabilities
    add up to ``top_p`` (nucleus sampling, Holtzman et al. 2020, arXiv:1904.09751).

    The model is in evaluation mode from the first token until the iterator ends or is closed; then every module has its
    own mode back. The global random generator is not touched.

    Args:
        model: with ``model.new_cache()`` and ``model(tokens, cache=cache) -> logits``; of a Transformer a decoder, or
            an encoder-decoder, which is also given its source.
        prompt: ids (N,) or (1, N), at least one; `prompt_ids` makes them from text, also from an empty one.
        tokens: how many to write, at least 0.
        temperature: at least 0; 0 takes the most likely token each time.
        top_k: choose among this many, at least 1; None does not limit.
        top_p: choose among the likeliest with this total probability, in (0, 1]; None does not limit.
        seed: of the drawing, from 0 to 2⁶³ − 1; the same seed gives the same tokens.
        stop: ids that end the writing; the one met is still returned.
        source: ids (M,) or (1, M) that the encoder of an encoder-decoder reads; the prompt is then how its decoder
            begins. See :class:`headway.training.Delimited` for runs on pairs.

    Returns:
        An iterator of ids.

    Raises:
        HeadwayError: at once on a bad argument; while writing when the position method cannot go on (a learned table
            has an end) or the model's output is not finite.

    >>> class Next(nn.Module):
    ...     "Always predicts the next number."
    ...     def new_cache(self):
    ...         return None
    ...     def forward(self, tokens, cache=None):
    ...         return 9.0 * torch.nn.functional.one_hot((tokens + 1) % 10, 10)
    >>> list(generate(Next(), torch.tensor([3]), tokens=4, temperature=0))
    [4, 5, 6, 7]
    """
    check_decoder(model, source is not None)
    prompt = check_prompt(model, prompt)
    read = None if source is None else check_prompt(model, source, "source")
    require(tokens, Whole(0), "tokens")
    sampling = Sampling(temperature, top_k, top_p, seed)
    return _tokens(steps(model, prompt, tokens, sampling, frozenset(stop or ()), read))


def _tokens(written: Generator[Step, None, None]) -> Iterator[int]:
    with contextlib.closing(written):
        for step in written:
            yield step.token


def check_decoder(model: Any, source: bool = False) -> None:
    """Refuse what continues no prompt, with or without a source.

    Raises:
        HeadwayError: on an encoder, an encoder-decoder without a source, or a decoder with one.
    """
    kind = getattr(model, "kind", "decoder")
    if kind == "encoder-decoder" and not source:
        raise HeadwayError(
            "expected a decoder to continue a prompt, got an encoder-decoder, which continues nothing without a "
            "source: give source to generate, generate_batch or beam_search"
        )
    if kind == "encoder":
        raise HeadwayError(
            "expected a decoder to continue a prompt, got an encoder, which predicts no next token: "
            "call the model itself"
        )
    if kind == "decoder" and source:
        raise HeadwayError("expected no source for a decoder, which has no encoder to read it, got one: leave it out")


def check_prompt(model: Any, prompt: Any, what: str = "prompt") -> Int[Tensor, "_"]:
    """A prompt, or a source, as ids (N,).

    Raises:
        HeadwayError: when it is none, or not of the model's vocabulary.
    """
    if not isinstance(prompt, Tensor) or prompt.is_floating_point() or prompt.dtype == torch.bool:
        raise HeadwayError(f"expected the {what} as a tensor of integer ids, got something else: encode the text first")
    if prompt.ndim == 2 and prompt.shape[0] == 1:
        prompt = prompt[0]
    if prompt.ndim != 1:
        raise HeadwayError(
            f"expected a {what} of shape (N,) or (1, N), got {tuple(prompt.shape)}: "
            f"headway.training.generate_batch continues several"
        )
    if not len(prompt):
        hint = "begin with a newline, as prompt_ids" if what == "prompt" else "end it, as Delimited.source"
        raise HeadwayError(f"expected at least one {what} token, got none: {hint} does")
    config = getattr(model, "config", None)
    size = config.get("vocab") if isinstance(config, dict) else getattr(config, "vocab", None)
    if isinstance(size, int) and (int(prompt.min()) < 0 or int(prompt.max()) >= size):
        raise HeadwayError(
            f"expected {what} ids in 0 … {size - 1}, got {int(prompt.min())} … {int(prompt.max())}: "
            f"encode with the model's own vocabulary"
        )
    ids: Tensor = prompt.long()
    return ids


@dataclass(frozen=True)
class Sampling(Settings):
    """How the next token is drawn; arguments and errors as of :func:`generate`."""

    temperature: Annotated[float, Number(0)] = 1.0
    top_k: Annotated[int | None, Whole(1)] = None
    top_p: Annotated[float | None, Number(above=0, most=1)] = None
    seed: Annotated[int, Whole(0)] = 0

    def __post_init__(self) -> None:
        if type(self.top_k) is int and self.top_k > LARGEST:  # as good as no limit
            object.__setattr__(self, "top_k", LARGEST)
        super().__post_init__()

    def generator(self) -> torch.Generator:
        """A new generator of this seed."""
        return torch.Generator().manual_seed(self.seed)

    def choose(self, logits: Float[Tensor, "vocab"], generator: torch.Generator) -> int:
        """Draw a token."""
        likely, ids = self.likely(logits)
        if self.temperature == 0:
            return int(ids[0])
        return int(ids[drawn(likely, generator)])

    def likely(self, logits: Float[Tensor, "vocab"]) -> tuple[Float64[Tensor, "kept"], Int[Tensor, "kept"]]:
        """The tokens that may be drawn, the likeliest first: their probabilities, in float64, which add up to 1; and
        their ids.

        Raises:
            HeadwayError: on logits that are not finite.

        >>> p, ids = Sampling(top_k=2).likely(torch.tensor([0.0, 1.0, 1.0]))
        >>> p.tolist(), ids.tolist()
        ([0.5, 0.5], [1, 2])
        """
        if not bool(torch.isfinite(logits).all()):
            raise HeadwayError(
                "expected finite logits, got NaN or infinity: the model's weights are damaged or diverged"
            )
        logits = logits.cpu().double()
        if self.temperature == 0:
            return torch.ones(1, dtype=torch.float64), logits.argmax()[None]
        # The greatest becomes 0 first, so that a tiny temperature gives −inf, not NaN.
        ordered, ids = ((logits - logits.max()) / self.temperature).sort(descending=True, stable=True)
        if self.top_k is not None:
            ordered, ids = (x[: min(self.top_k, len(x))] for x in (ordered, ids))
        likely = ordered.softmax(0)
        if self.top_p is not None:
            # A token stays while those before it have not yet reached top_p.
            keep = likely.cumsum(0) - likely < self.top_p
            likely, ids = likely[keep], ids[keep]
        return likely / likely.sum(), ids


def drawn(shares: Float64[Tensor, "some"], generator: torch.Generator) -> int:
    """An index, drawn by these shares, which need not add up to 1; in float32, so that seeds keep what they gave."""
    return int(torch.multinomial(shares.float(), 1, generator=generator))


def probabilities(logits: Float[Tensor, "vocab"], sampling: Sampling) -> Float64[Tensor, "vocab"]:
    """What each token is drawn with, after temperature, top_k and top_p; 0 for those that are cut off.

    >>> probabilities(torch.tensor([0.0, 1.0, 1.0]), Sampling(top_k=2)).tolist()
    [0.0, 0.5, 0.5]
    """
    likely, ids = sampling.likely(logits)
    return torch.zeros(len(logits), dtype=torch.float64).index_put((ids,), likely)


class Step(NamedTuple):
    """One step of :func:`steps`.

    Args:
        token: the id that was drawn.
        logits: of the whole vocabulary, on the CPU, from which it was drawn.
        cache: the model's own, with the keys and values of all tokens before it; it changes with the next step.
    """

    token: int
    logits: Float[Tensor, "vocab"]
    cache: Any


def steps(
    model: Any,
    prompt: Int[Tensor, "tokens"],
    tokens: int,
    sampling: Sampling,
    stop: Collection[int] = frozenset(),
    source: Int[Tensor, "source"] | None = None,
) -> Generator[Step, None, None]:
    """What :func:`generate` does, one step at a time; arguments are those of it, checked.

    >>> from headway import Transformer
    >>> model = Transformer(vocab=9, dim=16, layers=1, heads=2)
    >>> [len(step.cache) for step in steps(model, torch.tensor([3, 1]), 3, Sampling())]
    [2, 3, 4]
    """
    device = next((p.device for p in model.parameters()), prompt.device)
    rows = prompt[None].to(device)  # (1, N)
    given = {} if source is None else {"source": source[None].to(device)}
    generator = sampling.generator()
    with evaluating(model):
        cache = model.new_cache()
        for written in range(tokens):
            # no_grad, not inference_mode: tables that the model memoises here may serve a training step later.
            # It is left before each yield, or it would reach into the caller's code.
            with torch.no_grad():
                try:
                    logits = model(rows, cache=cache, **given)[0, -1]
                except HeadwayError as error:
                    raise HeadwayError(f"could not go on after {written} of {tokens} tokens: {error}") from error
                logits = logits.cpu()
                token = sampling.choose(logits, generator)
            yield Step(token, logits, cache)
            if token in stop:
                return
            rows = torch.tensor([[token]], device=device)


def prompt_ids(vocabulary: Vocabulary, text: str) -> Int[Tensor, "tokens"]:
    """Encode a prompt; an empty one becomes a newline, since the model needs one token to begin from.

    >>> from headway.training.vocabulary import Bytes
    >>> prompt_ids(Bytes(), "").tolist()
    [10]
    """
    return vocabulary.encode(text.encode("utf-8", "surrogateescape") or b"\n")


def begin(vocabulary: Vocabulary, text: str) -> tuple[Tensor, Tensor | None, int | None]:
    """What :func:`generate` takes for a prompt, or for a source if the model was trained on pairs.

    Args:
        vocabulary: the run's own.
        text: the prompt or source.

    Returns:
        The prompt, the source and the id that ends the writing; the latter two are None for a prompt.

    >>> from headway.training.vocabulary import Bytes, Delimited
    >>> begin(Delimited(Bytes()), "a")
    (tensor([256]), tensor([ 97, 257]), 257)
    """
    if not isinstance(vocabulary, Delimited):
        return prompt_ids(vocabulary, text), None, None
    source = vocabulary.source(text.encode("utf-8", "surrogateescape"))
    return torch.tensor([vocabulary.start]), source, vocabulary.end


def stream_text(vocabulary: Vocabulary, ids: Iterable[int], stop: Collection[str] = ()) -> Iterator[str]:
    """Turn ids into text as they come, never splitting a character; bytes that are not UTF-8 become U+FFFD.

    Args:
        vocabulary: the model's own.
        ids: token ids, for example from `generate`.
        stop: texts that end the stream: it ends before the first of them, and no part of one is given out before it is
            clear that it is none.

    >>> from headway.training.vocabulary import Bytes
    >>> list(stream_text(Bytes(), "añb".encode()))
    ['a', 'ñ', 'b']
    >>> "".join(stream_text(Bytes(), b"one. two. three", stop=[". t"]))
    'one'
    """
    text = TextStream(vocabulary, stop)
    for i in ids:
        if piece := text.add(i):
            yield piece
        if text.stopped:
            return
    if piece := text.end():
        yield piece


def stream_texts(
    vocabulary: Vocabulary, rows: Iterable[Sequence[int | None]], stop: Collection[str] = ()
) -> Iterator[list[str]]:
    """Turn the ids of several sequences into text as they come, each as :func:`stream_text` does.

    Args:
        vocabulary: the model's own.
        rows: the next id of each sequence, None where it has ended, for example from `generate_batch`.
        stop: texts that end a sequence's text.

    Returns:
        An iterator of lists with the new text of each sequence, which may be empty; it ends with the rows, or when all
        sequences have ended.

    >>> from headway.training.vocabulary import Bytes
    >>> list(stream_texts(Bytes(), [[97, 195], [98, 177], [None, 99]], stop=["c"]))
    [['a', ''], ['b', 'ñ'], ['', '']]
    """
    texts: list[TextStream] | None = None
    for row in rows:
        texts = [TextStream(vocabulary, stop) for _ in row] if texts is None else texts
        yield [
            text.end() if i is None else "" if text.stopped else text.add(i) for text, i in zip(texts, row, strict=True)
        ]
        if all(text.stopped for text in texts):
            return
    if texts is not None and any(rest := [text.end() for text in texts]):
        yield rest


class TextStream:
    """The text of one sequence of ids, as they come.

    Args:
        vocabulary: the model's own.
        stop: texts that end it; see :func:`stream_text`.

    Raises:
        HeadwayError: when ``stop`` is no collection of texts of at least one letter.
    """

    def __init__(self, vocabulary: Vocabulary, stop: Collection[str] = ()) -> None:
        if isinstance(stop, str) or not all(isinstance(text, str) and text for text in stop):
            raise HeadwayError(f"expected stop as texts of at least one letter, got {stop!r:.60}")
        self.stopped = False
        self._vocabulary, self._stop, self._held = vocabulary, tuple(stop), ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, i: int) -> str:
        """The text that is certain after one more id."""
        return self._certain(self._decoder.decode(self._vocabulary.decode([i])), last=False)

    def end(self) -> str:
        """The text that waited for more."""
        return "" if self.stopped else self._certain(self._decoder.decode(b"", final=True), last=True)

    def _certain(self, piece: str, last: bool) -> str:
        held = self._held + piece
        if found := [held.index(text) for text in self._stop if text in held]:
            self.stopped, self._held = True, ""
            return held[: min(found)]
        # what may still become a stop text waits
        longest = 0 if last else max((_overlap(held, text) for text in self._stop), default=0)
        self._held = held[len(held) - longest :]
        self.stopped = last
        return held[: len(held) - longest]


def _overlap(text: str, stop: str) -> int:
    """How many of the last letters of a text are the first of another."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
