"""What the clients do between rounds, seen from the server: FedAvg, FedProx, SCAFFOLD, FedNova.

A `LocalMethod` adds what the client needs to the message that goes down, names what must come
back, and rewrites a round's values before the edge rule combines them. The edge rule, the cloud
rule and the cluster map know nothing of it, so each method runs flat or hierarchical, with any
rule.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from hlm.arrays import FloatArray, IntArray
from hlm.state import State

EdgeCombine = Callable[[FloatArray, FloatArray, IntArray, FloatArray], FloatArray]
"""(values [n, d], weights [n], clusters [n], previous [C, d]) -> [C, d], without a state."""


@dataclass(frozen=True)
class Batch:
    """The accepted replies of a round, one row each, in a fixed order.

    Attributes
    ----------
    values, starts : float64 [n, d]
        Where each client ended and where it began.
    weights : float64 [n]
        n_k.
    clusters : int64 [n]
    cluster_sizes : int64 [C]
        Connected nodes of each cluster, asked in this round or not.
    extras : mapping of array key to float64 [n, d]
    metrics : mapping of metric name to float64 [n]
        Those named in `LocalMethod.reply_metrics`.
    shared_start : bool
        True when all clients began at the same global policy.
    """

    values: FloatArray
    starts: FloatArray
    weights: FloatArray
    clusters: IntArray
    cluster_sizes: IntArray
    extras: Mapping[str, FloatArray]
    metrics: Mapping[str, FloatArray]
    shared_start: bool


class LocalMethod:
    """How a local method takes part in a round; the base adds nothing to plain gradient steps."""

    name: str

    adds_up = True
    """True when `prepare` and `absorb` do nothing: replies can be added up one by one."""

    needs_start = False
    """True when `prepare` reads `Batch.starts`."""

    reply_extras: Mapping[str, float] = MappingProxyType({})
    """Array keys a reply must carry, each with its largest absolute value."""

    reply_metrics: Mapping[str, tuple[float, float]] = MappingProxyType({})
    """Metrics a reply must carry, each with its range."""

    def config(self) -> dict[str, int | float | str]:
        """Return what the client has to know, for the message's ConfigRecord."""
        return {"local-method": self.name}

    def open(self, size: int, num_clusters: int) -> None:
        """Get ready for d parameters and C clusters; called before every round."""

    def arrays_down(self, cluster: int, shared: bool) -> dict[str, FloatArray]:
        """Arrays [d] to send beside the policy to a client of `cluster`."""
        return {}

    def client_arrays(self, client: int) -> dict[str, FloatArray]:
        """Arrays [d] of the client's own state, as far as its replies were accepted."""
        return {}

    def prepare(self, batch: Batch) -> Batch:
        """Rewrite values and weights before the edge rule."""
        return batch

    def absorb(self, batch: Batch, clients: list[int], combine: EdgeCombine) -> None:
        """Update the method's own state after the round."""

    def state_dict(self) -> State:
        """Everything needed to continue identically."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`'s value."""
        if state:
            raise ValueError(f"state: keys {sorted(state)}; allowed: none for {self.name}")


class FedAvgSteps(LocalMethod):
    """Plain local gradient steps (McMahan et al., arXiv 1602.05629)."""

    name = "fedavg"


def step_towards(batch: Batch, scale: FloatArray | float) -> FloatArray:
    """Move each client's end point: start + scale * (value - start).

    Parameters
    ----------
    batch : Batch
    scale : float or float64 [n]

    Returns
    -------
    float64 [n, d].
    """
    factor = np.asarray(scale, dtype=np.float64)
    column = factor[:, None] if factor.ndim else factor
    return np.asarray(batch.starts + column * (batch.values - batch.starts), dtype=np.float64)
