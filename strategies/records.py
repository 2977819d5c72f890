"""What a round leaves behind: who replied, who was refused, what came out."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from hlm.arrays import FloatArray
from strategies.validation import Refusal, Update

if TYPE_CHECKING:
    from strategies.phases import Round

MetricValue = int | float | list[int] | list[float]
IDENTITY = frozenset({"client", "round"})  # adding these up would mean nothing


class RoundFailed(RuntimeError):
    """No reply of a round could be used, so the run must not go on as if it had."""


class NotEnoughNodes(RuntimeError):
    """Too few nodes were connected in the time allowed."""


@dataclass(frozen=True)
class Failure:
    """A client that was asked and gave no usable answer of its own accord.

    Attributes
    ----------
    node_id, client : int
    reason : str
        The error the client sent, or ``no reply`` when the round's time ran out.
    silent : bool
        Nothing came of the client itself: it is away, or its reply was lost.
    """

    node_id: int
    client: int
    reason: str
    silent: bool = False


@dataclass
class RoundRecord:
    """One round, for progress and metrics.jsonl: numbers by client, and no policies.

    Policies are the strategy's (`policy`, `cluster_policies`, `client_values`), which has one of
    each; a record of every round's would hold rounds x clients models.

    Attributes
    ----------
    round : int
        From 1.
    heard : list of bool [C]
        Which clusters had a positive weight in this round; the others kept theirs.
    counted : bool
        False when fewer than `min_clients` replies were usable and the policy stayed.
    asked : list of int
        Clients asked (node id where the index is unknown).
    weights : mapping of client to float
    clients : mapping of client to cluster
        Cluster of each accepted client.
    refused, failed : list
    replies : mapping of client to mapping
        Metrics of each accepted reply.
    sums : mapping
        Every metric of the accepted replies added up, lists element by element.
    means : mapping
        Scalar metrics averaged with the weights (unweighted when these sum to zero).
    evaluation_sums, evaluation_means : mapping
        The same for the federated evaluation; empty when there was none.
    evaluation_replies : mapping of client to mapping
        Metrics of each accepted evaluation reply.
    evaluation_refused, evaluation_failed : list
    epsilon : float or None
        Privacy spent up to and including this round; None without central privacy.
    seconds : float
        Wall-clock time from asking to aggregating.
    """

    round: int
    heard: list[bool]
    counted: bool = True
    asked: list[int] = field(default_factory=list)
    weights: dict[int, float] = field(default_factory=dict)
    clients: dict[int, int] = field(default_factory=dict)
    refused: list[Refusal] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)
    replies: dict[int, Mapping[str, MetricValue]] = field(default_factory=dict)
    sums: dict[str, MetricValue] = field(default_factory=dict)
    means: dict[str, float] = field(default_factory=dict)
    evaluation_sums: dict[str, MetricValue] = field(default_factory=dict)
    evaluation_means: dict[str, float] = field(default_factory=dict)
    evaluation_replies: dict[int, Mapping[str, MetricValue]] = field(default_factory=dict)
    evaluation_refused: list[Refusal] = field(default_factory=list)
    evaluation_failed: list[Failure] = field(default_factory=list)
    epsilon: float | None = None
    seconds: float = 0.0

    def add_training(
        self, asked: Round, updates: list[Update], refused: list[Refusal], failed: list[Failure]
    ) -> None:
        """Add who was asked, what came of it, and the figures of the replies."""
        self.asked = [node.name for node in asked.asked.values()]
        self.weights = {update.name: update.weight for update in updates}
        self.clients = {u.name: asked.asked[u.node_id].cluster for u in updates}
        self.refused, self.failed = refused, failed
        self.replies = {update.name: update.metrics for update in updates}
        self.sums, self.means = add_up(updates)
        self.seconds = time.monotonic() - asked.began

    def add_evaluation(
        self, updates: list[Update], refused: list[Refusal], failed: list[Failure]
    ) -> None:
        """Add the figures of the round's federated evaluation."""
        self.evaluation_sums, self.evaluation_means = add_up(updates)
        self.evaluation_replies = {update.name: update.metrics for update in updates}
        self.evaluation_refused, self.evaluation_failed = refused, failed

    @property
    def refused_by_reason(self) -> dict[str, int]:
        """How many replies were refused for each reason, training and evaluation together."""
        return dict(
            Counter(refusal.reason for refusal in (*self.refused, *self.evaluation_refused))
        )


def add_up(updates: list[Update]) -> tuple[dict[str, MetricValue], dict[str, float]]:
    """Sums of all metrics, and weighted means of the scalar ones; see `weighted_means`.

    Integers stay integers, lists are added element by element.
    """
    sums: dict[str, MetricValue] = {}
    for update in updates:
        for name, value in update.metrics.items():
            if name in IDENTITY:
                continue
            before = sums.get(name)
            if isinstance(value, list):
                items = before if isinstance(before, list) else [0] * len(value)
                sums[name] = [old + new for old, new in zip(items, value, strict=True)]
            else:
                sums[name] = (before if isinstance(before, int | float) else 0) + value
    scalars = [name for name, value in sums.items() if not isinstance(value, list)]
    return sums, {name: float(mean) for name, mean in weighted_means(updates, scalars).items()}


def weighted_means(updates: list[Update], names: Iterable[str]) -> dict[str, FloatArray]:
    """Weighted mean of each named metric over the replies that have it, lists entry by entry.

    Equal weights where those of a metric sum to 0.
    """
    means = {}
    for name in names:
        having = [update for update in updates if name in update.metrics]
        values = np.array([update.metrics[name] for update in having], dtype=np.float64)
        shares = np.array([update.weight for update in having], dtype=np.float64)
        total = shares.sum()
        means[name] = np.asarray(shares @ values / total if total > 0 else values.mean(axis=0))
    return means
