"""Measured values as text: with their unit, or as a percentage."""

from __future__ import annotations

from dataclasses import dataclass

from headway.figures.words import decimals, measured, strings
from headway.results.summary import Measure


def amount(value: float, measure: Measure) -> str:
    """Write one measured value without its unit.

    >>> amount(2.3149, Measure("bits_per_byte")), amount(0.5, Measure("loss")), amount(0.973, Measure("accuracy"))
    ('2.31', '0.500', '97.3 %')
    """
    return f"{100 * value:.1f} %" if measure.key == "accuracy" else measured(value)


def half_range(mean: float, low: float, high: float, measure: Measure) -> str:
    """Write half of a range with as many decimals as its mean has; for accuracy in points.

    >>> half_range(2.32, 2.30, 2.34, Measure("loss")), half_range(0.97, 0.96, 0.98, Measure("accuracy"))
    ('0.02', '1.0')
    """
    if measure.key == "accuracy":
        return f"{50 * (high - low):.1f}"
    return f"{(high - low) / 2:,.{decimals(mean)}f}"


@dataclass(frozen=True)
class Amount:
    """A measured value, with its unit unless ``bare``."""

    value: float
    measure: Measure
    bare: bool = False

    def say(self, language: str) -> str:
        """Write "2.31 bits per byte", or "97.3 %"."""
        text = amount(self.value, self.measure)
        return (
            text
            if self.bare or self.measure.key == "accuracy"
            else f"{text} {strings(language)[f'unit.{self.measure.key}']}"
        )
