"""Thresholds with a guarantee: risk curves, conformal risk control and Learn-then-Test.

Words
-----
loss of a token
    ``w * beta`` if the draft would be kept, 0 if not; ``w`` is 1, or ``1 / audit_rate`` where beta
    is known by audit, 0 where it is not known.
risk of a prompt
    ``R_i(th) = mean over the tokens t of prompt i of 1{u_t <= th} w_t beta_t``. It never falls
    as ``th`` rises and lies in ``[0, bound]``, ``bound = 1``, or ``1 / audit_rate`` with audits.
risk curve
    ``sum_i R_i(th)`` over prompts at every ``th`` of a fixed grid. Sums over clients are sums over
    their prompts, so the pooled curve is exact and fits secure aggregation.

What is guaranteed, and for whom
--------------------------------
The unit is the prompt, not the token: tokens of one prompt depend on each other. If calibration
prompts and a new prompt are exchangeable, :func:`conformal_threshold` gives
``E[R_new(th)] <= alpha``, the expectation running over calibration and new prompt together
(Angelopoulos et al., arXiv 2208.02814). If calibration prompts are independent draws,
:func:`learn_then_test` gives ``P(E[R_new(th) | th] <= alpha) >= 1 - delta`` (arXiv 2110.01052).
Pooled over clients, both speak about a prompt from the pooled mixture, each client weighing what
it has in the sample; how that is with clients that differ stands in :mod:`hlm.risk.control`. A
single client may lie above alpha. In free-running generation the text, and so beta, depends on
the threshold: there a candidate must be measured on text made with it, R need not be monotone, and
only Learn-then-Test applies (``prompts`` given per candidate). :mod:`hlm.risk.private` has both
under differential privacy.
"""

from __future__ import annotations

from hlm.risk.control import (
    ESCALATE_ALL,
    binomial_cdf,
    conformal_threshold,
    hoeffding_bentkus,
    learn_then_test,
    risk_bound,
)
from hlm.risk.curves import RiskSums, risk_sums, threshold_grid
from hlm.risk.private import (
    CurveRelease,
    NoisyCurve,
    private_conformal_threshold,
    private_learn_then_test,
)

__all__ = [
    "ESCALATE_ALL",
    "CurveRelease",
    "NoisyCurve",
    "RiskSums",
    "binomial_cdf",
    "conformal_threshold",
    "hoeffding_bentkus",
    "learn_then_test",
    "private_conformal_threshold",
    "private_learn_then_test",
    "risk_bound",
    "risk_sums",
    "threshold_grid",
]
