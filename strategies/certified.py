"""A strategy that sets thresholds from summed curves instead of averaging policies.

Clients work with the threshold they are sent and answer with list metrics that add up. The
policies they send back are an echo and are not averaged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid

from strategies.aggregation import BoolArray, FloatArray
from strategies.calibration import Calibration, PooledCalibration
from strategies.cluster_map import ClusterMap
from strategies.hierarchical import Hierarchical
from strategies.records import RoundRecord
from strategies.rules import State
from strategies.sampling import Node
from strategies.validation import Refusal, Update

Tier = Literal["global", "cluster", "local", "shrunk"]
SumsCheck = Callable[[Mapping[str, FloatArray]], str]
"""Says what is wrong with one reply's sums; an empty string when nothing is."""


class Calibrated(Hierarchical):
    """Thresholds from sums: pooled over all clients, over clusters, or for single clients.

    Parameters
    ----------
    calibration : Calibration
        Turns sums into thresholds.
    cluster_map : ClusterMap, optional
    tier : str
        Who shares a threshold: ``global`` all, ``cluster`` a cluster, ``local`` nobody,
        ``shrunk`` nobody, each client's sums being joined by `pseudo` prompts of its cluster's
        mean. The first two need sums over clients only, so secure aggregation fits.
    pseudo : float
        See ``shrunk``, >= 0; needs a `PooledCalibration`.
    check : callable, optional
        Refuses impossible sums, see `SumsCheck`.
    options
        Those of `Hierarchical`, without rules, method and personalisation. `privacy` only counts
        here: the calibration adds the noise to sums.
    """

    def __init__(
        self,
        calibration: Calibration,
        cluster_map: ClusterMap | None = None,
        *,
        tier: Tier = "global",
        pseudo: float = 50.0,
        check: SumsCheck | None = None,
        **options: Any,
    ) -> None:
        if tier not in get_args(Tier):
            raise ValueError(f"tier: {tier!r}; allowed: {', '.join(get_args(Tier))}")
        if tier == "shrunk" and not isinstance(calibration, PooledCalibration):
            raise ValueError("tier: 'shrunk'; allowed with pooled sums only")
        if not pseudo >= 0:
            raise ValueError(f"pseudo: {pseudo}; allowed: >= 0")
        super().__init__(
            cluster_map, personalisation="global" if tier == "global" else "cluster", **options
        )
        self.calibration, self.tier, self.pseudo, self.check = calibration, tier, pseudo, check
        self._clusters: dict[int, int] = {}
        self._wanted: set[int] = set()
        self._taken: dict[int, dict[str, FloatArray]] = {}

    @property
    def client_values(self) -> dict[int, FloatArray]:
        """Threshold in force for every client heard of, float64 [1] each."""
        return {
            client: np.array([self.calibration.result(self._group(client, cluster))])
            for client, cluster in sorted(self._clusters.items())
        }

    @property
    def releases(self) -> int:
        """Rounds in which clients were asked for sums, whatever came of them."""
        return self.state.releases

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Write each client its message, and count the release of its sums."""
        self._wanted.clear()
        self._taken.clear()
        messages = list(super().configure_train(server_round, arrays, config, grid))
        # Asked is sent, as far as privacy goes: a reply that is late or refused was seen too.
        self.state.releases += bool(self._wanted)
        return messages

    def _group(self, client: int, cluster: int) -> int:
        if self.tier == "global":
            return 0
        return cluster if self.tier == "cluster" else client

    def _message(self, server_round: int, node: Node, config: ConfigRecord, kind: str) -> Message:
        message = super()._message(server_round, node, config, kind)
        group = self._group(node.client, node.cluster)
        active = kind == "train" and self.calibration.active(group)
        threshold = self.calibration.trial(group) if active else self.calibration.result(group)
        record = message.content.array_records["arrays"]
        placed = self._clamped(threshold, self._sent[node.cluster])
        record.update(self.state.layout.unflatten(placed))
        message.content.config_records["config"]["calibrate"] = active
        if active:
            self._wanted.add(node.node_id)
        return message

    def _inspect(self, updates: list[Update]) -> tuple[list[Update], list[Refusal]]:
        kept, refused = [], []
        for update in updates:
            problem = self._problem(update)
            if problem:
                refused.append(Refusal("bad-metric", update.node_id, update.client, problem))
                continue
            if update.node_id in self._wanted:
                self._taken[update.node_id] = self._sums(update)
            if self.privacy is not None:
                # Sums without noise must not reach records and reports.
                metrics = {k: v for k, v in update.metrics.items() if not isinstance(v, list)}
                update = replace(update, metrics=metrics)
            kept.append(update)
        return kept, refused

    def _problem(self, update: Update) -> str:
        if update.node_id not in self._wanted:
            return ""
        for name, length in self.calibration.lengths().items():
            value = update.metrics.get(name)
            if not isinstance(value, list) or len(value) != length:
                return f"{name!r}; allowed: a list of {length} numbers"
        return "" if self.check is None else self.check(self._sums(update))

    def _sums(self, update: Update) -> dict[str, FloatArray]:
        return {
            name: np.asarray(update.metrics[name], dtype=np.float64)
            for name in self.calibration.lengths()
        }

    def _aggregate(self, server_round: int, updates: list[Update]) -> BoolArray:
        tiers = self.state.tiers
        pooled: dict[int, dict[str, FloatArray]] = {}
        heard = np.zeros(tiers.num_clusters, dtype=np.bool_)
        for update in updates:
            node = self._asked[update.node_id]
            self._clusters[node.client] = node.cluster
            heard[node.cluster] = True
            group = self._group(node.client, node.cluster)
            if update.node_id not in self._wanted or not self.calibration.active(group):
                continue
            sums = self._taken[update.node_id]
            before = pooled.get(group)
            pooled[group] = (
                sums if before is None else {name: before[name] + sums[name] for name in sums}
            )
        for group, sums in pooled.items():
            self.calibration.absorb(group, sums)
        if self.tier == "shrunk" and isinstance(self.calibration, PooledCalibration):
            self.calibration.shrink(self._clusters, self.pseudo)
        self._publish(heard)
        return heard

    def _publish(self, heard: BoolArray) -> None:
        """Write the thresholds in force into the two tiers, for reports and new clients."""
        tiers = self.state.tiers
        values: dict[int, list[float]] = {}
        for client, value in self.client_values.items():
            values.setdefault(self._clusters[client], []).append(float(value[0]))
        for cluster, thresholds in values.items():
            mean = float(np.mean(thresholds))
            tiers.clusters[cluster] = self._clamped(mean, tiers.clusters[cluster])
        tiers.reported = tiers.reported | heard
        if self.tier == "global":
            tiers.policy = self._clamped(self.calibration.result(0), tiers.policy)
        elif tiers.reported.any():
            tiers.policy = tiers.clusters[tiers.reported].mean(axis=0)

    def _clamped(self, threshold: float, policy: FloatArray) -> FloatArray:
        """A policy float64 [d] whose first entry is the threshold, with this one in its place."""
        placed = np.array(policy, dtype=np.float64)
        placed[0] = threshold
        return np.asarray(np.clip(placed, self.state.tiers.low, self.state.tiers.high))

    def stage(self, record: RoundRecord) -> dict[str, int]:
        """How many groups of the clients of `record` still gather sums, and how many do not."""
        groups = {self._group(c, k) for c, k in record.clients.items()}
        active = sum(self.calibration.active(group) for group in groups)
        return {"calibrating": active, "settled": len(groups) - active}

    def state_dict(self) -> State:
        """Everything needed to continue identically."""
        return {
            **super().state_dict(),
            "calibration": self.calibration.state_dict(),
            "client_clusters": {str(client): c for client, c in self._clusters.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`'s value."""
        super().load_state_dict(state)
        self.calibration.load_state_dict(state["calibration"])
        self._clusters = {int(k): int(v) for k, v in state["client_clusters"].items()}
