"""How objects are displayed in a notebook: the only import from lower packages up to the views.

:mod:`headway.views.notebook` composes what a position method or a recorded pass looks like. It is imported by name when
a notebook needs it, so that nothing below depends on it and ``import headway.positions`` stays light.
"""

from __future__ import annotations

import importlib


class Displayed:
    """Displayed as a picture in a notebook, as one line elsewhere."""

    def _repr_html_(self) -> str | None:
        """Pictures as HTML that fetches nothing; None, so that the line is shown, if there is nothing to draw."""
        shown: str | None = importlib.import_module("headway.views.notebook").cell(self)
        return shown
