"""The training phase: replies become policies by local method, privacy, eq. 7 and eq. 8."""

from __future__ import annotations

import numpy as np

from hlm.arrays import BoolArray, FloatArray
from strategies.local_methods import Batch
from strategies.outbox import Outbox
from strategies.phases import Phase, Round
from strategies.privacy import CentralPrivacy
from strategies.validation import Update


class Training(Phase):
    """Clients train the policy they are sent, and the rules of both tiers average what comes back.

    Parameters
    ----------
    outbox : Outbox
        Writes the messages.
    privacy : CentralPrivacy or None

    Raises
    ------
    ValueError
        On rules or a method of unknown sensitivity, with privacy.
    """

    def __init__(self, outbox: Outbox, privacy: CentralPrivacy | None) -> None:
        self.outbox, self.privacy = outbox, privacy
        if privacy is not None:
            privacy.check(outbox.state.rules.edge_rule, outbox.state.method)

    def aggregate(self, current: Round, updates: list[Update]) -> BoolArray:
        """See `Phase`; means of plain local steps are added up one by one."""
        state = self.outbox.state
        tiers, method = state.tiers, state.method
        if current.means is not None:
            new, heard = tiers.edge_given(current.means)
            tiers.cloud_step(new, heard)
            return heard
        nodes = [current.asked[update.node_id] for update in updates]
        clusters = np.array([node.cluster for node in nodes], dtype=np.int64)
        weights = np.array([update.weight for update in updates], dtype=np.float64)
        if tiers.adds_up and method.adds_up and self.privacy is None:
            new, heard = tiers.edge_sum((update.values for update in updates), weights, clusters)
            tiers.cloud_step(new, heard)
            return heard
        starts = current.sent[clusters]
        if self.outbox.own_starts:
            starts = np.stack([update.extra("start") for update in updates])
        raw = batch = Batch(
            values=np.stack([update.values for update in updates]),
            starts=starts,
            weights=weights,
            clusters=clusters,
            cluster_sizes=current.cluster_sizes,
            extras={k: np.stack([u.extra(k) for u in updates]) for k in method.reply_extras},
            metrics={
                key: np.array([update.metrics[key] for update in updates], dtype=np.float64)
                for key in method.reply_metrics
            },
            shared_start=self.outbox.start.shared,
        )
        if self.privacy is not None:
            batch = self.privacy.bound(batch)
        batch = method.prepare(batch)
        new, heard = tiers.edge_step(batch.values, batch.weights, batch.clusters, current.sent)
        if self.privacy is not None:
            replies = np.bincount(batch.clusters, minlength=tiers.num_clusters).astype(np.float64)
            new = self.privacy.add_noise(new, heard, replies, current.number)
            state.releases += 1
        method.absorb(raw, [node.name for node in nodes], tiers.combine_statelessly)
        tiers.cloud_step(new, heard)
        return heard

    def client_values(self) -> dict[int, FloatArray]:
        """Last accepted value of every client, float64 [d], as far as they are kept."""
        return dict(sorted(self.outbox.state.memory.values.items()))
