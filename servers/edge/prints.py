"""Which devices meet the same contexts, by the fingerprints they show (`hlm.peers.fingerprints`).

An edge server that holds nothing of use to a device should not be asked. What each device showed
is kept within bounds, and a device is told how much of its own others have shown too: never whose,
and nothing about what it did not show itself.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np

from hlm.arrays import BoolArray, IntArray

NOBODY = -1


class FingerprintTable:
    """Fingerprints shown by the devices of a cluster.

    Parameters
    ----------
    quota : int
        Most fingerprints held of one device, the newest; >= 1.
    deferred : bool
        What is shown counts for others from the next `tick` on, so that it does not matter in
        which order devices come.
    max_age : int
        Ticks after which a device that showed nothing any more is forgotten; 0 never.
    """

    def __init__(self, quota: int = 16, deferred: bool = False, max_age: int = 0) -> None:
        if quota < 1 or max_age < 0:
            raise ValueError(f"quota = {quota}, max_age = {max_age}: need >= 1 and >= 0")
        self.quota = quota
        self.deferred = deferred
        self.max_age = max_age
        self._now = 0
        self._held: dict[int, OrderedDict[int, None]] = {}
        self._seen: dict[int, int] = {}
        # Who showed a fingerprint, as others may know it.
        self._visible: dict[int, set[int]] = {}

    def __len__(self) -> int:
        """Fingerprints held, of all devices together."""
        return sum(map(len, self._held.values()))

    def show(self, client: int, prints: IntArray) -> None:
        """Take in what a device shows (int64 [n])."""
        held = self._held.setdefault(client, OrderedDict())
        self._seen[client] = self._now
        for print_ in prints.tolist():
            held[print_] = None
            held.move_to_end(print_)
            if not self.deferred:
                self._visible.setdefault(print_, set()).add(client)
        while len(held) > self.quota:
            gone, _ = held.popitem(last=False)
            if not self.deferred:
                self._hide(client, gone)

    def held(self, client: int) -> IntArray:
        """Fingerprints held of a device, int64 [n], increasing."""
        return np.array(sorted(self._held.get(client, ())), np.int64)

    def common(self, client: int, prints: IntArray) -> BoolArray:
        """Which fingerprints (int64 [n]) a device other than `client` has shown, bool [n]."""
        shown = [self._visible.get(print_, set()) - {client} for print_ in prints.tolist()]
        return np.array([len(others) > 0 for others in shown], np.bool_)

    def drop_client(self, client: int) -> None:
        """Forget what a device showed."""
        for print_ in self._held.pop(client, OrderedDict()):
            self._hide(client, print_)
        self._seen.pop(client, None)

    def tick(self) -> None:
        """Let time pass: what was shown counts from now on, and who is gone is forgotten."""
        self._now += 1
        if self.max_age:
            for client, seen in list(self._seen.items()):
                if self._now - seen > self.max_age:
                    self.drop_client(client)
        self._visible = {}
        for client, held in self._held.items():
            for print_ in held:
                self._visible.setdefault(print_, set()).add(client)

    def _hide(self, client: int, print_: int) -> None:
        clients = self._visible.get(print_, set())
        clients.discard(client)
        if not clients:
            self._visible.pop(print_, None)
