"""Peers by step, as FedHLM eq. 9 is written: the other devices' drafts at the same step."""

from __future__ import annotations

import numpy as np

from hlm.arrays import IntArray
from servers.edge.consensus import Contributions

MOST_STEPS = 4096
"""Steps of which drafts are remembered."""


class StepDrafts:
    """The latest draft of each device at each step (`peer-mode` ``paper``), verified or not.

    Parameters
    ----------
    deferred : bool
        Drafts become visible at the next `publish`.
    capacity : int
        Most drafts that wait for it, >= 1.
    """

    def __init__(self, deferred: bool, capacity: int) -> None:
        self._deferred = deferred
        self._capacity = capacity
        self._drafts: dict[int, dict[int, int]] = {}
        self._inbox: list[tuple[int, int, int]] = []

    def note(self, client: int, steps: IntArray, drafts: IntArray) -> int:
        """Take in a device's drafts (int64 [n] both); returns how many were refused."""
        refused = 0
        for step, draft in zip(steps.tolist(), drafts.tolist(), strict=True):
            if step >= MOST_STEPS:
                refused += 1
            elif self._deferred:
                self._inbox.append((client, step, draft))
            else:
                self._drafts.setdefault(step, {})[client] = draft
        del self._inbox[: -self._capacity]
        return refused

    def of_others(self, asker: int, steps: IntArray) -> Contributions:
        """Drafts of the devices other than `asker` at each step (int64 [n])."""
        peers = [
            (row, client, token)
            for row, step in enumerate(steps.tolist())
            for client, token in sorted(self._drafts.get(step, {}).items())
            if client != asker
        ]
        rows, clients, tokens = np.array(peers, np.int64).reshape(-1, 3).T
        return Contributions(rows, clients, tokens, np.zeros(len(rows), np.int64))

    def publish(self) -> None:
        """Make the drafts that wait visible, in an order that does not depend on their arrival."""
        for client, step, token in sorted(self._inbox, key=lambda item: item[0]):
            self._drafts.setdefault(step, {})[client] = token
        self._inbox = []
