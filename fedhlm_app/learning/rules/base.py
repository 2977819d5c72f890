"""What every learning rule answers, and what those answer that learn by gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from clients.learning.owners import Owners
from hlm.arrays import BoolArray, FloatArray

if TYPE_CHECKING:
    from clients.learning.feedback import Feedback
    from fedhlm_app.settings import Settings
    from strategies.options import StrategyOptions


class LearningRule:
    """One rule in one run: where thresholds start, how they move, which settings it goes with.

    This one is ``none``: thresholds stay where they start. The settings read all rules before
    anything else is loaded, so what needs PyTorch or Flower is imported inside methods.

    Parameters
    ----------
    settings : Settings
        Of the run.
    """

    name: ClassVar[str] = "none"
    learns: ClassVar[bool] = False
    sets_router: ClassVar[bool] = True
    """Whether the threshold of a router may be left to it."""
    counts_unknown: ClassVar[bool] = False
    """Whether tokens of unknown beta count without audits; where they do not, nobody stands for
    them, and as if right they would only raise thresholds."""
    needs_ratio: ClassVar[bool] = False
    """Whether it learns from eq. 3's value, which takes the LLM's probability of every draft."""
    steps: ClassVar[tuple[float, float]] = (0.0, 0.0)
    """First step and its decay, where the settings leave them to the rule; our choices."""
    covers: ClassVar[str] = "policy"
    """What leaves a device, as a report on privacy names it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def initial(self) -> dict[str, FloatArray]:
        """What is learned, before the first round: float64 arrays by name."""
        return {"threshold": np.array([self.settings.initial_threshold])}

    @property
    def bounds(self) -> tuple[FloatArray, FloatArray]:
        """Smallest and largest value of each entry of `initial`'s arrays, end to end."""
        return np.array([-1.0]), np.array([1.0])

    def conflicts(self) -> list[str]:
        """One sentence for each setting that it cannot stand beside."""
        return []

    def strategy_options(self) -> StrategyOptions:
        """What the strategy of the server has to know."""
        settings = self.settings
        return {
            "personalisation": settings.personalisation,
            "shrink_weight": settings.shrinkage,
        }


class GradientRule(LearningRule):
    """A rule with a loss: clients take gradient steps, policies are averaged.

    A subclass has `losses` and `gradients`.

    All are differentiable through the soft escalation ``s = sigmoid(gamma * (u - th))`` of FedHLM
    (arXiv 2507.00082, section IV-C). Descent itself (eq. 6) is `hlm.local_steps`, the same for
    every strategy. `policy` below is what `initial` names, end to end: float64 [d].
    """

    learns = True

    @property
    def bounds(self) -> tuple[FloatArray, FloatArray]:
        """Thresholds live in [0, 1]."""
        return np.zeros(1), np.ones(1)

    def counts(self, feedback: Feedback) -> BoolArray:
        """Tokens the update rests on, n_k of eq. 7: those of known beta, kept or escalated."""
        return np.asarray(feedback.known)

    def examples(self, feedback: Feedback) -> int:
        """How many those are."""
        return int(self.counts(feedback).sum())

    def loss(self, policy: FloatArray, feedback: Feedback) -> float:
        """Local loss; 0 without tokens."""
        return float(self.losses(policy[None], feedback, Owners.one(len(feedback)))[0])

    def gradient(self, policy: FloatArray, feedback: Feedback) -> FloatArray:
        """Direction float64 [d] that local descent subtracts; zero without tokens."""
        return np.asarray(self.gradients(policy[None], feedback, Owners.one(len(feedback)))[0])

    def losses(self, policies: FloatArray, feedback: Feedback, owners: Owners) -> FloatArray:
        """Loss float64 [c] of each of c clients at its own policy (float64 [c, d])."""
        raise NotImplementedError

    def gradients(self, policies: FloatArray, feedback: Feedback, owners: Owners) -> FloatArray:
        """Direction float64 [c, d] of each of c clients at its own policy (float64 [c, d])."""
        raise NotImplementedError

    def _escalation(self, thresholds: FloatArray, feedback: Feedback) -> FloatArray:
        """``s`` of each token at its own threshold, float64 [n], without overflow for any gamma."""
        # sigmoid(z) = (1 + tanh(z / 2)) / 2: tanh saturates where exp would overflow.
        half = 0.5 * self.settings.gamma * (feedback.u - thresholds)
        return np.asarray(0.5 * (1 + np.tanh(half)), dtype=np.float64)

    def _slope(self, escalation: FloatArray) -> FloatArray:
        """``ds / dth`` of each token, float64 [n]."""
        return -self.settings.gamma * escalation * (1 - escalation)

    def _reduced(self, terms: FloatArray, owners: Owners) -> FloatArray:
        """Each client's terms as one number, float64 [c]."""
        return owners.total(terms) if self.settings.reduction == "sum" else owners.mean(terms)
