"""How often the clients of a group have answered: what a guarantee needs besides their sums."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from hlm.state import State


class Attendance:
    """Contributions of each client, and how often it was asked in vain since the last one."""

    def __init__(self) -> None:
        self.heard: Counter[int] = Counter()
        self.silent: Counter[int] = Counter()

    def ask(self, client: int) -> None:
        """Note that a client is asked; until it answers it counts as silent."""
        self.silent[client] += 1

    def answer(self, client: int) -> None:
        """Note a contribution that was taken in."""
        self.heard[client] += 1
        del self.silent[client]

    def turn(self, client: int) -> int:
        """Rank by which clients are asked, lowest first.

        Those who have answered least come first, which keeps contributions even. A client that
        stays silent moves back by one each time, so it can't keep the others from being asked.
        """
        return self.heard[client] + self.silent[client]

    def state_dict(self) -> State:
        """Both counts by client."""
        return {
            name: {str(client): count for client, count in counts.items()}
            for name, counts in (("heard", self.heard), ("silent", self.silent))
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Attendance:
        """Continue from `state_dict`'s value."""
        new = cls()
        new.heard.update({int(client): int(n) for client, n in state["heard"].items()})
        new.silent.update({int(client): int(n) for client, n in state["silent"].items()})
        return new


def heard_at_least(contributions: Iterable[int], levels: int) -> list[int]:
    """How many clients made at least k contributions, for k = 1 .. levels."""
    counts = np.bincount(np.minimum(np.array(list(contributions), dtype=np.int64), levels))
    counts = np.pad(counts, (0, levels + 1 - len(counts)))
    return [int(n) for n in np.cumsum(counts[::-1])[::-1][1:]]


def best_level(heard: list[int], members: int, budget: float) -> int:
    """Up to which contribution of every client to count, if missing ones count as wrong.

    Only the pattern of answers is looked at, never a loss: a test may then be made on what was
    chosen as if it had been fixed beforehand. The choice is the one whose Hoeffding bound would be
    the smallest if all that was read had half the risk that is allowed; with all clients heard
    that is always the last contribution.

    Parameters
    ----------
    heard : list of int
        Clients that made at least k contributions, for k = 1, 2, ...
    members : int
        All clients, >= 1.
    budget : float
        Share of wrong contributions that is allowed, > 0.

    Returns
    -------
    int
        0 where so many are missing that nothing could pass.
    """
    if not heard or budget >= 1:
        return len(heard)
    level = np.arange(1, len(heard) + 1)
    missing = np.cumsum(members - np.array(heard)) / (level * members)
    mean = missing + (1 - missing) * budget / 2
    fine = mean < budget
    safe = np.where(fine, mean, budget / 2)
    entropy = safe * np.log(safe / budget) + (1 - safe) * np.log((1 - safe) / (1 - budget))
    gain = np.where(fine, level * entropy, 0.0)
    return int(len(gain) - np.argmax(gain[::-1])) if fine.any() else 0
