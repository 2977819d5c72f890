"""Do peers meet the contexts that this device meets? Found out before anything is asked or shared.

A question to the edge server carries a context's key and costs more bytes than the LLM's verdict
in greedy decoding, so finding out by asking is dear where there is nothing to find. A device
therefore shows fingerprints first (`hlm.peers.fingerprints`): a few of 24 bits stand for all
contexts it has met. The share of them that other devices show as well is where the estimate of
p_hit starts, and where it is zero nothing is asked at all.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hlm.arrays import BoolArray, IntArray
from hlm.peers.fingerprints import fingerprints, smallest

Sketches = NDArray[np.uint8]


class Introduction:
    """What a device shows of the contexts it meets, and what it was told about them.

    Parameters
    ----------
    count : int
        Fingerprints that stand for all contexts, >= 1. As contexts grow in number these change
        ever less often, so a long run shows few more than a short one.
    window : int
        Contexts after which the fingerprints start anew, >= 1: a device may come to meet others.

    Attributes
    ----------
    held, common : int
        Fingerprints of this device that the edge server held at the last answer, and those of
        them that other devices had shown too.
    due : bool
        Whether something was shown that no answer could take into account yet.
    """

    def __init__(self, count: int = 8, window: int = 4096) -> None:
        if count < 1 or window < 1:
            raise ValueError(f"count = {count}, window = {window}: must be at least 1")
        self.count = count
        self.window = window
        self.held = self.common = 0
        self.due = False
        self._met = 0
        self._kept = np.zeros(0, np.int64)
        self._shown = np.zeros(0, np.int64)

    @property
    def new(self) -> IntArray:
        """Fingerprints that should be shown and were not yet, int64, increasing."""
        return np.setdiff1d(self._kept, self._shown)

    @property
    def share(self) -> float:
        """Share of contexts in common with others, in [0, 1); 0 before there is an answer.

        One fingerprint is counted as not in common, so that few of them prove little.
        """
        return self.common / (self.held + 1)

    def meet(self, sketches: Sketches) -> None:
        """Take in contexts (uint8 [n, w]) that the device met."""
        if self._met >= self.window:
            self._met, self._kept = 0, np.zeros(0, np.int64)
        self._met += len(sketches)
        self._kept = smallest(self._kept, fingerprints(sketches), self.count)

    def note(self, shown: IntArray, common: BoolArray) -> None:
        """Take in the answer (bool [held]) to a message that showed these fingerprints."""
        # Others' are compared when the round is over: then it is worth asking again.
        self.due = len(shown) > 0
        before = np.intersect1d(self._shown, self._kept)
        if len(common) <= len(shown):
            before = before[:0]  # The edge server began anew and has lost what was shown before.
        self._shown = np.union1d(before, shown)
        self.held, self.common = len(common), int(common.sum())

    def start_over(self) -> None:
        """Show everything anew, because the edge server is another one now."""
        self.held = self.common = 0
        self.due = False
        self._shown = np.zeros(0, np.int64)

    def state(self) -> dict[str, NDArray[Any]]:
        """``prints`` and ``shown`` int64, ``introduction`` int64 [4]."""
        counts = np.array([self.held, self.common, int(self.due), self._met])
        return {"prints": self._kept, "shown": self._shown, "introduction": counts}

    def restore(self, state: dict[str, NDArray[Any]]) -> None:
        """Take over what `state` returned."""
        self.held, self.common, due, self._met = (int(n) for n in state["introduction"])
        self.due = bool(due)
        self._kept = np.asarray(state["prints"], np.int64)[: self.count]
        self._shown = np.asarray(state["shown"], np.int64)
