"""What several views ask of a question: how many positions to show, how tokens score, and where else to look."""

from __future__ import annotations

from torch import Tensor

from headway.backends import rows as whole
from headway.backends.base import Call
from headway.inspect.probe import planes
from headway.inspect.record import Layer
from headway.shapes import HeadwayError
from headway.views.question import Question

LEAST = 64
"""Positions that are shown of a short text's method."""
MOST = 256
"""Positions that are shown at most, unless asked for."""
CURVES = 8
"""Curves in one figure: more could not be told apart."""
ROUNDING = 1e-9
"""Differences below are of float64's making."""


def places(question: Question) -> int:
    """How many positions a map shows: ``options["positions"]``, or those of the text, at least 64.

    Raises:
        HeadwayError: when that is no number from 2 to 4096.
    """
    asked = question.options.get("positions", min(max(len(question.labels), LEAST), MOST))
    if not isinstance(asked, int) or not 2 <= asked <= 4096:
        raise HeadwayError(f"expected options positions, how many are shown, from 2 to 4096, got {asked!r}")
    return asked


def scores(call: Call) -> Tensor:
    """All scores of a call before the mask, (B, H, Q, K)."""
    return whole.scores(call, call.q, call.k, call.visible())


def by_tokens(layer: Layer) -> bool:
    """Whether what position does is computed from the tokens themselves."""
    return layer.attention.position.mark(layer.x[:, :1]) is not None


def instead(question: Question, view: str) -> str:
    """Which other of these views shows what the method does."""
    layer, position = question.seen, question.position
    fit = {
        "vectors": question.position.embeds,
        "rotation": view != "rotation" and planes(position, layer.call.q_pos[:1], x=layer.x[:1]) is not None,
        "bias": bool(layer.call.score_terms or layer.call.row_terms),
    }
    return " or ".join([name for name, fits in fit.items() if fits and name != view] or ["distance"])
