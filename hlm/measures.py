"""Every measure of uncertainty by name, for settings that do not load tensors for it.

The functions, of `hlm.uncertainty`, are imported when one is wanted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import cast

from hlm.arrays import Array

HOTTEST = 2.0
"""Temperature at the upper end of `temperature-sweep`."""


@dataclass(frozen=True)
class MeasureKind:
    """A measure of the small model's uncertainty about its draft.

    Attributes
    ----------
    function : str
        Of `hlm.uncertainty`, and of `hlm.lean` for numpy arrays.
    words : str
        For settings and documents.
    takes : tuple of str
        Its keywords beside the logits: ``draft``, ``temperature``, ``uniforms`` (as many numbers a
        row as samples are drawn).
    """

    function: str
    words: str
    takes: tuple[str, ...] = ("draft",)

    def load(self, module: str = "hlm.uncertainty") -> Callable[..., Array]:
        """The function: logits [rows, vocab] and `takes` to float64 [rows] in [0, 1]."""
        return cast("Callable[..., Array]", resolve_name(f"{module}:{self.function}"))


MEASURES = {
    "closed-form": MeasureKind(
        "closed_form",
        "chance that another sample differs",
        ("draft", "temperature"),
    ),
    "disagreement": MeasureKind(
        "disagreement",
        "share of samples that differ",
        ("draft", "temperature", "uniforms"),
    ),
    "temperature-sweep": MeasureKind(
        "temperature_sweep",
        "the same, each sample at a temperature of its own",
        ("draft", "uniforms"),
    ),
    "entropy": MeasureKind("entropy", "over ln(vocabulary)", ()),
}
