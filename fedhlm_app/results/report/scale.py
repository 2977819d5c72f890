"""Axes: where ticks go and how numbers are written beside them."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """A straight map from data to pixels."""

    low: float
    high: float
    start: float  # pixel of `low`
    end: float  # pixel of `high`

    def __call__(self, value: float) -> float:
        """Return the pixel of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Return round numbers that cover `low` to `high`, roughly `about` of them.

    Steps are 1, 2 or 5 times a power of ten; the first tick is at or below `low`, the last at or
    above `high`, so they are the ends of the axis too.
    """
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise ValueError(f"ticks from {low} to {high}: must be finite and in order")
    if high - low <= max(1e-9 * max(abs(low), abs(high)), 1e-12):
        # A line that is flat, or flat but for rounding, still needs an axis with some height.
        margin = abs(low) * 0.1 or 1.0
        low, high = low - margin, high + margin
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{index * step:.12g}") for index in range(first, last + 1)]


def size(amount: float) -> str:
    """Write a number of bytes with its unit, in powers of 1000."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if amount >= unit:
            return f"{amount / unit:,.1f}".removesuffix(".0") + f" {name}"
    return f"{amount:g} B"


def short(value: float) -> str:
    """Write a number for an axis: `1200` is 1.2k, `0.53` stays."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"
