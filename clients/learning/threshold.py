"""How one client learns where "sure" begins: losses and gradients of the threshold policy.

The threshold ``th`` is kept in a flat float64 array, ``policy[0]``; a token is kept if
``u <= th``. All learning rules here are differentiable through the soft escalation
``s = sigmoid(gamma * (u - th))`` of FedHLM (arXiv 2507.00082, section IV-C):

* :class:`PaperLearning`: eq. 4 and 5 as written. Its gradient is strictly negative for
  ``lambda > 0``, so plain descent only ever raises the threshold; beta merely sets the speed. It
  is here to reproduce the paper.
* :class:`BalancedLearning`: the price of a transmission against the price of a wrong kept token.
  Its optimum is where ``E[beta | u = th] = transmission_cost / error_cost``.
* :class:`PrimalDualLearning`: least transmission subject to ``E[kept * beta] <= budget``.

Descent itself (eq. 6) is :func:`hlm.local_steps.local_steps`, the same for every strategy; rules
that need one round of sums instead of gradients are in :mod:`clients.learning.sums`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from clients.learning.feedback import Feedback

__all__ = [
    "BalancedLearning",
    "PaperLearning",
    "PrimalDualLearning",
    "ThresholdLearning",
    "kept_risk",
]

Reduction = Literal["sum", "mean"]
Vector = NDArray[np.float64]


class ThresholdLearning(Protocol):
    """A differentiable learning rule over one flat policy array of ``size`` numbers."""

    @property
    def size(self) -> int:
        """Length of the policy array."""
        ...

    @property
    def bounds(self) -> tuple[Vector, Vector]:
        """Smallest and largest allowed policy, each float64 [size]."""
        ...

    def initial(self, threshold: float) -> Vector:
        """Policy float64 [size] that starts at ``threshold``."""
        ...

    def examples(self, feedback: Feedback) -> int:
        """Tokens the local update rests on: the n_k of eq. 7."""
        ...

    def loss(self, policy: Vector, feedback: Feedback) -> float:
        """Local loss at ``policy``."""
        ...

    def gradient(self, policy: Vector, feedback: Feedback) -> Vector:
        """Direction float64 [size] that local descent subtracts."""
        ...


@dataclass(frozen=True)
class PaperLearning:
    """FedHLM's own loss (eq. 4) and gradient (eq. 5) on the tokens that left the device.

    Parameters
    ----------
    gamma : float
        Steepness of the sigmoid, > 0.
    regularisation : float
        The paper's lambda, >= 0: how strongly transmission is discouraged. The paper names no
        value; its Fig. 5 (beta = .2, a loss of about .65 where s = 1) gives .65 - .8**2 = .01.
    reduction : {"sum", "mean"}
        Eq. 4 is a literal sum: 600 tokens at eta = .01 move a threshold from .30 past 1 in one
        round. The mean is the usable reading.
    beta : {"ratio", "loss"}
        Which value is eq. 4's beta: eq. 3 on softmax values, as in the paper, or the loss of the
        decoding in use (in greedy decoding the indicator).
    """

    gamma: float = 10.0
    regularisation: float = 0.01
    reduction: Reduction = "sum"
    beta: Literal["ratio", "loss"] = "ratio"

    def __post_init__(self) -> None:
        _require_positive("gamma", self.gamma)
        _require_not_negative("regularisation", self.regularisation)
        _require_choice("reduction", self.reduction, ("sum", "mean"))
        _require_choice("beta", self.beta, ("ratio", "loss"))

    @property
    def size(self) -> int:
        """One number: the threshold."""
        return 1

    @property
    def bounds(self) -> tuple[Vector, Vector]:
        """Thresholds live in [0, 1]."""
        return np.zeros(1), np.ones(1)

    def initial(self, threshold: float) -> Vector:
        """Policy float64 [1]."""
        return np.array([threshold], dtype=np.float64)

    def examples(self, feedback: Feedback) -> int:
        """All tokens that left the device (Algorithm 1, line 23 counts peer-resolved ones too)."""
        return int((~feedback.kept).sum())

    def loss(self, policy: Vector, feedback: Feedback) -> float:
        """Eq. 4: ``sum_t s_t ((1 - beta_t)^2 + lambda)``; 0 without transmitted tokens."""
        escalation, cost = self._terms(policy, feedback)
        return self._reduce(escalation * cost)

    def gradient(self, policy: Vector, feedback: Feedback) -> Vector:
        """Eq. 5: ``-gamma sum_t s_t (1 - s_t) ((1 - beta_t)^2 + lambda)``, float64 [1]."""
        escalation, cost = self._terms(policy, feedback)
        slope = -self.gamma * escalation * (1 - escalation) * cost
        return np.array([self._reduce(slope)])

    def _terms(self, policy: Vector, feedback: Feedback) -> tuple[Vector, Vector]:
        # "This value is undefined for tokens not transmitted and is excluded from training."
        sent = feedback.known & ~feedback.kept
        beta = (feedback.ratio_beta if self.beta == "ratio" else feedback.beta)[sent]
        escalation = soft_escalation(feedback.u[sent], float(policy[0]), self.gamma)
        return escalation, (1 - beta) ** 2 + self.regularisation

    def _reduce(self, terms: Vector) -> float:
        if not len(terms):
            return 0.0
        return float(terms.sum() if self.reduction == "sum" else terms.mean())


@dataclass(frozen=True)
class BalancedLearning:
    """Price of sending against price of a wrong kept token, over all tokens of the round.

    ``loss = reduce_t [s_t * transmission_cost + (1 - s_t) * error_cost * w_t * beta_t]`` with
    ``w_t`` the inverse-probability weight (0 where beta is unknown), which keeps loss and
    gradient unbiased whether beta comes from free feedback or from audits.

    Parameters
    ----------
    gamma : float
        Steepness of the sigmoid, > 0.
    transmission_cost, error_cost : float
        Prices in one unit of the user's choice, > 0.
    reduction : {"sum", "mean"}
        Over all tokens of the feedback.
    """

    gamma: float = 10.0
    transmission_cost: float = 0.3
    error_cost: float = 1.0
    reduction: Reduction = "mean"

    def __post_init__(self) -> None:
        _require_positive("gamma", self.gamma)
        _require_positive("transmission_cost", self.transmission_cost)
        _require_positive("error_cost", self.error_cost)
        _require_choice("reduction", self.reduction, ("sum", "mean"))

    @property
    def size(self) -> int:
        """One number: the threshold."""
        return 1

    @property
    def bounds(self) -> tuple[Vector, Vector]:
        """Thresholds live in [0, 1]."""
        return np.zeros(1), np.ones(1)

    def initial(self, threshold: float) -> Vector:
        """Policy float64 [1]."""
        return np.array([threshold], dtype=np.float64)

    def examples(self, feedback: Feedback) -> int:
        """Tokens of known beta: kept ones teach as much as escalated ones."""
        return int(feedback.known.sum())

    def loss(self, policy: Vector, feedback: Feedback) -> float:
        """Expected price of routing by a soft threshold."""
        escalation = soft_escalation(feedback.u, float(policy[0]), self.gamma)
        wrong = self.error_cost * feedback.weighted_beta
        return _reduce(self.transmission_cost * escalation + (1 - escalation) * wrong, self)

    def gradient(self, policy: Vector, feedback: Feedback) -> Vector:
        """``-gamma s (1 - s) (transmission_cost - error_cost w beta)`` reduced, float64 [1]."""
        escalation = soft_escalation(feedback.u, float(policy[0]), self.gamma)
        advantage = self.transmission_cost - self.error_cost * feedback.weighted_beta
        return np.array([_reduce(-self.gamma * escalation * (1 - escalation) * advantage, self)])


@dataclass(frozen=True)
class PrimalDualLearning:
    """Send as little as possible while the risk ``E[kept * beta]`` stays within ``budget``.

    Lagrangian ``L = mean_t s_t + mu (mean_t (1 - s_t) w_t beta_t - budget)``. The policy array is
    ``[threshold, mu]``: the dual variable travels and is averaged like the threshold, so any
    federated strategy carries both. The dual direction uses the risk measured at the hard
    threshold, not the soft one, because the budget is about what was really kept.

    Parameters
    ----------
    budget : float
        Largest share of tokens kept and wrong, in (0, 1).
    gamma : float
        Steepness of the sigmoid, > 0.
    dual_rate : float
        Step of mu relative to that of the threshold, > 0.
    largest_dual : float
        Upper bound of mu, > 0.
    """

    budget: float = 0.05
    gamma: float = 10.0
    dual_rate: float = 20.0
    largest_dual: float = 100.0

    def __post_init__(self) -> None:
        if not 0 < self.budget < 1:
            raise ValueError(f"budget must lie in (0, 1), got {self.budget}")
        _require_positive("gamma", self.gamma)
        _require_positive("dual_rate", self.dual_rate)
        _require_positive("largest_dual", self.largest_dual)

    @property
    def size(self) -> int:
        """Two numbers: threshold and dual variable."""
        return 2

    @property
    def bounds(self) -> tuple[Vector, Vector]:
        """Threshold in [0, 1], dual variable in [0, largest_dual]."""
        return np.zeros(2), np.array([1.0, self.largest_dual])

    def initial(self, threshold: float) -> Vector:
        """Policy float64 [2] with the dual variable at 1: a token's worth for a token's worth."""
        return np.array([threshold, min(1.0, self.largest_dual)], dtype=np.float64)

    def examples(self, feedback: Feedback) -> int:
        """Tokens of known beta."""
        return int(feedback.known.sum())

    def loss(self, policy: Vector, feedback: Feedback) -> float:
        """The Lagrangian at ``[threshold, mu]``; 0 without tokens."""
        if not len(feedback):
            return 0.0
        escalation = soft_escalation(feedback.u, float(policy[0]), self.gamma)
        risk = float(np.mean((1 - escalation) * feedback.weighted_beta))
        return float(np.mean(escalation)) + float(policy[1]) * (risk - self.budget)

    def gradient(self, policy: Vector, feedback: Feedback) -> Vector:
        """``[dL/dth, -dual_rate * (measured risk - budget)]``, float64 [2]."""
        if not len(feedback):
            return np.zeros(2)
        escalation = soft_escalation(feedback.u, float(policy[0]), self.gamma)
        advantage = 1 - float(policy[1]) * feedback.weighted_beta
        primal = float(np.mean(-self.gamma * escalation * (1 - escalation) * advantage))
        dual = self.dual_rate * (kept_risk(float(policy[0]), feedback) - self.budget)
        return np.array([primal, -dual])


def kept_risk(threshold: float, feedback: Feedback) -> float:
    """Estimate of E[1{u <= threshold} beta] over the tokens of ``feedback``; 0 without tokens."""
    if not len(feedback):
        return 0.0
    return float(np.mean((feedback.u <= threshold) * feedback.weighted_beta))


def soft_escalation(u: Vector, threshold: float, gamma: float) -> Vector:
    """``sigmoid(gamma (u - threshold))`` float64 [n], without overflow for any gamma."""
    # sigmoid(z) = (1 + tanh(z / 2)) / 2: tanh saturates where exp would overflow.
    return np.asarray(0.5 * (1 + np.tanh(0.5 * gamma * (u - threshold))), dtype=np.float64)


def _reduce(terms: Vector, learning: BalancedLearning) -> float:
    if not len(terms):
        return 0.0
    return float(terms.sum() if learning.reduction == "sum" else terms.mean())


def _require_positive(name: str, value: float) -> None:
    if not (np.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be finite and above 0, got {value}")


def _require_not_negative(name: str, value: float) -> None:
    if not (np.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be finite and not below 0, got {value}")


def _require_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
