"""How much has to be heard yet before a threshold can be certified at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

MOST = 2**22
"""Prompts beyond which nobody counts."""


@dataclass(frozen=True)
class Shortfall:
    """What a calibration lacks.

    Attributes
    ----------
    groups : int
        Groups of clients heard of that share a threshold; 1 before any client was.
    certified : int
        Those of them whose threshold keeps something.
    prompts : int
        Prompts that the rest rest on: of the group of them that has the fewest.
    lacking : int or None
        Prompts without a wrong token that this group needs at least, wrong ones cost more; 0
        where every group is certified, None where its search has ended without a threshold.
    trial : float
        Threshold that its clients work with meanwhile; below 0 they keep nothing.
    gathering : bool
        Whether further rounds still bring it prompts.
    """

    groups: int
    certified: int
    prompts: int
    lacking: int | None
    trial: float
    gathering: bool


def fewest(enough: Callable[[int], bool]) -> int:
    """Smallest n from 1 to `MOST` with ``enough(n)``, which stays true once it is; else `MOST`."""
    high = 1
    while high < MOST and not enough(high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
