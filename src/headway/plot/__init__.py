"""Figures for print: :func:`picture` draws them with matplotlib, :func:`to_csv` writes their data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headway.figures.values import Figure, View
from headway.plot.table import to_csv as to_csv
from headway.shapes import HeadwayError

if TYPE_CHECKING:
    from headway.plot.sheet import Drawing


def picture(figure: View | Figure, **how: Any) -> Drawing:
    """Draw a figure or a view for print, see :func:`headway.plot.layout.picture`.

    Raises:
        HeadwayError: when matplotlib is missing, or on an unknown width or language.
    """
    try:
        from headway.plot import layout
    except ModuleNotFoundError as error:
        raise HeadwayError(
            f"expected matplotlib for pictures, got no {error.name}: pip install 'headway[plot]'"
        ) from error
    return layout.picture(figure, **how)
