"""FedHLM's own rule: eq. 4 to 6 of arXiv 2507.00082."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fedhlm_app.learning.rules.base import GradientRule
from hlm.arrays import BoolArray, FloatArray

if TYPE_CHECKING:
    from clients.learning.feedback import Feedback
    from clients.learning.owners import Owners


class Paper(GradientRule):
    """The loss on the tokens that left the device, with eq. 3's value on softmax values as beta.

    Its gradient is strictly negative for ``lambda > 0``, so plain descent only ever raises the
    threshold; beta merely sets the speed. It is here to reproduce the paper. The paper names no
    value of lambda (`transmission-penalty`): its Fig. 5 (beta = .2, a loss of about .65 where
    s = 1) gives .65 - .8**2 = .01. Eq. 4 is a literal sum: 600 tokens at eta = .01 move a threshold
    from .30 past 1 in one round; `reduction` = ``mean`` is the usable reading.

    The paper asks for steps whose sum diverges and whose sum of squares does not, and names no
    number. .02 / (1 + r) is such a sequence, and from .50 it ends near the paper's Fig. 4.
    """

    name = "paper"
    counts_unknown = True
    needs_ratio = True
    steps = (0.02, 1.0)

    def counts(self, feedback: Feedback) -> BoolArray:
        """All tokens that left the device (Algorithm 1, line 23 counts peer-resolved ones too)."""
        return np.asarray(~feedback.kept)

    def losses(self, policies: FloatArray, feedback: Feedback, owners: Owners) -> FloatArray:
        """Eq. 4: ``sum_t s_t ((1 - beta_t)^2 + lambda)``."""
        escalation, cost, sent = self._terms(policies, feedback, owners)
        return self._reduced(escalation * cost, sent)

    def gradients(self, policies: FloatArray, feedback: Feedback, owners: Owners) -> FloatArray:
        """Eq. 5: ``-gamma sum_t s_t (1 - s_t) ((1 - beta_t)^2 + lambda)``."""
        escalation, cost, sent = self._terms(policies, feedback, owners)
        return self._reduced(self._slope(escalation) * cost, sent)[:, None]

    def _terms(
        self, policies: FloatArray, feedback: Feedback, owners: Owners
    ) -> tuple[FloatArray, FloatArray, Owners]:
        # "This value is undefined for tokens not transmitted and is excluded from training."
        told = feedback.known & ~feedback.kept
        sent, owners = feedback.select(told), owners.select(told)
        cost = (1 - sent.ratio_beta) ** 2 + self.settings.transmission_penalty
        return self._escalation(owners.spread(policies[:, 0]), sent), cost, owners
