"""Learning in one round: sums that leave a device once and fix a threshold for everybody.

* :class:`LinearLearning`: the six sums of U-HLM's line (arXiv 2412.12687).
* :class:`CertifiedLearning`: the risk curve on a grid of thresholds, from which the server takes
  a threshold by conformal risk control or Learn-then-Test (:mod:`hlm.risk`).

Both send sums over tokens or prompts, never a single token's value, so secure aggregation fits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from clients.feedback import Feedback
from hlm.line import LineSums
from hlm.risk import RiskSums, risk_sums

__all__ = ["CertifiedLearning", "LinearLearning", "OneRoundLearning"]

Vector = NDArray[np.float64]


class OneRoundLearning(Protocol):
    """A learning rule whose clients answer once, with sums that add up over clients."""

    def examples(self, feedback: Feedback) -> int:
        """Tokens the sums rest on."""
        ...

    def sums(self, feedback: Feedback, grid: Vector) -> Vector:
        """Flat float64 [m]; the sum over clients is what the server reads."""
        ...


@dataclass(frozen=True)
class LinearLearning:
    """Sums ``(n, Su, Sb, Suu, Sub, #{y_d < x_d})`` for the line ``beta = a u + b``.

    Parameters
    ----------
    beta : {"ratio", "loss"}
        Which value is regressed on u: eq. 3 on softmax values, as U-HLM does, or the loss of the
        decoding in use.
    """

    beta: Literal["ratio", "loss"] = "ratio"

    def __post_init__(self) -> None:
        if self.beta not in ("ratio", "loss"):
            raise ValueError(f"beta must be ratio or loss, got {self.beta!r}")

    def examples(self, feedback: Feedback) -> int:
        """Tokens of known beta."""
        return int(feedback.known.sum())

    def sums(self, feedback: Feedback, grid: Vector | None = None) -> Vector:
        """Flat float64 [6] in the order of :class:`hlm.line.LineSums`; no grid is needed.

        Weights enter every sum, the count included, so that audited tokens stand for the
        unaudited ones they were drawn from.
        """
        known = feedback.select(feedback.known)
        beta = known.ratio_beta if self.beta == "ratio" else known.beta
        weight = known.weight
        return LineSums(
            count=float(weight.sum()),
            uncertainty=float(weight @ known.u),
            rejection=float(weight @ beta),
            uncertainty_squared=float(weight @ known.u**2),
            product=float(weight @ (known.u * beta)),
            lower=float(weight @ known.below),
        ).to_array()


@dataclass(frozen=True)
class CertifiedLearning:
    """Per-prompt risk summed on a grid, for a threshold with a guarantee.

    Parameters
    ----------
    audit_rate : float
        Probability, in (0, 1], with which a kept token was verified anyway. 1 says that beta of
        every token should be known (free feedback, or everything verified); a token whose beta is
        unknown nevertheless (no answer from the server) then counts as wrong, which keeps the
        guarantee. Below 1 an unknown kept token counts 0, because its audited siblings carry
        weight ``1 / audit_rate``.
    """

    audit_rate: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.audit_rate <= 1:
            raise ValueError(f"audit_rate must lie in (0, 1], got {self.audit_rate}")

    @property
    def bound(self) -> float:
        """Largest possible risk of one prompt: the B of conformal risk control."""
        return 1.0 / self.audit_rate

    def examples(self, feedback: Feedback) -> int:
        """Tokens of known beta."""
        return int(feedback.known.sum())

    def losses(self, feedback: Feedback) -> Vector:
        """Loss of keeping each token, float64 [n] in [0, bound].

        Raises
        ------
        ValueError
            If a known token's weight exceeds ``1 / audit_rate``: the bound, and with it the
            guarantee, would be wrong.
        """
        heaviest = float(feedback.effective_weight.max(initial=0.0))
        if heaviest > self.bound * (1 + 1e-9):
            raise ValueError(
                f"a token has weight {heaviest}, more than 1 / audit_rate = {self.bound}"
            )
        if self.audit_rate == 1:
            return np.where(feedback.known, feedback.weighted_beta, 1.0)
        # An escalated token is verified for sure; if the answer is missing nothing else stands
        # for it, so it counts as wrong here too.
        unanswered = ~feedback.known & ~feedback.kept
        return np.where(unanswered, 1.0, feedback.weighted_beta)

    def sums(self, feedback: Feedback, grid: Vector) -> Vector:
        """Flat float64 [1 + G], see :meth:`hlm.risk.RiskSums.as_vector`.

        Parameters
        ----------
        feedback : Feedback
            Whole prompts: the mean over the tokens of a prompt is its risk.
        grid : float64 [G]
            Ascending thresholds, the same for all clients.
        """
        return self.risk_sums(feedback, grid).as_vector()

    def risk_sums(self, feedback: Feedback, grid: Vector) -> RiskSums:
        """:meth:`sums` with names."""
        return risk_sums(feedback.u, self.losses(feedback), feedback.prompt, grid)
