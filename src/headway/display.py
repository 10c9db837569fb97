"""How objects show themselves in a notebook: the one door from the lower floors up to the views.

What a position method or a recorded pass looks like is composed by :mod:`headway.views.notebook`, far above them; it is
found by name when a notebook asks, so that nothing below imports it and ``import headway.positions`` stays light.
"""

from __future__ import annotations

import importlib


class Displayed:
    """Shown as a picture where there is a notebook, as one line elsewhere."""

    def _repr_html_(self) -> str | None:
        """Pictures as HTML that fetches nothing; None, and so the line, where there is nothing to draw."""
        shown: str | None = importlib.import_module("headway.views.notebook").cell(self)
        return shown
