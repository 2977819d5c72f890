"""A round's accepted replies become policies: the local method, privacy, eq. 7 and eq. 8."""

from __future__ import annotations

import numpy as np

from strategies.aggregation import BoolArray, FloatArray, IntArray
from strategies.outbox import Outbox
from strategies.privacy import CentralPrivacy
from strategies.replies import as_batch
from strategies.sampling import Node
from strategies.validation import Update


def combine(
    outbox: Outbox,
    updates: list[Update],
    nodes: list[Node],
    sent: FloatArray,
    cluster_sizes: IntArray,
    privacy: CentralPrivacy | None,
    server_round: int,
) -> BoolArray:
    """Move the policies of `outbox.state`; means of plain local steps are added up one by one.

    Parameters
    ----------
    outbox : Outbox
        Wrote the messages.
    updates : list of Update
        At least one.
    nodes : list of Node
        Who sent each.
    sent : float64 [C, d]
        What each cluster's clients were sent.
    cluster_sizes : int64 [C]
        Connected nodes of each cluster.
    privacy : CentralPrivacy or None
    server_round : int

    Returns
    -------
    bool [C]: clusters that had a positive weight.
    """
    state = outbox.state
    tiers, method = state.tiers, state.method
    clusters = [node.cluster for node in nodes]
    if tiers.adds_up and method.adds_up and privacy is None:
        new, heard = tiers.edge_sum(
            (update.values for update in updates),
            np.array([update.weight for update in updates], dtype=np.float64),
            np.array(clusters, dtype=np.int64),
        )
        tiers.cloud_step(new, heard)
        return heard
    raw = batch = as_batch(
        updates,
        clusters,
        sent,
        cluster_sizes,
        method,
        outbox.personalisation == "global",
        outbox.own_starts,
    )
    if privacy is not None:
        batch = privacy.bound(batch)
    batch = method.prepare(batch)
    new, heard = tiers.edge_step(batch.values, batch.weights, batch.clusters, sent)
    if privacy is not None:
        replies = np.bincount(batch.clusters, minlength=tiers.num_clusters).astype(np.float64)
        new = privacy.add_noise(new, heard, replies, server_round)
        state.releases += 1
    method.absorb(raw, [node.name for node in nodes], tiers.combine_statelessly)
    tiers.cloud_step(new, heard)
    return heard
