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

from clients.learning.feedback import Feedback
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
        every token should be known (free feedback, or everything verified). Below 1 kept tokens
        that no audit has drawn have weight 0, because their audited siblings carry weight
        ``1 / audit_rate``.

        A token that was to be measured and is not known (no answer from the server) counts as
        wrong, with its weight, which keeps the guarantee.
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
        """Loss of keeping each token, float64 [n] in [0, bound]: the one place that decides it.

        Raises
        ------
        ValueError
            If a known token's weight exceeds ``1 / audit_rate``: the bound, and with it the
            guarantee, would be wrong.
        """
        heaviest = float(feedback.weight.max(initial=0.0))
        if heaviest > self.bound * (1 + 1e-9):
            raise ValueError(
                f"a token has weight {heaviest}, more than 1 / audit_rate = {self.bound}"
            )
        return np.where(feedback.known, feedback.weighted_beta, feedback.weight)

    def lost(self, feedback: Feedback) -> Vector:
        """Loss that each token has brought to the text as it was made, float64 [n].

        Whether a token was kept decides, and no threshold: those of which nobody knows whether
        they are right, although they stand in the text, are lost at every threshold.
        """
        return np.where(feedback.kept, self.losses(feedback), 0.0)

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
        nobody_knows = feedback.kept & ~feedback.known
        u = np.where(nobody_knows, -np.inf, feedback.u)
        return risk_sums(u, self.losses(feedback), feedback.prompt, grid)
