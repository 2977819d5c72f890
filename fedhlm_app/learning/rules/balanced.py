"""The price of a transmission against the price of a wrong kept token."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedhlm_app.learning.rules.base import GradientRule
from hlm.arrays import FloatArray

if TYPE_CHECKING:
    from clients.learning.feedback import Feedback
    from clients.learning.owners import Owners


class Balanced(GradientRule):
    """Both prices over all tokens of the round; best where ``E[beta | u = th]`` is their ratio.

    ``loss = reduce_t [s_t * cost_transmit + (1 - s_t) * cost_error * w_t * beta_t]`` with ``w_t``
    the inverse-probability weight (0 where beta is unknown), which keeps loss and gradient
    unbiased whether beta comes from free feedback or from audits.
    """

    name = "balanced"
    steps = (0.1, 0.1)

    def losses(self, policies: FloatArray, feedback: Feedback, owners: Owners) -> FloatArray:
        """Expected price of routing by a soft threshold."""
        escalation = self._escalation(owners.spread(policies[:, 0]), feedback)
        wrong = self.settings.cost_error * feedback.weighted_beta
        terms = self.settings.cost_transmit * escalation + (1 - escalation) * wrong
        return self._reduced(terms, owners)

    def gradients(self, policies: FloatArray, feedback: Feedback, owners: Owners) -> FloatArray:
        """``-gamma s (1 - s) (cost_transmit - cost_error w beta)``, reduced."""
        wrong = self.settings.cost_error * feedback.weighted_beta
        slope = self._slope(self._escalation(owners.spread(policies[:, 0]), feedback))
        return self._reduced(slope * (self.settings.cost_transmit - wrong), owners)[:, None]
