"""Aggregation rules by name: how several values become one, at an edge or in the cloud.

A rule sees one group (the clients of a cluster, or the clusters) as ``values [n, d]`` with
``weights [n] > 0`` and the group's ``previous [d]`` value, the one its members started from.
Stateless rules are Flower's FedAvg, FedMedian, FedTrimmedAvg, Krum, MultiKrum; rules with a state
are the server optimisers of Reddi et al. (arXiv 2003.00295) and server momentum of Hsu et al.
(arXiv 1909.06335), with the arithmetic of Flower 1.41's FedAdam, FedYogi, FedAdagrad and FedAvgM,
to which the tests hold them step by step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from hlm.arrays import FloatArray
from hlm.state import State
from strategies.aggregation import clip_by_norm, krum_order, median, trimmed_mean, weighted_mean


class AggregationRule(ABC):
    """One group of values becomes one value; the base remembers nothing."""

    stateful = False
    """True when `combine` depends on earlier calls."""

    @abstractmethod
    def combine(self, values: FloatArray, weights: FloatArray, previous: FloatArray) -> FloatArray:
        """Combine ``values [n, d]`` with ``weights [n]`` (> 0); returns float64 [d]."""

    def state_dict(self) -> State:
        """Everything needed to continue identically."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`'s value."""
        if state:
            raise ValueError(f"state: keys {sorted(state)}; allowed: none for {type(self)}")


class WeightedMean(AggregationRule):
    """The weighted mean: FedAvg, and eq. 7 when the weights are n_k."""

    def combine(self, values: FloatArray, weights: FloatArray, previous: FloatArray) -> FloatArray:
        """See `AggregationRule`."""
        return weighted_mean(values, weights)


class UnweightedMean(AggregationRule):
    """The unweighted mean: eq. 8 over clusters."""

    def combine(self, values: FloatArray, weights: FloatArray, previous: FloatArray) -> FloatArray:
        """See `AggregationRule`."""
        return np.asarray(values.mean(axis=0), dtype=np.float64)


class Median(AggregationRule):
    """Coordinate-wise median, unweighted."""

    def combine(self, values: FloatArray, weights: FloatArray, previous: FloatArray) -> FloatArray:
        """See `AggregationRule`."""
        return median(values)


class TrimmedMean(AggregationRule):
    """Coordinate-wise mean without the outer values, unweighted.

    Parameters
    ----------
    trim : float
        Share cut off at each end, in [0, 0.5).
    """

    def __init__(self, trim: float = 0.2) -> None:
        if not 0.0 <= trim < 0.5:
            raise ValueError(f"trim: {trim}; allowed: [0, 0.5)")
        self.trim = trim

    def combine(self, values: FloatArray, weights: FloatArray, previous: FloatArray) -> FloatArray:
        """See `AggregationRule`."""
        return trimmed_mean(values, self.trim)


class ClippedMean(AggregationRule):
    """Mean of the members' changes, each clipped to the median length, unweighted.

    Half of the members have a change no longer than the bound c, so while fewer than half lie c is
    at most the longest honest change. f liars of n move the result by at most f c / n each way,
    and it never moves from `previous` by more than c (norm bounding, arXiv 1911.07963).
    """

    def combine(self, values: FloatArray, weights: FloatArray, previous: FloatArray) -> FloatArray:
        """See `AggregationRule`."""
        changes = values - previous
        # The lower one of two middle lengths: with half of the members lying it may be theirs.
        bound = float(np.sort(np.linalg.norm(changes, axis=1))[(len(changes) - 1) // 2])
        if bound == 0:
            return np.array(previous, dtype=np.float64)
        return np.asarray(previous + clip_by_norm(changes, bound).mean(axis=0))


class MultiKrum(AggregationRule):
    """Weighted mean of the `select` values nearest to their neighbours; ``select=1`` is Krum.

    Parameters
    ----------
    malicious : int
        f, how many members may be malicious.
    select : int
        How many are averaged, at least 1.
    """

    def __init__(self, malicious: int = 1, select: int = 1) -> None:
        if malicious < 0 or select < 1:
            raise ValueError(f"malicious, select: {malicious}, {select}; allowed: >= 0 and >= 1")
        self.malicious = malicious
        self.select = select

    def combine(self, values: FloatArray, weights: FloatArray, previous: FloatArray) -> FloatArray:
        """See `AggregationRule`."""
        chosen = krum_order(values, self.malicious)[: self.select]
        return weighted_mean(values[chosen], weights[chosen])


class ServerOptimiser(AggregationRule):
    """A server step along the mean difference: FedAdam, FedYogi, FedAdagrad.

    With delta = weighted mean of values - previous: m = b1 m + (1 - b1) delta; v per `kind`; the
    result is previous + lr m / (sqrt(v) + tau). FedAdam's rate is bias-corrected with exponent
    t + 1, t = 1, 2, ..., as in Flower.

    Parameters
    ----------
    kind : str
        ``adam``, ``yogi`` or ``adagrad``.
    learning_rate : float
        > 0, per round.
    beta_1, beta_2 : float
        In [0, 1).
    tau : float
        > 0; how adaptive the step is.
    """

    stateful = True

    def __init__(
        self,
        kind: str,
        learning_rate: float = 0.1,
        beta_1: float = 0.9,
        beta_2: float = 0.99,
        tau: float = 1e-3,
    ) -> None:
        if kind not in ("adam", "yogi", "adagrad"):
            raise ValueError(f"kind: {kind!r}; allowed: adam, yogi, adagrad")
        if not (learning_rate > 0 and tau > 0 and 0 <= beta_1 < 1 and 0 <= beta_2 < 1):
            raise ValueError(
                f"learning_rate, beta_1, beta_2, tau: {learning_rate}, {beta_1}, {beta_2}, {tau}; "
                "allowed: > 0, [0, 1), [0, 1), > 0"
            )
        self.kind = kind
        self.learning_rate = learning_rate
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.tau = tau
        self.steps = 0
        self.momentum: FloatArray | None = None
        self.variance: FloatArray | None = None

    def combine(self, values: FloatArray, weights: FloatArray, previous: FloatArray) -> FloatArray:
        """See `AggregationRule`."""
        delta = weighted_mean(values, weights) - previous
        squared = np.square(delta)
        momentum = np.zeros_like(delta) if self.momentum is None else self.momentum
        variance = np.zeros_like(delta) if self.variance is None else self.variance
        momentum = self.beta_1 * momentum + (1 - self.beta_1) * delta
        if self.kind == "adam":
            variance = self.beta_2 * variance + (1 - self.beta_2) * squared
        elif self.kind == "yogi":
            variance = variance - (1 - self.beta_2) * squared * np.sign(variance - squared)
        else:
            variance = variance + squared
        self.steps += 1
        rate = self.learning_rate
        if self.kind == "adam":
            exponent = self.steps + 1.0
            rate *= np.sqrt(1 - self.beta_2**exponent) / (1 - self.beta_1**exponent)
        self.momentum, self.variance = momentum, variance
        return np.asarray(previous + rate * momentum / (np.sqrt(variance) + self.tau))

    def state_dict(self) -> State:
        """Steps taken, and momentum and variance, Adam's first and second moment."""
        return {
            "steps": self.steps,
            "momentum": None if self.momentum is None else self.momentum.copy(),
            "second_moment": None if self.variance is None else self.variance.copy(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `AggregationRule`."""
        self.steps = int(state["steps"])
        self.momentum = _copy(state["momentum"])
        self.variance = _copy(state["second_moment"])


class ServerMomentum(AggregationRule):
    """FedAvgM: momentum on the difference between previous and mean.

    Parameters
    ----------
    learning_rate : float
        > 0.
    momentum : float
        In [0, 1).
    """

    stateful = True

    def __init__(self, learning_rate: float = 1.0, momentum: float = 0.9) -> None:
        if not (learning_rate > 0 and 0 <= momentum < 1):
            raise ValueError(
                f"learning_rate, momentum: {learning_rate}, {momentum}; allowed: > 0 and [0, 1)"
            )
        self.learning_rate = learning_rate
        self.momentum = momentum
        self.velocity: FloatArray | None = None

    def combine(self, values: FloatArray, weights: FloatArray, previous: FloatArray) -> FloatArray:
        """See `AggregationRule`."""
        step = previous - weighted_mean(values, weights)
        if self.velocity is not None:
            step = self.momentum * self.velocity + step
        self.velocity = step
        return np.asarray(previous - self.learning_rate * step)

    def state_dict(self) -> State:
        """The velocity."""
        return {"velocity": None if self.velocity is None else self.velocity.copy()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `AggregationRule`."""
        self.velocity = _copy(state["velocity"])


def _copy(array: FloatArray | None) -> FloatArray | None:
    return None if array is None else np.array(array, dtype=np.float64)


RULES: dict[str, Callable[..., AggregationRule]] = {
    "weighted-mean": WeightedMean,
    "unweighted-mean": UnweightedMean,
    "median": Median,
    "trimmed-mean": TrimmedMean,
    "clipped-mean": ClippedMean,
    # The first, third and fourth by the names of Flower's strategies.
    "fedavg": WeightedMean,
    "fedmedian": Median,
    "fedtrimmedavg": TrimmedMean,
    "krum": partial(MultiKrum, select=1),
    "multikrum": MultiKrum,
    "fedadam": partial(ServerOptimiser, "adam"),
    "fedyogi": partial(ServerOptimiser, "yogi", learning_rate=0.01),
    "fedadagrad": partial(ServerOptimiser, "adagrad", beta_1=0.0, beta_2=0.0),
    "fedavgm": ServerMomentum,
}
"""Rule name to a factory that takes the rule's options as keywords."""

RENAMED = {
    "mean": "weighted-mean (by n_k, eq. 7) or unweighted-mean (eq. 8)",
    "uniform": "unweighted-mean",
}
"""Names of earlier versions. ``mean`` was eq. 7 or eq. 8, depending on where it stood."""


def build_rule(name: str, **options: float) -> AggregationRule:
    """Make the rule `name`.

    Raises
    ------
    ValueError
        On an unknown name or an option the rule does not have.
    """
    if name in RENAMED:
        raise ValueError(f"rule: {name!r}; now called {RENAMED[name]}")
    if name not in RULES:
        raise ValueError(f"rule: {name!r}; allowed: {', '.join(sorted(RULES))}")
    try:
        return RULES[name](**options)
    except TypeError as error:
        raise ValueError(f"rule {name!r}: options {sorted(options)}; {error}") from error
