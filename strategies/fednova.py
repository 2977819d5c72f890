"""FedNova (Wang et al., arXiv 2007.07481): unequal local steps without objective inconsistency."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from strategies.aggregation import cluster_means
from strategies.local_methods import Batch, LocalMethod, step_towards


class FedNova(LocalMethod):
    """Normalised averaging: x + tau_eff * sum_k p_k (y_k - x) / tau_k.

    tau_k is the reply's metric ``local-steps`` (plain gradient steps, so ||a_k||_1 = tau_k) and
    tau_eff = sum_k p_k tau_k. Each value is rewritten to x + (tau_eff / tau_k) (y_k - x) before
    the edge rule, which for the mean is the formula above and lets every other rule work too.
    When all clients start from the global policy, tau_eff is one number for all clusters (the
    mean of the clusters' own): a tau_eff per cluster would bring the bias back at eq. 8.

    Parameters
    ----------
    max_local_steps : int
        A reply that claims more is refused.
    """

    name = "fednova"
    adds_up = False
    needs_start = True  # differences are scaled

    def __init__(self, max_local_steps: int = 100_000) -> None:
        if max_local_steps < 1:
            raise ValueError(f"max_local_steps: {max_local_steps}; allowed: >= 1")
        self.reply_metrics = {"local-steps": (1, max_local_steps)}

    def prepare(self, batch: Batch) -> Batch:
        """Scale each client's difference by tau_eff / tau_k."""
        steps = batch.metrics["local-steps"]
        if not batch.weights.sum() > 0:
            return batch
        count = len(batch.cluster_sizes)
        effective = cluster_means(
            steps[:, None], batch.weights, batch.clusters, count, np.full((count, 1), np.nan)
        )[:, 0]
        if batch.shared_start:
            effective = np.full(count, np.nanmean(effective))
        # A cluster whose weights are all zero has no tau_eff; its values are not used either.
        scale = np.nan_to_num(effective[batch.clusters] / steps, nan=1.0)
        return replace(batch, values=step_towards(batch, scale))
