"""Sums and windows along the text, over earlier tokens, which continue from a cache.

Neighbours are neighbours in the text, not in memory: padding is skipped anywhere. All that a token needs of earlier
tokens is in the mark of the last of them, so that a cache may drop the others.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from headway.integers import exporting


@dataclass(frozen=True, eq=False)
class Before:
    """The last token of each sequence before the new ones.

    Args:
        marks: its cached data, (B, ...).
        pos: its position, (B,); -1 where a sequence has none yet.
    """

    marks: Float[Tensor, "batch *rest"]
    pos: Int[Tensor, " batch"]


def running_sum(
    x: Float[Tensor, "batch tokens *rest"],
    pos: Int[Tensor, "#batch tokens"],
    before: Float[Tensor, "batch *rest"] | None = None,
) -> Float[Tensor, "batch tokens *rest"]:
    """Σ_{t ≤ i} x_t over the tokens of the text, in float64.

    Args:
        x: (B, N, ...); padding adds nothing.
        pos: positions, (B or 1, N); -1 is padding.
        before: the sum at the token before the first, (B, ...).

    >>> running_sum(torch.tensor([[1.0, 5.0, 2.0]]), torch.tensor([[0, -1, 1]]), torch.tensor([10.0])).tolist()
    [[11.0, 11.0, 13.0]]
    """
    real = (pos >= 0).view(*pos.shape, *[1] * (x.ndim - 2))
    total = x.to(angle_dtype(x.device)).masked_fill(~real, 0.0).cumsum(1)
    return total if before is None else total + before[:, None]


def windows(
    x: Float[Tensor, "batch tokens width"],
    pos: Int[Tensor, "#batch tokens"],
    size: int,
    before: Float[Tensor, "batch last width"] | None = None,
    before_pos: Int[Tensor, " batch"] | None = None,
) -> Float[Tensor, "batch tokens size width"]:
    """x of each token and of the ``size`` − 1 before it in its text, newest first; zeros before the text starts.

    A text starts where positions do not increase, so restart positions in each packed document.

    Args:
        x: (B, N, W).
        pos: positions, (B or 1, N); -1 is padding, which is in no other token's window.
        size: tokens in a window.
        before: the window of the token before the first, without its oldest, (B, size − 1, W).
        before_pos: that token's position, (B,); -1 is none.

    >>> pos = torch.tensor([[0, -1, 1, 0]])
    >>> windows(torch.tensor([[[1.0], [2.0], [3.0], [4.0]]]), pos, 2)[0, :, :, 0].tolist()
    [[1.0, 0.0], [0.0, 0.0], [3.0, 1.0], [4.0, 0.0]]
    """
    if size == 1:
        return x[:, :, None]
    first = size - 1
    if before is None or before_pos is None:
        held, x = pos.new_full((len(pos), first), -1), pad(x, (0, 0, first, 0))
    else:
        # its window ends where its text starts, with zeros beyond
        gone = (before_pos < 0)[:, None, None]
        x = torch.cat((before.flip(1).masked_fill(gone, 0.0).to(x.dtype), x), 1)
        held, pos = before_pos[:, None].expand(-1, first), pos.expand(len(before_pos), -1)
    pos = torch.cat((held, pos), 1)
    number = torch.arange(pos.shape[1], device=pos.device).expand_as(pos)
    text = (pos >= 0) | (number < first)
    last = _greatest_so_far(torch.where(text, number, 0))  # the last token up to each place
    previous = pad(last[:, :-1], (1, 0))
    begins = (pos.gather(1, previous) >= pos) & (number >= first)
    found, place, goes_on = [x], number, text
    for _ in range(first):
        goes_on = goes_on & ~begins.gather(1, place)
        place = previous.gather(1, place)
        # each is the neighbour of at most one token, so that its gradient is a sum of one value and zeros
        taken = x[:, place[0]] if len(place) == 1 else x.gather(1, place[..., None].expand(-1, -1, x.shape[2]))
        found.append(taken.masked_fill(~goes_on[..., None], 0.0))
    return torch.stack(found, 2)[:, first:].masked_fill(~text[:, first:, None, None], 0.0)


def _greatest_so_far(x: Int[Tensor, "batch tokens"]) -> Int[Tensor, "batch tokens"]:
    """The running maximum of numbers of at least 0; ONNX has none, but maxima of all pairs."""
    if not exporting():
        return x.cummax(1).values
    number = torch.arange(x.shape[1], device=x.device)
    return torch.where(number[:, None] >= number, x[:, None], 0).amax(2)


def out_of_order(
    pos: Int[Tensor, "#batch tokens"], documents: Int[Tensor, "#batch tokens"] | None = None
) -> tuple[int, int] | None:
    """Two positions adjacent in memory (skipping padding) that decrease within a document, or None. Reads the
    values.

    Args:
        pos: positions, (B or 1, N); -1 is padding.
        documents: the document of each token; without it, one starts at every position 0 if the first starts at 0.

    >>> out_of_order(torch.tensor([[0, 1, -1, 2, 0, 1]])), out_of_order(torch.tensor([[0, 2, 1]]))
    (None, (2, 1))
    """
    if bool((pos.diff(dim=1) >= 0).all()):  # including padding before a text; nearly every call ends here
        return None
    for real in _without_padding(pos, pos if documents is None else documents):
        anew = bool(real) and real[0][0] == 0
        for (last, before), (place, now) in itertools.pairwise(real):
            begins = before != now if documents is not None else anew and place == 0
            if place < last and not begins:
                return last, place
    return None


def interleaved(pos: Int[Tensor, "#batch tokens"], documents: Int[Tensor, "#batch tokens"]) -> int | None:
    """A document that continues in memory after another one (skipping padding), or None. Reads the values.

    Args:
        pos: positions, (B or 1, N); -1 is padding.
        documents: the document of each token, (B or 1, N).

    >>> interleaved(torch.arange(4)[None], torch.tensor([[0, 0, 1, 0]]))
    0
    >>> interleaved(torch.arange(4)[None], torch.tensor([[1, 1, 0, 0]]))
    """
    if bool((documents.diff(dim=1) >= 0).all()):  # numbered in order; nearly every call ends here
        return None
    for real in _without_padding(pos, documents):
        runs = [document for document, _ in itertools.groupby(document for _, document in real)]
        again = next((one for one, times in Counter(runs).items() if times > 1), None)
        if again is not None:
            return int(again)
    return None


def _without_padding(pos: Tensor, documents: Tensor) -> Iterator[list[tuple[int, int]]]:
    """Position and document of each token that is not padding, row by row."""
    for places, ids in zip(*(row.tolist() for row in torch.broadcast_tensors(pos, documents)), strict=True):
        yield [(place, document) for place, document in zip(places, ids, strict=True) if place >= 0]


def angle_dtype(device: torch.device) -> torch.dtype:
    """float64 where the device supports it: at position 10⁶ a float32 angle has an error of 0.016 in its cosine."""
    return torch.float32 if device.type == "mps" else torch.float64
