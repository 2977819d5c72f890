"""What the server remembers of each client, so that a resumed run can give it back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from strategies.aggregation import FloatArray, cluster_means
from strategies.rules import State
from strategies.validation import Update


class ClientMemory:
    """Last accepted value and weight of every client whose index is known."""

    def __init__(self) -> None:
        self.values: dict[int, FloatArray] = {}
        self.weights: dict[int, float] = {}
        self._to_restore: set[int] = set()

    def remember(self, updates: Iterable[Update]) -> None:
        """Store what was accepted; these clients know their own state, so nothing is restored."""
        for update in updates:
            if update.client >= 0:
                self.values[update.client] = update.values
                self.weights[update.client] = update.weight
                self._to_restore.discard(update.client)

    def must_restore(self, client: int) -> bool:
        """Tell whether the client has been silent since the state was loaded."""
        return client in self._to_restore

    def means(self, members: Mapping[int, int], default: FloatArray) -> FloatArray:
        """Weighted mean of the members' values per cluster.

        Parameters
        ----------
        members : mapping of client to cluster
        default : float64 [C, d]
            Kept by clusters without a member that is known.

        Returns
        -------
        float64 [C, d].
        """
        known = [client for client in sorted(members) if client in self.values]
        if not known:
            return default
        return cluster_means(
            np.stack([self.values[client] for client in known]),
            np.array([self.weights[client] for client in known]),
            np.array([members[client] for client in known], dtype=np.int64),
            len(default),
            default,
        )

    def state_dict(self) -> State:
        """Values and weights by client index as a string."""
        return {
            str(client): {"value": value.copy(), "weight": self.weights[client]}
            for client, value in self.values.items()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`'s value; every client in it is to be restored."""
        self.values = {
            int(client): np.array(kept["value"], dtype=np.float64) for client, kept in state.items()
        }
        self.weights = {int(client): float(kept["weight"]) for client, kept in state.items()}
        self._to_restore = set(self.values)
