"""What a model makes of long texts: loss by position, needles among distractors, and the length it can use.

A band is a stretch of positions. Its loss is the mean over windows and positions, and its error the standard error
of the mean over windows. The same tokens are predicted by the model as it was from a short text too, of L0/2 to L0
tokens before each, L0 the trained length: what one has without an extension. The effective length is the end of the
last band before the first, beyond L0, in which the gap between a model's loss and that has grown, compared with the
second half of L0, by more than 2 % of the loss and two standard errors of the gap: from there on, the more a model
reads, the worse it is. What it loses at every length is the loss at the trained length.

A needle is a sentence ("The code of Ada is X") at some depth of a text, among distractors of the same form about
others. At the end of the text the model is asked again ("The code of Ada is"), and has found it when X is its likeliest
next token among the codes that were named. Guessing finds one in as many as there are codes.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from headway.figures.values import both
from headway.hf.accelerate import accelerate
from headway.hf.own_text import OwnText
from headway.hf.stretching import Stretch
from headway.shapes import HeadwayError
from headway.training.batches import seed_for
from headway.training.loop import evaluating

CHUNK = 1024
"""Positions whose logits are in memory at once."""
SLACK = 0.02
NAMES = (
    "Ada",
    "Ben",
    "Cleo",
    "Dan",
    "Eve",
    "Finn",
    "Gus",
    "Hana",
    "Ivo",
    "June",
    "Kim",
    "Leo",
    "Mia",
    "Ned",
    "Ola",
    "Pia",
)


@dataclass(frozen=True)
class Measuring:
    """How much to measure.

    Args:
        windows: windows of the new length, at most.
        needles: needles at each length.
        distractors: sentences of the same form about others, at most 15.
    """

    windows: int = 4
    needles: int = 8
    distractors: int = 4


@dataclass(frozen=True)
class Side:
    """What was measured of one model.

    Args:
        bands: loss in each band, nats per token.
        errors: standard errors of these.
        at_trained: loss of windows of the trained length.
        effective: effective length, in tokens.
        needles: needles found at the trained length, None where they have no room, and at the new one.
    """

    bands: tuple[float, ...]
    errors: tuple[float, ...]
    at_trained: float
    effective: int
    needles: tuple[int | None, int | None]


@dataclass(frozen=True)
class Measured:
    """What was measured before and after.

    Args:
        text: name of the text.
        how: the extension.
        trained: the trained length.
        to: the new length.
        tuned: steps of tuning.
        tokens: tokens in the windows of the new length.
        ends: where each band ends, in tokens.
        short: loss in each band of the model as it was, from the last L0 tokens alone.
        before: the model as it was.
        after: the model extended.
        needles: how many there were at each length.
        codes: how many codes were named in each.
    """

    text: str
    how: str
    trained: int
    to: int
    tuned: int
    tokens: int
    ends: tuple[int, ...]
    short: tuple[float, ...]
    before: Side
    after: Side
    needles: int
    codes: int

    @property
    def sentence(self) -> dict[str, str]:
        """What to quote, in every language."""
        return both(
            "extend.finding.tuned" if self.tuned else "extend.finding",
            **{name: getattr(self, name) for name in ("text", "how", "trained", "to", "tuned", "needles", "codes")},
            effective=self.after.effective,
            was=self.before.effective,
            loss=self.after.at_trained,
            loss_was=self.before.at_trained,
            found=self.after.needles[1],
            found_was=self.before.needles[1],
        )


def measure(
    before: PreTrainedModel,
    after: PreTrainedModel,
    text: OwnText,
    stretch: Stretch,
    settings: Measuring,
    *,
    tuned: int = 0,
    seed: int = 0,
    tell: Callable[[str], None] | None = None,
) -> Measured:
    """Measure a model before and after an extension, on the same windows and needles.

    Raises:
        HeadwayError: when the text is too short.
    """
    check(text, stretch, settings)
    windows = text.windows(stretch.to, settings.windows)
    short = text.windows(stretch.trained, 4 * settings.windows)
    ends = band_ends(stretch.trained, stretch.to)
    sides = list[Side]()
    with accelerated(before), evaluating(before), torch.inference_mode():
        near = torch.stack([from_short(before, window, stretch.trained, len(text.prefix)) for window in windows])
    for name, model in (("before", before), ("after", after)):
        if tell is not None:
            tell(f"measuring {name}: {len(windows)} windows of {stretch.to:,} tokens")
        with accelerated(model), evaluating(model), torch.inference_mode():
            # short texts first: transformers' dynamic keeps the frequencies of the longest text so far
            trained = float(torch.stack([losses(model, window) for window in short]).mean())
            hits = [found_at(model, text, length, settings, seed) for length in (stretch.trained, stretch.to)]
            found = torch.stack([losses(model, window) for window in windows])  # (windows, positions)
        effective = effective_length(found, near, ends, stretch.trained)
        sides.append(Side(*in_bands(found, ends), trained, effective, (hits[0], hits[1])))
    return Measured(
        text.name,
        stretch.how,
        stretch.trained,
        stretch.to,
        tuned,
        windows[:, 1:].numel(),
        ends,
        in_bands(near, ends)[0],
        sides[0],
        sides[1],
        settings.needles,
        settings.distractors + 1,
    )


@contextmanager
def accelerated(model: PreTrainedModel) -> Iterator[None]:
    """A model with headway's attention where it can have it."""
    try:
        done = accelerate(model, quiet=True)
    except HeadwayError:
        yield
        return
    try:
        yield
    finally:
        done.undo()


def losses(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Loss of each next token, (N,), of ids (N + 1,), in nats; only the logits of some positions are held at once."""
    ids = ids.to(model.device)
    inputs, targets = ids[None, :-1], ids[1:]
    parts = [
        F.cross_entropy(logits.double() if logits.dtype is torch.float64 else logits.float(), some, reduction="none")
        for logits, some in zip(_logits(model, inputs), targets.split(CHUNK), strict=True)
    ]
    return torch.cat(parts).double().cpu()


def _logits(model: PreTrainedModel, inputs: Tensor) -> Iterator[Tensor]:
    """Logits of one pass, (some, vocabulary) at a time: the head is applied to a part of the last states."""
    body, n = model.base_model, inputs.shape[1]
    if body is model or "logits_to_keep" not in inspect.signature(model.forward).parameters:
        yield from model(input_ids=inputs, use_cache=False).logits[0].split(CHUNK)
        return
    states = body(input_ids=inputs, use_cache=False)

    def known(*args: Any, **kwargs: Any) -> Any:
        return states

    for positions in torch.arange(n, device=inputs.device).split(CHUNK):
        with patch.object(body, "forward", known):
            logits = model(input_ids=inputs, use_cache=False, logits_to_keep=positions).logits
        yield logits[0]


def band_ends(trained: int, to: int) -> tuple[int, ...]:
    """Where bands of a quarter of the trained length end; wider ones where there would be more than 32.

    >>> band_ends(4, 9)
    (1, 2, 3, 4, 5, 6, 7, 8, 9)
    """
    width = max(1, trained // 4, -(-to // 32))
    return (*range(width, to, width), to)


def in_bands(found: Tensor, ends: Sequence[int]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean loss in each band, and its standard error over windows (0 for one window)."""
    means = torch.stack([found[:, begin:end].mean(1) for begin, end in zip((0, *ends[:-1]), ends, strict=True)], 1)
    count = len(found)
    errors = means.std(0) / math.sqrt(count) if count > 1 else torch.zeros(means.shape[1])
    return tuple(means.mean(0).tolist()), tuple(errors.tolist())


def effective_length(found: Tensor, near: Tensor, ends: Sequence[int], trained: int) -> int:
    """The end of the last band before the first in which a model's loss grows beyond that from a short text.

    Args:
        found: loss of each token, (windows, positions).
        near: loss of the same tokens from a short text.
        ends: where each band ends.
        trained: the trained length; bands up to it are not looked at.

    >>> effective_length(torch.tensor([[2.0, 2.0, 2.0, 2.5]]), torch.full((1, 4), 2.0), (1, 2, 3, 4), 2)
    3
    """
    gaps, errors = in_bands(found - near, ends)
    level = float((found - near)[:, trained // 2 : trained].mean()) + SLACK * float(near.mean())
    begins = (0, *ends[:-1])
    for begin, gap, error in zip(begins, gaps, errors, strict=True):
        if begin >= trained and not gap <= level + 2 * error:
            return begin
    return ends[-1]


def from_short(model: PreTrainedModel, ids: Tensor, length: int, before: int) -> Tensor:
    """Loss of each next token, (N,), from the last length/2 to ``length`` tokens and the ids before every text.

    Args:
        model: the model.
        ids: (N + 1,).
        length: tokens of each text.
        before: how many ids at the beginning stand before every text.
    """
    parts, n, stride = [losses(model, ids[: length + 1])], len(ids) - 1, max(1, length // 2)
    for begin in range(length, n, stride):
        end = min(begin + stride, n)
        text = torch.cat((ids[:before], ids[end - length + before : end + 1]))
        parts.append(losses(model, text)[begin - end :])
    return torch.cat(parts)


def check(text: OwnText, stretch: Stretch, settings: Measuring) -> None:
    """Find out before any work whether a text is long enough, and the new length has room for needles.

    Raises:
        HeadwayError: when it is not, or has not.
    """
    if not 0 <= settings.distractors < len(NAMES):
        raise HeadwayError(f"expected at most {len(NAMES) - 1} distractors, got {settings.distractors}")
    text.windows(stretch.to, settings.windows)
    if haystack(text, stretch.to, settings, 0, 0) is None:
        raise HeadwayError(
            f"expected room for {settings.distractors + 1} sentences in {stretch.to:,} tokens of more than one kind, "
            f"got less: ask for fewer distractors"
        )


def found_at(model: PreTrainedModel, text: OwnText, length: int, settings: Measuring, seed: int) -> int | None:
    """How many needles are found at a length; None where they have no room.

    Their depths are even, from the beginning to the end of the text.
    """
    keep = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    found = 0
    for number in range(settings.needles):
        made = haystack(text, length, settings, number, seed)
        if made is None:
            return None
        ids, codes = made
        logits = model(input_ids=ids[None].to(model.device), use_cache=False, **keep).logits[0, -1]
        found += int(logits[codes.to(logits.device)].argmax()) == 0
    return found


def haystack(text: OwnText, length: int, settings: Measuring, number: int, seed: int) -> tuple[Tensor, Tensor] | None:
    """Ids of a text with a needle and distractors that ends with the question, (length,), and the codes, its own first.

    None where the length has no room for them.
    """
    draw = torch.Generator().manual_seed(seed_for(seed, number, f"needle {length}"))
    count = settings.distractors + 1
    windows = text.windows(length, settings.needles)
    window = windows[number % len(windows)]
    ids, often = window.unique(return_counts=True)
    frequent = ids[often.argsort(descending=True, stable=True)][: 8 * count]
    codes = frequent[torch.randperm(len(frequent), generator=draw)[:count]]
    asked = [torch.tensor(each) for each in _questions(text, frequent, count, draw)]
    stated = [torch.cat((question, code[None])) for question, code in zip(asked, codes, strict=True)]
    room = length - len(text.prefix) - sum(map(len, stated)) - len(asked[0])
    if len(codes) < count or room < count:
        return None
    hay = window[len(text.prefix) :][:room]
    depth = int(room * number / max(settings.needles - 1, 1))
    places = [depth, *torch.randint(room + 1, (count - 1,), generator=draw).tolist()]
    parts, begin = [torch.tensor(text.prefix, dtype=torch.long)], 0
    for place, which in sorted((place, which) for which, place in enumerate(places)):
        parts += [hay[begin:place], stated[which]]
        begin = place
    return torch.cat((*parts, hay[begin:], asked[0])), codes


def _questions(text: OwnText, frequent: Tensor, count: int, draw: torch.Generator) -> list[list[int]]:
    """What precedes each code: a sentence about a name, or random ids where there is no tokenizer."""
    if text.encode is None:
        marker = frequent[torch.randint(len(frequent), (3,), generator=draw)].tolist()
        keys = frequent[torch.randint(len(frequent), (count, 3), generator=draw)].tolist()
        return [marker + key for key in keys]
    names = torch.randperm(len(NAMES), generator=draw)[:count].tolist()
    return [text.encode(f"\nThe code of {NAMES[name]} is") for name in names]
