"""Every measure of uncertainty by name, for settings that do not load tensors for it.

The functions, of `hlm.uncertainty`, are imported when one is wanted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class MeasureKind:
    """A measure of the small model's uncertainty about its draft.

    Attributes
    ----------
    home : str
        Module and function.
    words : str
        For settings and documents.
    takes : tuple of str
        Its keywords beside the logits: ``draft``, ``temperature``, ``uniforms`` (as many numbers a
        row as samples are drawn).
    """

    home: str
    words: str
    takes: tuple[str, ...] = ("draft",)

    def load(self) -> Callable[..., Tensor]:
        """The function: logits [rows, vocab] and `takes` to float64 [rows] in [0, 1]."""
        return cast("Callable[..., Tensor]", resolve_name(self.home))


MEASURES = {
    "closed-form": MeasureKind(
        "hlm.uncertainty:closed_form",
        "chance that another sample differs",
        ("draft", "temperature"),
    ),
    "disagreement": MeasureKind(
        "hlm.uncertainty:disagreement",
        "share of samples that differ",
        ("draft", "temperature", "uniforms"),
    ),
    "temperature-sweep": MeasureKind(
        "hlm.uncertainty:temperature_sweep",
        "the same, each sample at a temperature of its own",
        ("draft", "uniforms"),
    ),
    "entropy": MeasureKind("hlm.uncertainty:entropy", "over ln(vocabulary)", ()),
}
