"""Tokens grouped to characters or words, for models whose tokens are parts of them, e.g. bytes.

    α(I, J) = 1/|I| Σ_{i ∈ I} Σ_{j ∈ J} α_ij        rows still sum to 1

Only weights can be grouped: they are shares of a whole. Scores, and the vectors they are made of, are of single tokens.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from headway.characters import Piece
from headway.figures.values import Said, both
from headway.schema import Words, require
from headway.views.question import Question

HOW = ("characters", "words", "tokens")
LONGEST = 1024
"""Maximum tokens of a text that is grouped; maps of longer ones are pooled."""
_SPACE = frozenset("␣⏎⇥␍▁")


@dataclass(frozen=True)
class Groups:
    """Neighbouring tokens that belong together.

    Args:
        labels: a label for each group.
        starts: the first token of each.
        count: number of tokens.
        how: "characters" or "words".
    """

    labels: Sequence[str]
    starts: Sequence[int]
    count: int
    how: str

    @classmethod
    def of(cls, question: Question) -> Groups | None:
        """The groups by ``options["group"]``: "characters" (default), "words" or "tokens"; None if all are single.

        Raises:
            HeadwayError: on another option.
        """
        how = question.options.get("group", HOW[0])
        require(how, Words(HOW), "the option 'group'")
        count = len(question.labels)
        if how == "tokens" or question.keys is not None or count > LONGEST:
            return None
        starts = [i for i, one in enumerate(question.labels) if not isinstance(one, Piece) or one.first]
        names = [one.whole if isinstance(one := question.labels[i], Piece) else one for i in starts]
        if how == "words":
            begins = [i for i in range(len(names)) if i == 0 or _begins(names[i - 1], names[i])]
            ends = [*begins[1:], len(names)]
            names = ["".join(names[a:b]) for a, b in zip(begins, ends, strict=True)]
            starts = [starts[i] for i in begins]
        return None if len(starts) == count else cls(names, starts, count, how)

    def weights(self, x: Tensor) -> Tensor:
        """Weights of groups, (…, groups, groups), of those of tokens, (…, tokens, tokens)."""
        member = self._member().to(x)
        return (member / member.sum(1, keepdim=True)) @ x @ member.mT

    def seen(self, x: Tensor) -> Tensor:
        """Whether any pair of tokens of two groups is seen."""
        member = self._member().float()
        return (member @ x.float() @ member.mT) > 0

    def first(self, most: int) -> Groups:
        """At most so many of them."""
        if len(self.labels) <= most:
            return self
        return Groups(self.labels[:most], self.starts[:most], self.starts[most], self.how)

    @property
    def note(self) -> Said:
        """How they are made."""
        return both(f"grouping.{self.how}", tokens=self.count, groups=len(self.starts))

    def _member(self) -> Tensor:
        """Which tokens each group has, (groups, tokens)."""
        of = torch.bucketize(torch.arange(self.count), torch.tensor(self.starts), right=True) - 1
        return torch.nn.functional.one_hot(of, len(self.starts)).T


def divided(question: Question) -> bool:
    """Whether some of a text's tokens are parts of characters."""
    return any(isinstance(one, Piece) for one in question.labels)


def _begins(before: str, one: str) -> bool:
    """Whether a word begins between two characters or tokens: at spaces, at marks, and at every Chinese character."""
    if before[-1] in _SPACE:
        return one[0] in _SPACE and not set(before) <= _SPACE
    return one[0] in _SPACE or _alone(before[-1]) or _alone(one[0])


def _alone(letter: str) -> bool:
    wide = unicodedata.east_asian_width(letter) in "WF"
    return wide or (unicodedata.category(letter)[0] in "PS" and letter not in "'’_-")
