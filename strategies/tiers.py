"""The two tiers as arithmetic: clients into clusters (eq. 7), clusters into one (eq. 8).

No Flower here: a benchmark or a test drives it with plain arrays.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from hlm.arrays import BoolArray, FloatArray, IntArray
from hlm.state import State
from strategies.aggregation import cluster_means
from strategies.rules import AggregationRule, WeightedMean, build_rule

RuleSource = str | AggregationRule | Callable[[], AggregationRule]
"""A name in `RULES`, a rule, or a function that makes a fresh one."""


def make_rule(source: RuleSource) -> AggregationRule:
    """Make a fresh rule.

    Raises
    ------
    ValueError
        On an unknown name.
    TypeError
        On what is no source of a rule.
    """
    if isinstance(source, str):
        return build_rule(source)
    if isinstance(source, AggregationRule):  # each cluster's may have a state of its own
        return copy.deepcopy(source)
    made: object = source() if callable(source) else source
    if not isinstance(made, AggregationRule):
        raise TypeError(
            f"rule: {source!r}; allowed: a name in RULES, an AggregationRule, a function that "
            "makes one; Flower's own as FlowerRule(lambda: FedTrimmedAvg(beta=0.2))"
        )
    return made


CloudWeights = Literal["uniform", "examples"]


@dataclass(frozen=True)
class TierRules:
    """How values are combined in either tier.

    Attributes
    ----------
    edge_rule, cloud_rule : str, AggregationRule or callable
        A name in `strategies.rules.RULES`, a rule (of which each cluster gets a copy) or a function
        that makes a fresh one.
    cloud_weights : {"uniform", "examples"}
        ``uniform`` as in eq. 8, or ``examples``: each cluster counts with the weight it last had,
        so that weighted mean over weighted mean is the flat one.
    """

    edge_rule: RuleSource = "weighted-mean"
    cloud_rule: RuleSource = "unweighted-mean"
    cloud_weights: CloudWeights = "uniform"

    def __post_init__(self) -> None:
        if self.cloud_weights not in get_args(CloudWeights):
            raise ValueError(f"cloud_weights: {self.cloud_weights!r}; allowed: uniform, examples")
        for rule in (self.edge_rule, self.cloud_rule):
            make_rule(rule)  # an unknown name is an error now, not in the first round


class Tiers:
    """Global policy and cluster policies, and the rules between them.

    Parameters
    ----------
    policy : float64 [d]
        Initial value of the global policy and of every cluster.
    num_clusters : int
    rules : TierRules
        Each cluster gets an edge rule of its own, since rules may have a state.
    low, high : float64 [d]
        What comes out is clamped to these: server optimisers may step over.
    """

    def __init__(
        self,
        policy: FloatArray,
        num_clusters: int,
        rules: TierRules,
        low: FloatArray,
        high: FloatArray,
    ) -> None:
        self.policy = np.array(policy, dtype=np.float64)
        self.low, self.high = low, high
        self.rules = rules
        self.cloud = make_rule(rules.cloud_rule)
        self.reset_clusters(np.tile(self.policy, (num_clusters, 1)))

    def reset_clusters(self, values: FloatArray) -> None:
        """Start over with other clusters, at ``values [C, d]``; none has reported yet."""
        count = len(values)
        self.clusters = np.array(values, dtype=np.float64)
        self.reported: BoolArray = np.zeros(count, dtype=np.bool_)
        self.cluster_weights = np.zeros(count)
        self.edges = [make_rule(self.rules.edge_rule) for _ in range(count)]

    def add_clusters(self, num_clusters: int) -> None:
        """Go on with at least so many clusters; a new one starts at the global policy."""
        more = num_clusters - self.num_clusters
        if more > 0:
            self.clusters = np.vstack([self.clusters, np.tile(self.policy, (more, 1))])
            self.reported = np.append(self.reported, np.zeros(more, dtype=np.bool_))
            self.cluster_weights = np.append(self.cluster_weights, np.zeros(more))
            self.edges += [make_rule(self.rules.edge_rule) for _ in range(more)]

    @property
    def num_clusters(self) -> int:
        """C."""
        return len(self.clusters)

    def combine_statelessly(
        self, values: FloatArray, weights: FloatArray, clusters: IntArray, previous: FloatArray
    ) -> FloatArray:
        """Combine by the edge rules, or the weighted mean where one has a state.

        For what is aggregated beside the policy and must not disturb a server optimiser.
        """
        rules = [WeightedMean() if rule.stateful else rule for rule in self.edges]
        return _by_cluster(rules, values, weights, clusters, previous)

    def edge_step(
        self,
        values: FloatArray,
        weights: FloatArray,
        clusters: IntArray,
        starts: FloatArray,
    ) -> tuple[FloatArray, BoolArray]:
        """Eq. 7. ``starts [C, d]`` is what each cluster's clients were sent.

        Returns
        -------
        new cluster policies float64 [C, d] (a cluster without weight keeps its own), and
        heard bool [C]. Nothing is stored yet: see `cloud_step`.
        """
        totals = np.bincount(clusters, weights=weights, minlength=self.num_clusters)
        heard: BoolArray = totals > 0
        combined = _by_cluster(self.edges, values, weights, clusters, starts)
        new = np.where(heard[:, None], combined, self.clusters)
        self.cluster_weights = np.where(heard, totals, self.cluster_weights)
        return new, heard

    @property
    def adds_up(self) -> bool:
        """Whether all edge rules are weighted means, so that `edge_sum` will do."""
        return all(isinstance(rule, WeightedMean) for rule in self.edges)

    def edge_sum(
        self, values: Iterable[FloatArray], weights: FloatArray, clusters: IntArray
    ) -> tuple[FloatArray, BoolArray]:
        """Eq. 7 by weighted means, over values [d] that come one after the other and are not kept.

        Returns as `edge_step`.
        """
        totals = np.bincount(clusters, weights=weights, minlength=self.num_clusters)
        heard: BoolArray = totals > 0
        new = np.where(heard[:, None], 0.0, self.clusters)
        for value, weight, cluster in zip(values, weights, clusters, strict=True):
            if weight > 0:
                new[cluster] += (weight / totals[cluster]) * value
        self.cluster_weights = np.where(heard, totals, self.cluster_weights)
        return new, heard

    def edge_given(
        self, means: Mapping[int, tuple[FloatArray, float]]
    ) -> tuple[FloatArray, BoolArray]:
        """Eq. 7 as edge servers formed it: mean float64 [d] and weight by cluster.

        Returns as `edge_step`.
        """
        new, heard = self.clusters.copy(), np.zeros(self.num_clusters, dtype=np.bool_)
        for cluster, (mean, weight) in means.items():
            if weight > 0:
                new[cluster], heard[cluster] = mean, True
                self.cluster_weights[cluster] = weight
        return new, heard

    def cloud_step(self, clusters: FloatArray, heard: BoolArray) -> None:
        """Store the clusters and form the global policy (eq. 8) from all that ever reported.

        When no cluster was heard, everything stays as it was, the cloud rule's state included.
        """
        if not heard.any():
            return
        self.clusters = np.clip(clusters, self.low, self.high)
        self.reported = self.reported | heard
        chosen = self.clusters if self.reported.all() else self.clusters[self.reported]
        weights = np.ones(len(chosen))
        if self.rules.cloud_weights == "examples":
            weights = self.cluster_weights[self.reported]
        self.policy = np.clip(self.cloud.combine(chosen, weights, self.policy), self.low, self.high)

    def state_dict(self) -> State:
        """Everything needed to continue identically."""
        return {
            "policy": self.policy.copy(),
            "clusters": self.clusters.copy(),
            "reported": self.reported.copy(),
            "cluster_weights": self.cluster_weights.copy(),
            "edges": [rule.state_dict() for rule in self.edges],
            "cloud": self.cloud.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`'s value."""
        clusters = np.array(state["clusters"], dtype=np.float64)
        if clusters.shape[1:] != self.policy.shape or len(state["edges"]) != len(clusters):
            raise ValueError(
                f"state: clusters of shape {clusters.shape}; allowed: [C, {self.policy.size}]"
            )
        self.reset_clusters(clusters)
        self.policy = np.array(state["policy"], dtype=np.float64)
        self.reported = np.array(state["reported"], dtype=np.bool_)
        self.cluster_weights = np.array(state["cluster_weights"], dtype=np.float64)
        for rule, kept in zip(self.edges, state["edges"], strict=True):
            rule.load_state_dict(kept)
        self.cloud.load_state_dict(state["cloud"])


def _by_cluster(
    rules: list[AggregationRule],
    values: FloatArray,
    weights: FloatArray,
    clusters: IntArray,
    previous: FloatArray,
) -> FloatArray:
    if all(isinstance(rule, WeightedMean) for rule in rules):
        return cluster_means(values, weights, clusters, len(rules), previous)
    result = np.array(previous, dtype=np.float64)
    order = np.argsort(clusters, kind="stable")
    edges = np.searchsorted(clusters[order], np.arange(len(rules) + 1))
    for cluster, rule in enumerate(rules):
        members = order[edges[cluster] : edges[cluster + 1]]
        members = members[weights[members] > 0]  # no tokens, no say: not even in a median
        if members.size:
            result[cluster] = rule.combine(values[members], weights[members], previous[cluster])
    return result
