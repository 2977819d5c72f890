"""Central differential privacy: the server clips and adds noise before anything is published."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from hlm.arrays import BoolArray, FloatArray
from hlm.privacy import gaussian_epsilon
from strategies.aggregation import clip_by_norm
from strategies.local_methods import Batch, LocalMethod
from strategies.tiers import RuleSource


@dataclass(frozen=True)
class CentralPrivacy:
    """Gaussian noise on each cluster's mean of clipped, equally weighted updates.

    Protects one client's training data in the published policies, against everyone but the
    server, under replace-one adjacency with the number of replies m of a cluster public. The
    change of every client is scaled to an L2 norm of at most `clip`, all weights become 1, so a
    cluster's mean has sensitivity 2 clip / m, and noise of standard deviation
    noise_multiplier * 2 clip / m is added to it. Clusters are disjoint, so a round is one release
    for every client. The counts and losses in the metrics are **not** protected, nor is the sum
    of several runs.

    Parameters
    ----------
    clip : float
        > 0, in units of the policy.
    noise_multiplier : float
        > 0; see `hlm.privacy.gaussian_epsilon`.
    delta : float
        In (0, 1); choose it well below 1 / number of clients.
    seed : int
        Seed of the noise. Whoever knows it can subtract the noise: keep it out of reports.
    """

    clip: float
    noise_multiplier: float
    delta: float = 1e-5
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.clip > 0:
            raise ValueError(f"clip: {self.clip}; allowed: > 0")
        self.epsilon(1)

    def check(self, edge_rule: RuleSource, method: LocalMethod) -> None:
        """Refuse what has no known sensitivity."""
        if edge_rule not in ("weighted-mean", "fedavg", "unweighted-mean"):
            raise ValueError(
                f"edge_rule: {edge_rule!r}; allowed with privacy: weighted-mean, unweighted-mean"
            )
        if not method.adds_up:
            raise ValueError(f"method: {method.name}; allowed with privacy: fedavg, fedprox")

    def epsilon(self, releases: int) -> float:
        """Epsilon at `delta` after `releases` rounds."""
        return gaussian_epsilon(self.noise_multiplier, releases, self.delta)

    def bound(self, batch: Batch) -> Batch:
        """Clip every change and make weights equal (a weight n_k would scale the sensitivity)."""
        values = batch.starts + clip_by_norm(batch.values - batch.starts, self.clip)
        return replace(batch, values=values, weights=np.ones_like(batch.weights))

    def add_noise(
        self, clusters: FloatArray, heard: BoolArray, replies: FloatArray, server_round: int
    ) -> FloatArray:
        """Add noise to the policies ``[C, d]`` of the clusters that were heard.

        Parameters
        ----------
        clusters : float64 [C, d]
        heard : bool [C]
        replies : float64 [C]
            m of each cluster.
        server_round : int
        """
        generator = np.random.default_rng([self.seed, server_round, 7])
        noise = generator.normal(size=clusters.shape)
        scale = self.noise_multiplier * 2.0 * self.clip / np.maximum(replies, 1.0)
        return np.where(heard[:, None], clusters + scale[:, None] * noise, clusters)
