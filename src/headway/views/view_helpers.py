"""Helpers of several views: the number of positions, scores of a call, and alternative views."""

from __future__ import annotations

from torch import Tensor

from headway.backends import rows as whole
from headway.backends.base import Call
from headway.inspect.probe import planes
from headway.inspect.record import Layer
from headway.masks import ALL
from headway.shapes import HeadwayError, brief
from headway.views.question import Question

LEAST = 64
"""Minimum number of positions shown."""
MOST = 256
"""Default maximum number of positions shown."""
CURVES = 8
"""Maximum curves in one figure: more could not be distinguished."""
ROUNDING = 1e-9
"""Differences below this are float64 rounding errors."""
SUITS = {
    "vectors": ("sinusoidal", "learned"),
    "similarity": ("sinusoidal", "learned", "rotary"),
    "bias": ("alibi", "t5", "kerple"),
    "rotation": ("rotary", "yarn"),
}
"""Methods that have something to show in views where others have not."""


class Unsuited(HeadwayError):
    """A view has nothing to show of a position method.

    Args:
        view: the view, one of :data:`SUITS`.
        message: what was expected, what it got, and what to do.
    """

    def __init__(self, view: str, message: str) -> None:
        super().__init__(message)
        self.suits = SUITS[view]


def places(question: Question) -> int:
    """How many positions a map shows: ``options["positions"]``, or those of the text, at least 64.

    Raises:
        HeadwayError: when that is not an integer from 2 to 4096.
    """
    asked = question.options.get("positions", min(max(len(question.labels), LEAST), MOST))
    if not isinstance(asked, int) or not 2 <= asked <= 4096:
        raise HeadwayError(f"expected options positions, the number to show, from 2 to 4096, got {brief(asked)}")
    return asked


def scores(call: Call, rows: slice = ALL) -> Tensor:
    """The scores of some queries of a call before the mask, (B, H, rows, K)."""
    return whole.scores(call, call.q[:, :, rows], call.k, call.visible(rows), rows)


def by_tokens(layer: Layer) -> bool:
    """Whether the effect of position depends on the tokens."""
    return layer.attention.position.mark(layer.source[:, :1]) is not None


def instead(question: Question, view: str) -> str:
    """Another view that shows the effect of the method."""
    layer, position = question.seen, question.position
    fit = {
        "vectors": question.position.embeds,
        "rotation": view != "rotation" and planes(position, layer.call.q_pos[:1], x=layer.source[:1]) is not None,
        "bias": bool(layer.call.score_terms or layer.call.row_terms),
    }
    return " or ".join([name for name, fits in fit.items() if fits and name != view] or ["distance"])
