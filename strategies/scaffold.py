"""SCAFFOLD (Karimireddy et al., arXiv 1910.06378), option II: control variates against drift."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from hlm.arrays import FloatArray
from hlm.state import State
from strategies.local_methods import Batch, EdgeCombine, LocalMethod, step_towards


class Scaffold(LocalMethod):
    """Clients step along g_i(y) - c_i + c; the server averages what they changed.

    Down go the policy and ``control`` (c); up come the policy and ``control_delta``
    (c_i+ - c_i, with c_i+ = c_i - c + (x - y_i)/(K lr)). Then, per cluster with N_c clients of
    which S_c replied, c_c <- c_c + S_c/N_c * mean(control_delta), and c is the mean of the c_c
    (eq. 8); with one cluster that is the paper. Clients that share a start get c, clients that
    start from their cluster get c_c. The server adds the accepted differences of each client
    up and sends it c_i, ``client_control``, with every message. A client that kept c_i+ by itself
    would step along the wrong line for good after a reply that was lost or refused: its c_i would
    have moved, and c, their mean, would not.

    Parameters
    ----------
    server_learning_rate : float
        eta_g > 0.
    weighting : str
        ``uniform`` as in the paper, or ``examples`` to weight the policies by n_k.
    max_control : float
        Largest absolute entry of a control difference; a reply beyond it is refused.
    """

    name = "scaffold"
    adds_up = False

    def __init__(
        self,
        server_learning_rate: float = 1.0,
        weighting: str = "uniform",
        max_control: float = 1e6,
    ) -> None:
        if not 0 < server_learning_rate < float("inf"):
            raise ValueError(f"server_learning_rate: {server_learning_rate}; allowed: > 0")
        if weighting not in ("uniform", "examples"):
            raise ValueError(f"weighting: {weighting!r}; allowed: uniform, examples")
        if not max_control > 0:
            raise ValueError(f"max_control: {max_control}; allowed: > 0")
        self.server_learning_rate = server_learning_rate
        self.needs_start = server_learning_rate != 1.0  # else differences are not scaled
        self.weighting = weighting
        self.reply_extras = {"control_delta": max_control}
        self.controls: FloatArray = np.zeros((0, 0))
        self.client_controls: dict[int, FloatArray] = {}

    @property
    def control(self) -> FloatArray:
        """C [d], the mean over clusters."""
        return np.asarray(self.controls.mean(axis=0), dtype=np.float64)

    def open(self, size: int, num_clusters: int) -> None:
        """Start at zero; after a change of clusters every cluster starts at the old mean."""
        if self.controls.shape == (num_clusters, size):
            return
        known = self.controls.shape[0] > 0 and self.controls.shape[1] == size
        base = self.control if known else np.zeros(size)
        self.controls = np.tile(base, (num_clusters, 1))

    def arrays_down(self, cluster: int, shared: bool) -> dict[str, FloatArray]:
        """``control``: c, or c_c where clusters keep policies of their own."""
        return {"control": self.control if shared else self.controls[cluster]}

    def client_arrays(self, client: int) -> dict[str, FloatArray]:
        """``client_control``: c_i; none, which is zero, before the first accepted reply."""
        own = self.client_controls.get(client)
        return {} if own is None else {"client_control": own}

    def prepare(self, batch: Batch) -> Batch:
        """Uniform weights (zero stays zero) and the server's learning rate."""
        weights = batch.weights
        if self.weighting == "uniform":
            weights = (weights > 0).astype(np.float64)
        values = batch.values
        if self.needs_start:
            values = step_towards(batch, self.server_learning_rate)
        return replace(batch, values=values, weights=weights)

    def absorb(self, batch: Batch, clients: list[int], combine: EdgeCombine) -> None:
        """Move every cluster's control variate by its clients' differences."""
        deltas = batch.extras["control_delta"]
        count = len(batch.cluster_sizes)
        replied = np.bincount(batch.clusters, minlength=count)
        share = np.minimum(replied / np.maximum(batch.cluster_sizes, 1), 1.0)
        # Every accepted difference counts, also of a client without tokens: its c_i has moved.
        moved = combine(deltas, np.ones(len(deltas)), batch.clusters, np.zeros_like(self.controls))
        self.controls = self.controls + share[:, None] * moved
        for client, delta in zip(clients, deltas, strict=True):
            self.client_controls[client] = (
                self.client_controls.get(client, np.zeros_like(delta)) + delta
            )

    def state_dict(self) -> State:
        """The controls of clusters and clients."""
        return {
            "controls": self.controls.copy(),
            "client_controls": {
                str(client): own.copy() for client, own in self.client_controls.items()
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `LocalMethod`."""
        self.controls = np.array(state["controls"], dtype=np.float64)
        self.client_controls = {
            int(client): np.array(own, dtype=np.float64)
            for client, own in state["client_controls"].items()
        }
