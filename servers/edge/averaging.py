"""Eq. 7 where the cluster is: the updates of a round, and what the cloud is told of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hlm.arrays import FloatArray
from hlm.wire.edge_update import OUTCOMES, EdgeAggregate, EdgeUpdate


def _anything(sums: FloatArray) -> str:
    del sums
    return ""


@dataclass(frozen=True)
class UpdateLimits:
    """Which updates may be averaged.

    Attributes
    ----------
    low, high : float64 [d]
        Range of every entry of a policy.
    most : int
        Largest believable weight n_k.
    sums : int
        Length of the sums, in rounds that want any.
    check : callable
        Says what is impossible about one device's sums float64 [sums]; empty when nothing is.
    """

    low: FloatArray
    high: FloatArray
    most: int
    sums: int = 0
    check: Callable[[FloatArray], str] = _anything

    def outcome(self, update: EdgeUpdate, summed: bool) -> str:
        """One of `hlm.wire.edge_update.OUTCOMES`, where sums are wanted, or are not (`summed`)."""
        values, sums = update.values, update.sums
        # Where sums are wanted the policy is what the device was sent, and not sent back.
        if values.shape != ((0,) if summed else self.low.shape):
            return "unreadable-array"
        if len(sums) != (self.sums if summed else 0):
            return "bad-metric"
        if not (np.isfinite(values).all() and np.isfinite(sums).all()):
            return "not-finite"
        if len(values) and ((values < self.low) | (values > self.high)).any():
            return "out-of-bounds"
        if update.weight > self.most:
            return "bad-weight"
        if len(sums) and self.check(sums):
            return "bad-metric"
        return "taken"


class Averaging:
    """The updates of the round that is open; of other rounds none is taken.

    Parameters
    ----------
    limits : UpdateLimits
    """

    def __init__(self, limits: UpdateLimits) -> None:
        self.limits = limits
        self.number, self.summed = 0, False
        self._taken: dict[int, EdgeUpdate] = {}
        self._refused: dict[int, int] = {}

    def open(self, number: int, summed: bool) -> None:
        """Begin a round, from 1, in which sums are wanted or not; forget the one before."""
        self.number, self.summed = number, summed
        self._taken, self._refused = {}, {}

    def take(self, update: EdgeUpdate) -> int:
        """Keep an update, or refuse it; a place in `OUTCOMES`. A first one that counts stays."""
        outcome = self.limits.outcome(update, self.summed)
        if not self.number or update.number != self.number:
            outcome = "wrong-round"
        elif update.client in self._taken:
            return OUTCOMES.index("duplicate")
        code = OUTCOMES.index(outcome)
        if code:
            self._refused[update.client] = code
        else:
            self._refused.pop(update.client, None)
            self._taken[update.client] = update
        return code

    def collect(self, number: int) -> EdgeAggregate:
        """What the cloud is told of a round; nothing of one that is not open."""
        updates = [u for _, u in sorted(self._taken.items())] if number == self.number else []
        refused = sorted(self._refused.items()) if number == self.number else []
        total = sum(update.weight for update in updates)
        mean = np.zeros(0 if self.summed else len(self.limits.low))
        for update in updates:
            if update.weight:
                mean += (update.weight / total) * update.values
        brought = updates if self.summed else []
        sums: dict[int, FloatArray] = {}
        for update in brought:
            before = sums.get(update.contribution, np.zeros(self.limits.sums))
            sums[update.contribution] = before + update.sums
        return EdgeAggregate(
            number=number,
            weight=total,
            mean=mean,
            clients=np.array([update.client for update in updates], dtype=np.int64),
            refused=np.array([client for client, _ in refused], dtype=np.int64),
            reasons=np.array([code for _, code in refused], dtype=np.int64),
            contributions=np.array([update.contribution for update in brought], dtype=np.int64),
            counts=np.array([update.sums[0] for update in brought], dtype=np.float64),
            sums=sums,
        )
