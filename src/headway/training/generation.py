"""Autoregressive sampling: tokens one after another from a model, with its cache, and show them as text."""

from __future__ import annotations

import codecs
import math
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from headway.characters import shortened
from headway.shapes import HeadwayError
from headway.training.loop import evaluating
from headway.training.vocabulary import Vocabulary


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
) -> Iterator[int]:
    """Continue a prompt, one token at a time.

    The prompt runs through the model once and fills the cache; after that each token costs one row. Each is drawn from
    softmax(logits / temperature), cut to the ``top_k`` most likely and then to the smallest set whose probabilities
    add up to ``top_p`` (nucleus sampling, Holtzman et al. 2020, arXiv:1904.09751).

    The model is in evaluation mode from the first token until the iterator ends or is closed; then every module has its
    own mode back. The global random generator is not touched.

    Args:
        model: with ``model.new_cache()`` and ``model(tokens, cache=cache) -> logits``; of a Transformer a decoder.
        prompt: ids (N,) or (1, N), at least one; `prompt_ids` makes them from text, also from an empty one.
        tokens: how many to write, at least 0.
        temperature: at least 0; 0 takes the most likely token each time.
        top_k: choose among this many, at least 1; None does not limit.
        top_p: choose among the likeliest with this total probability, in (0, 1]; None does not limit.
        seed: of the drawing, from 0 to 2⁶³ − 1; the same seed gives the same tokens.
        stop: ids that end the writing; the one met is still returned.

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
    kind = getattr(model, "kind", "decoder")
    if kind in ("encoder", "encoder-decoder"):
        why = "which predicts no next token" if kind == "encoder" else "which continues nothing without a source"
        raise HeadwayError(f"expected a decoder to continue a prompt, got an {kind}, {why}: call the model itself")
    if not isinstance(prompt, Tensor) or prompt.is_floating_point() or prompt.dtype == torch.bool:
        raise HeadwayError("expected the prompt as a tensor of integer ids, got something else: encode the text first")
    if prompt.ndim == 2 and prompt.shape[0] == 1:
        prompt = prompt[0]
    if prompt.ndim != 1:
        raise HeadwayError(f"expected a prompt of shape (N,) or (1, N), got {tuple(prompt.shape)}: one at a time")
    if not len(prompt):
        raise HeadwayError("expected at least one prompt token, got none: begin with a newline, as prompt_ids does")
    for name, value, least in (("tokens", tokens, 0), ("top_k", top_k, 1), ("seed", seed, 0)):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
            raise HeadwayError(f"expected {name} to be a whole number of at least {least}, got {value!r}")
    if seed >= 2**63:
        raise HeadwayError(f"expected seed below 2⁶³, got {shortened(repr(seed))}")
    if not isinstance(temperature, int | float) or not math.isfinite(temperature) or temperature < 0:
        raise HeadwayError(f"expected a temperature of at least 0 (0 takes the most likely token), got {temperature!r}")
    if top_p is not None and (not isinstance(top_p, int | float) or not 0 < top_p <= 1):
        raise HeadwayError(f"expected top_p in (0, 1], got {top_p!r}: 0.9 is usual, None does not limit")
    config = getattr(model, "config", None)
    size = config.get("vocab") if isinstance(config, dict) else None
    if isinstance(size, int) and (int(prompt.min()) < 0 or int(prompt.max()) >= size):
        raise HeadwayError(
            f"expected prompt ids in 0 … {size - 1}, got {int(prompt.min())} … {int(prompt.max())}: "
            f"encode with the model's own vocabulary"
        )
    generator = torch.Generator().manual_seed(seed)
    return _write(model, prompt.long(), tokens, temperature, top_k, top_p, generator, frozenset(stop or ()))


def _write(
    model: Any,
    prompt: Tensor,
    tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    generator: torch.Generator,
    stop: frozenset[int],
) -> Iterator[int]:
    device = next((p.device for p in model.parameters()), prompt.device)
    rows = prompt[None].to(device)  # (1, N)
    with evaluating(model):
        cache = model.new_cache()
        for written in range(tokens):
            # no_grad, not inference_mode: tables that the model memoises here may serve a training step later.
            # It is left before each yield, or it would reach into the caller's code.
            with torch.no_grad():
                try:
                    logits = model(rows, cache=cache)[0, -1]
                except HeadwayError as error:
                    raise HeadwayError(f"could not go on after {written} of {tokens} tokens: {error}") from error
                token = _choose(logits.float().cpu(), temperature, top_k, top_p, generator)
            yield token
            if token in stop:
                return
            rows = torch.tensor([[token]], device=device)


def _choose(
    logits: Float[Tensor, "vocab"],
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    generator: torch.Generator,
) -> int:
    if not bool(torch.isfinite(logits).all()):
        raise HeadwayError("expected finite logits, got NaN or infinity: the model's weights are damaged or diverged")
    if temperature == 0:
        return int(logits.argmax())
    # The greatest becomes 0 first, so that a tiny temperature, which float32 would round to 0, gives −inf, not NaN.
    scaled = ((logits - logits.max()).double() / temperature).float()
    ordered, ids = scaled.sort(descending=True, stable=True)
    if top_k is not None:
        ordered, ids = (x[: min(top_k, len(x))] for x in (ordered, ids))
    likely = ordered.softmax(0)
    if top_p is not None:
        # A token stays while those before it have not yet reached top_p.
        keep = likely.cumsum(0) - likely < top_p
        keep[0] = True  # also where top_p is 0 in float32
        likely, ids = likely[keep], ids[keep]
    return int(ids[torch.multinomial(likely, 1, generator=generator)])


def prompt_ids(vocabulary: Vocabulary, text: str) -> Int[Tensor, "tokens"]:
    """Encode a prompt; an empty one becomes a newline, since the model needs one token to begin from.

    >>> from headway.training.vocabulary import Bytes
    >>> prompt_ids(Bytes(), "").tolist()
    [10]
    """
    return vocabulary.encode(text.encode("utf-8", "surrogateescape") or b"\n")


def stream_text(vocabulary: Vocabulary, ids: Iterable[int]) -> Iterator[str]:
    """Turn ids into text as they come, never splitting a character; bytes that are not UTF-8 become U+FFFD.

    Args:
        vocabulary: the model's own.
        ids: token ids, for example from `generate`.

    >>> from headway.training.vocabulary import Bytes
    >>> list(stream_text(Bytes(), "añb".encode()))
    ['a', 'ñ', 'b']
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for i in ids:
        if text := decoder.decode(vocabulary.decode([i])):
            yield text
    if text := decoder.decode(b"", final=True):
        yield text
