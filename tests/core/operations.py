"""Random sequences of operations on Attention, Transformer and KVCache, each compared with full passes without a cache.

A sequence is drawn from its number alone: calls of some tokens each, with positions given or not, padding, documents
and options, and between them tokens that are dropped, hidden or rolled back. After each call every text of the batch is
computed anew by itself, in float64 on the reference, in one pass over all that was ever handed in, with a mask that
says who saw whom. The gradients of the last call are compared with differences.
"""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch
from common import randomise, specs
from torch import Tensor

from headway import Attention, Causal, Documents, HeadwayError, KVCache, Transformer, Window
from headway.masks import Dense
from headway.positions import parse

REFUSAL = "expected a cache that dropped the oldest tokens, or the newest that new ones replace"
TOLERANCE = 1e-7


def run(number: int) -> None:
    """Run sequence ``number``.

    Raises:
        AssertionError: with the number and what was done so far, where anything differs or fails.
    """
    torch.manual_seed(number)
    sequence = Sequence(random.Random(number))
    try:
        sequence.run()
    except (Exception, pytest.fail.Exception) as error:
        raise AssertionError(f"sequence {number}: {sequence.told}: {type(error).__name__}: {error}") from error


class Sequence:
    """One sequence of operations, and what it has done so far.

    A column is a place of the batch that was ever handed in; a text is a row of it.
    """

    def __init__(self, draw: random.Random) -> None:
        self.draw = draw
        self.spec = draw.choice(specs())
        self.position = parse(self.spec)
        heads, kv_heads = draw.choice([(2, 2), (4, 2), (2, 1)])
        options: dict[str, Any] = {
            "sinks": draw.random() < 0.4 and self.position.normalise == "softmax",
            "softcap": 2.0 if draw.random() < 0.2 else None,
            "qk_norm": draw.random() < 0.2,
            "log_scale": 4 if draw.random() < 0.2 else None,
            "backend": draw.choice(["auto", "auto", "reference", "tiled"]),
            "kv_heads": kv_heads,
        }
        self.transformer = draw.random() < 0.25
        if self.transformer:
            self.module: Any = Transformer(11, 8 * heads, 2, heads, hidden=8, position=self.spec, **options)
        else:
            mask = draw.choice([Causal(), Causal(), Causal() & Window(3)])
            self.module = Attention(8 * heads, heads, position=self.spec, mask=mask, **options)
        self.module = self.module.double().eval()
        randomise(self.module)
        self.whole = copy.deepcopy(self.module)
        for part in self.whole.modules():
            if hasattr(part, "backend"):
                part.backend = "reference"
        self.width = 8 * heads
        self.texts = draw.choice([1, 1, 2])
        self.documents = not self.transformer and draw.random() < 0.3
        # documents are told for the keys that were held, and a cache with a size has free room besides
        sized = not self.documents and not self.position.normalise.endswith("remainder") and draw.random() < 0.5
        size = 40 if sized else None
        self.told = f"{type(self.module).__name__}({self.spec}, {heads}, {options}), {self.texts} texts, size {size}"
        self.cache: Any = self.module.new_cache(size) if self.transformer else KVCache(size)
        self.inputs: list[Tensor] = []  # of each call
        self.pos: list[list[int]] = [[] for _ in range(self.texts)]  # of each column
        self.ids: list[list[int]] = [[] for _ in range(self.texts)]  # its document
        self.saw: list[list[int]] = []  # for each column, the columns that were cached at its call
        self.held: list[int] = []  # the columns that are cached now
        self.rolled: list[set[int]] = [set() for _ in range(self.texts)]  # columns of each text that others replaced

    def run(self) -> None:
        """All of it."""
        calls = self.draw.randint(2, 5)
        for call in range(calls):
            if not self.call(last=call == calls - 1):
                return
            if call < calls - 1 and self.draw.random() < 0.45:
                self.drop()

    def call(self, last: bool) -> bool:
        """Hand in some tokens; whether they were taken."""
        draw, tokens, first = self.draw, self.draw.choice([1, 1, 2, 3, 5]), len(self.saw)
        given = draw.random() < 0.5 or self.documents or not self.held
        rows, ids = zip(*(self.placed(text, tokens, given) for text in range(self.texts)), strict=True)
        self.told += f"; {tokens} at {[*rows] if given else 'the next'}"
        if not given:  # the next positions are those of what was dropped behind the last that is held
            for row, pos, rolled in zip(rows, self.pos, self.rolled, strict=True):
                rolled |= {column for column in range(first) if column not in self.held and pos[column] >= row[0]}
        columns = list(range(first, first + tokens))
        held = [*self.held, *columns]
        for text in range(self.texts):
            self.pos[text] += rows[text]
            self.ids[text] += ids[text]
        mask = None
        if self.documents:
            keys = torch.tensor([[ids[column] for column in held] for ids in self.ids])
            mask = Documents(torch.tensor(ids), keys)
        if self.transformer:
            x = torch.randint(11, (self.texts, tokens))
        else:
            x = torch.randn(self.texts, tokens, self.width).double()
        arguments = {"pos": torch.tensor(rows) if given else None, "mask": mask}
        before = copy.deepcopy(self.cache) if last else None
        if self.position.unbroken and any(self.broken(text, columns) for text in range(self.texts)):
            with pytest.raises(HeadwayError, match=f"^{REFUSAL}"):
                self.module(x, cache=self.cache, **arguments)
            return False
        out = self.module(x, cache=self.cache, **arguments)
        self.held, self.saw = held, self.saw + [held] * tokens
        self.inputs.append(x)
        self.compare(out, columns)
        if last:
            self.differentiate(out, x, before, arguments)
        return True

    def placed(self, text: int, tokens: int, given: bool) -> tuple[list[int], list[int]]:
        """Positions and documents of the next tokens of a text."""
        kept = [self.pos[text][column] for column in self.held]
        if not given:
            start = max(kept, default=-1) + 1
            return [*range(start, start + tokens)], [0] * tokens
        draw, ids = self.draw, self.ids[text]
        # behind everything there ever was, so that what was dropped is hidden
        at = max(self.pos[text], default=-1) + 1
        if self.documents:
            here = [p for p, i in zip(self.pos[text], ids, strict=True) if i == max(ids)]
            at = max(here, default=-1) + 1
        document, row, found = max(ids, default=0), [], []
        for _ in range(tokens):
            if self.documents and draw.random() < 0.2:
                document, at = document + 1, 0
            if draw.random() < 0.2:
                row.append(-1)
            else:
                at += draw.choice([0, 0, 0, 3])
                row.append(at)
                at += 1
            found.append(document)
        return row, found

    def drop(self) -> None:
        """Drop some columns from the cache."""
        count, draw = len(self.held), self.draw
        kind = draw.choice(["oldest", "some"] if self.documents else ["oldest", "some", "newest"])
        n = draw.randint(1, max(1, count // 2))
        kept = {
            "oldest": list(range(n, count)),
            "newest": list(range(count - n)),
            # the newest stays
            "some": sorted({*draw.sample(range(count), count - n), count - 1} if count else []),
        }[kind]
        if not kept:
            return
        self.told += f"; keep {kept} of {count}"
        for cache in self.cache.layers if self.transformer else [self.cache]:
            cache.keep(draw.choice([kept, torch.tensor(kept), tuple(kept[::-1]), [i in kept for i in range(count)]]))
        self.held = [self.held[i] for i in kept]

    def broken(self, text: int, new: list[int]) -> bool:
        """Whether a token is missing between others that are there."""
        pos = self.pos[text]
        there = [column for column in [*self.held, *new] if column < len(pos) and pos[column] >= 0]
        if not any(pos[column] >= 0 for column in self.held):
            return False
        gone = set(range(len(pos))) - set(there) - self.rolled[text]
        end = max(there)
        return any(pos[column] >= 0 and min(there) < column < end for column in gone)

    def compare(self, out: Tensor, columns: list[int]) -> None:
        """Compare the result of a call with one pass over each text alone."""
        x = torch.cat(self.inputs, 1)
        for text in range(self.texts):
            there = [column for column in range(len(self.saw)) if column not in self.rolled[text]]
            pos, ids = ([row[column] for column in there] for row in (self.pos[text], self.ids[text]))
            sets = [set(self.saw[column]) for column in there]
            seen = torch.tensor(
                [[k in saw and ids[j] == ids[i] for j, k in enumerate(there)] for i, saw in enumerate(sets)]
            )
            mask = Dense(seen[None, None]) & Documents(torch.tensor([ids]))
            expected = self.whole(x[text : text + 1, there], pos=torch.tensor(pos), mask=mask)[0]
            for column in columns:
                if self.pos[text][column] >= 0:
                    one, other = out[text, column - columns[0]], expected[there.index(column)]
                    error = float((one - other).detach().abs().max() / (1 + other.detach().abs().max()))
                    assert error < TOLERANCE, f"text {text}, column {column} differs by {error:.2g}"

    def differentiate(self, out: Tensor, x: Tensor, before: Any, arguments: dict[str, Any]) -> None:
        """Hold the gradients of the last call against differences, along one direction through all parameters."""
        weight = torch.randn_like(out)
        if self.transformer:  # the output at padding is ignored
            real = torch.tensor([row[-x.shape[1] :] for row in self.pos]) >= 0
            weight = weight * real[..., None]
        parameters = list(self.module.parameters())
        found = torch.autograd.grad((out * weight).sum(), parameters, allow_unused=True)
        along = [torch.randn_like(p) for p in parameters]
        slope = sum(float((g * u).sum()) for g, u in zip(found, along, strict=True) if g is not None)
        for step in (1e-6, 1e-8):  # the shorter one steps over no kink of a ReLU that lies within the longer
            ends = []
            for sign in (1, -1):
                changed = copy.deepcopy(self.module)
                with torch.no_grad():
                    for p, u in zip(changed.parameters(), along, strict=True):
                        p.add_(sign * step * u)
                    ends.append(float((changed(x, cache=copy.deepcopy(before), **arguments) * weight).sum()))
            difference = (ends[0] - ends[1]) / (2 * step)
            size = 1 + abs(difference) + sum(abs(end) for end in ends)
            if abs(slope - difference) < 1e-5 * size:
                return
        raise AssertionError(f"slope {slope}, by differences {difference}")
