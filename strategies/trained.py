"""A strategy in two phases: train a scoring model federatedly, then calibrate its threshold.

The policy is ``[threshold, model parameters]``. In the first rounds any local method, edge rule
and cloud rule averages it, the threshold being held where everything is escalated; then the
model is frozen, and the threshold comes from sums.
"""

from __future__ import annotations

from typing import Any, Literal

from flwr.app import ConfigRecord, Message

from strategies.aggregation import BoolArray
from strategies.calibration import Calibration
from strategies.certified import Calibrated
from strategies.cluster_map import ClusterMap
from strategies.hierarchical import Hierarchical
from strategies.sampling import Node
from strategies.validation import Update


class TrainedThenCalibrated(Calibrated):
    """`Hierarchical` for the first rounds, `Calibrated` for the others.

    Parameters
    ----------
    calibration : Calibration
        Turns sums into thresholds.
    cluster_map : ClusterMap, optional
    training_rounds : int
        First rounds, in which the model is trained, >= 1. No sums are asked for.
    tier : {"global", "cluster"}
        Whether all clients share model and threshold, or each cluster has its own.
    options
        Those of `Hierarchical` without personalisation, and `check` of `Calibrated`. `privacy`
        is around the model while it is trained; the calibration adds the noise to sums.
    """

    def __init__(
        self,
        calibration: Calibration,
        cluster_map: ClusterMap | None = None,
        *,
        training_rounds: int,
        tier: Literal["global", "cluster"] = "global",
        **options: Any,
    ) -> None:
        if training_rounds < 1:
            raise ValueError(f"training_rounds: {training_rounds}; allowed: >= 1")
        if tier not in ("global", "cluster"):
            raise ValueError(f"tier: {tier!r}; allowed: global, cluster")
        super().__init__(calibration, cluster_map, tier=tier, **options)
        self.training_rounds = training_rounds

    def _message(self, server_round: int, node: Node, config: ConfigRecord, kind: str) -> Message:
        if server_round > self.training_rounds:
            return super()._message(server_round, node, config, kind)
        message = Hierarchical._message(self, server_round, node, config, kind)
        message.content.config_records["config"]["calibrate"] = False
        return message

    def _aggregate(self, server_round: int, updates: list[Update]) -> BoolArray:
        if server_round > self.training_rounds:
            return super()._aggregate(server_round, updates)
        for update in updates:
            node = self._asked[update.node_id]
            self._clusters[node.name] = node.cluster
        heard = Hierarchical._aggregate(self, server_round, updates)
        if self.privacy is not None:
            # Noise must not lift the threshold from where it is held.
            tiers = self.state.tiers
            tiers.policy = self._clamped(self.calibration.result(0), tiers.policy)
            for cluster in range(tiers.num_clusters):
                threshold = self.calibration.result(cluster)
                tiers.clusters[cluster] = self._clamped(threshold, tiers.clusters[cluster])
        return heard
