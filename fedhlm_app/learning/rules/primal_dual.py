"""Least transmission while the risk of kept tokens stays within a budget."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fedhlm_app.learning.rules.base import GradientRule
from hlm.arrays import FloatArray

if TYPE_CHECKING:
    from clients.learning.feedback import Feedback
    from clients.learning.owners import Owners

FIRST_DUAL = 4.0
"""First price of a wrong token, in transmissions: where errors are cheap at first, the threshold
may rise until nothing is escalated, and then nobody is left to tell of an error."""
LARGEST_DUAL = 100.0
DUAL_RATE = 20.0
"""Step of the dual variable over that of the threshold."""


class PrimalDual(GradientRule):
    """Send as little as possible while ``E[kept * beta] <= fidelity-budget``.

    Lagrangian ``L = mean_t s_t + mu (mean_t (1 - s_t) w_t beta_t - budget)``. The dual variable mu
    travels and is averaged like the threshold, so any federated strategy carries both. Its
    direction uses the risk measured at the hard threshold, not the soft one, because the budget is
    about what was really kept.
    """

    name = "primal-dual"
    sets_router = False
    steps = (0.5, 0.2)

    def initial(self) -> dict[str, FloatArray]:
        """Threshold and dual variable."""
        return {**super().initial(), "dual": np.array([FIRST_DUAL])}

    @property
    def bounds(self) -> tuple[FloatArray, FloatArray]:
        """Threshold in [0, 1], dual variable in [0, `LARGEST_DUAL`]."""
        return np.zeros(2), np.array([1.0, LARGEST_DUAL])

    def losses(self, policies: FloatArray, feedback: Feedback, owners: Owners) -> FloatArray:
        """The Lagrangian at each ``[threshold, mu]``; 0 without tokens."""
        escalation = self._escalation(owners.spread(policies[:, 0]), feedback)
        risk = owners.mean((1 - escalation) * feedback.weighted_beta)
        price = policies[:, 1] * (risk - self.settings.fidelity_budget)
        return np.where(owners.sizes > 0, owners.mean(escalation) + price, 0.0)

    def gradients(self, policies: FloatArray, feedback: Feedback, owners: Owners) -> FloatArray:
        """``[dL/dth, -DUAL_RATE * (measured risk - budget)]`` of each; zero without tokens."""
        threshold, dual = (owners.spread(column) for column in policies.T)
        slope = self._slope(self._escalation(threshold, feedback))
        primal = owners.mean(slope * (1 - dual * feedback.weighted_beta))
        kept = owners.mean((feedback.u <= threshold) * feedback.weighted_beta)
        prices = -DUAL_RATE * (kept - self.settings.fidelity_budget)
        both = np.stack([primal, prices], axis=1)
        return np.where(owners.sizes[:, None] > 0, both, 0.0)
