"""The price of a transmission against the price of a wrong kept token."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fedhlm_app.learning.rules.base import GradientRule
from hlm.arrays import FloatArray

if TYPE_CHECKING:
    from clients.learning.feedback import Feedback


class Balanced(GradientRule):
    """Both prices over all tokens of the round; best where ``E[beta | u = th]`` is their ratio.

    ``loss = reduce_t [s_t * cost_transmit + (1 - s_t) * cost_error * w_t * beta_t]`` with ``w_t``
    the inverse-probability weight (0 where beta is unknown), which keeps loss and gradient
    unbiased whether beta comes from free feedback or from audits.
    """

    name = "balanced"
    steps = (0.1, 0.1)

    def loss(self, policy: FloatArray, feedback: Feedback) -> float:
        """Expected price of routing by a soft threshold."""
        (threshold,) = policy
        escalation = self._escalation(threshold, feedback)
        wrong = self.settings.cost_error * feedback.weighted_beta
        return self._reduced(self.settings.cost_transmit * escalation + (1 - escalation) * wrong)

    def gradient(self, policy: FloatArray, feedback: Feedback) -> FloatArray:
        """``-gamma s (1 - s) (cost_transmit - cost_error w beta)``, reduced."""
        wrong = self.settings.cost_error * feedback.weighted_beta
        (threshold,) = policy
        slope = self._slope(self._escalation(threshold, feedback))
        return np.array([self._reduced(slope * (self.settings.cost_transmit - wrong))])
