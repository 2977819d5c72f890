"""What the server remembers of each client: it is the server that says what was accepted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from hlm.arrays import FloatArray
from hlm.state import State
from strategies.aggregation import cluster_means
from strategies.validation import Update


class ClientMemory:
    """Last accepted weight and round of every client, by `strategies.sampling.Node.name`.

    A client cannot know whether its reply arrived and was accepted. What it starts from, and how
    far it has come, is therefore told to it in every message rather than kept by itself.

    Parameters
    ----------
    keep_values : bool
        Keep what each client sent last as well: as many models as there are clients.
    """

    def __init__(self, keep_values: bool = False) -> None:
        self.keep_values = keep_values
        self.values: dict[int, FloatArray] = {}
        self.weights: dict[int, float] = {}
        self.rounds: dict[int, int] = {}

    def remember(self, name: int, update: Update, server_round: int) -> None:
        """Store what was accepted."""
        if self.keep_values:
            self.values[name] = update.values
        self.weights[name] = update.weight
        self.rounds[name] = server_round

    def accepted_round(self, name: int) -> int:
        """Round of the client's last accepted reply; 0 before the first."""
        return self.rounds.get(name, 0)

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
        """Value, weight and round by the client's name as a string."""
        return {
            str(client): {
                "value": self.values[client].copy() if client in self.values else None,
                "weight": self.weights[client],
                "round": server_round,
            }
            for client, server_round in self.rounds.items()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`'s value."""
        self.values = {
            int(client): np.array(kept["value"], dtype=np.float64)
            for client, kept in state.items()
            if self.keep_values and kept["value"] is not None
        }
        self.weights = {int(client): float(kept["weight"]) for client, kept in state.items()}
        self.rounds = {int(client): int(kept["round"]) for client, kept in state.items()}
