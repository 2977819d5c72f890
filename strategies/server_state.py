"""What lives from round to round: policies, rules, the local method, what clients last sent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.app import ArrayRecord

from hlm.state import State
from strategies.layout import Layout
from strategies.local_methods import LocalMethod
from strategies.memory import ClientMemory
from strategies.tiers import TierRules, Tiers
from strategies.validation import Bounds

_VERSION = 3


class ServerState:
    """State of a hierarchical strategy; parameters as `strategies.hierarchical.Hierarchical`.

    The policy's layout is not known before the first arrays come in, so `tiers` is made by
    `adopt`; a state loaded earlier waits for it.
    """

    def __init__(
        self,
        method: LocalMethod,
        rules: TierRules,
        bounds: Bounds,
        keep_values: bool = False,
    ) -> None:
        self.method, self.rules, self.bounds = method, rules, bounds
        self.memory = ClientMemory(keep_values)
        self.rounds_done = 0
        self.releases = 0
        self._layout: Layout | None = None
        self._tiers: Tiers | None = None
        self._waiting: Mapping[str, Any] | None = None

    @property
    def is_open(self) -> bool:
        """Tell whether the policy is known."""
        return self._tiers is not None

    @property
    def tiers(self) -> Tiers:
        """Policies and rules; raises RuntimeError before the first round."""
        if self._tiers is None:
            raise RuntimeError("no round has begun: the policy is not known yet")
        return self._tiers

    @property
    def layout(self) -> Layout:
        """Layout of the policy's arrays; raises RuntimeError before the first round."""
        if self._layout is None:
            raise RuntimeError("no round has begun: the layout is not known yet")
        return self._layout

    def arrays(self) -> ArrayRecord:
        """Global policy as named arrays."""
        return ArrayRecord(self.layout.unflatten(self.tiers.policy))

    def adopt(self, arrays: ArrayRecord, num_clusters: int) -> None:
        """Take the policy that Flower hands in; a wrapper (privacy noise) may have changed it.

        Raises
        ------
        ValueError
            When the very first one lies outside the bounds.
        """
        if self._tiers is None:
            self._open(arrays, num_clusters)
            return
        given = self.layout.flatten(arrays)
        if not np.array_equal(given, self.layout.flatten(self.arrays())):
            self._tiers.policy = np.clip(given, self._tiers.low, self._tiers.high)

    def _open(self, arrays: ArrayRecord, num_clusters: int) -> None:
        layout = Layout.of(arrays)
        policy = layout.flatten(arrays)
        low, high = (np.broadcast_to(np.asarray(b, float), policy.shape) for b in self.bounds)
        if not bool(np.all((low <= policy) & (policy <= high))):
            raise ValueError(f"initial arrays: outside the bounds; allowed: {self.bounds}")
        self._layout = layout
        self._tiers = Tiers(policy, num_clusters, self.rules, low, high)
        if self._waiting is not None:
            self._load_tiers(self._waiting)
            self._waiting = None

    def _load_tiers(self, state: Mapping[str, Any]) -> None:
        if state["arrays"] != self.layout.in_words():
            raise ValueError(f"state: arrays {state['arrays']}; allowed: {self.layout.in_words()}")
        self.tiers.load_state_dict(state["tiers"])

    def recluster(self, num_clusters: int, members: Mapping[int, int] | None = None) -> None:
        """Go on with other clusters; see `Hierarchical.recluster`."""
        if self._tiers is None:
            return
        values = np.tile(self._tiers.policy, (num_clusters, 1))
        if members is not None:
            values = self.memory.means(members, values)
        self._tiers.reset_clusters(values)

    def state_dict(self) -> State:
        """Everything needed to continue identically."""
        return {
            "version": _VERSION,
            "round": self.rounds_done,
            "releases": self.releases,
            "arrays": self.layout.in_words(),
            "tiers": self.tiers.state_dict(),
            "method": self.method.state_dict(),
            "clients": self.memory.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`'s value."""
        if state.get("version") != _VERSION:
            raise ValueError(f"state: version {state.get('version')}; allowed: {_VERSION}")
        self.method.load_state_dict(state["method"])
        self.memory.load_state_dict(state["clients"])
        if self._tiers is None:
            self._waiting = state
        else:
            self._load_tiers(state)
        self.rounds_done = int(state["round"])
        self.releases = int(state["releases"])
