"""What a run guarantees, and what it lacks where it guarantees nothing yet."""

from __future__ import annotations

import math
from typing import Any

from fedhlm_app.learning.rules import sums_rule
from fedhlm_app.learning.rules.certified import Certified
from fedhlm_app.settings import Settings
from strategies.calibrated import Calibrating


def guarantee(
    settings: Settings, calibrating: Calibrating | None, done: int
) -> dict[str, Any] | None:
    """The `guarantee` of `summary.json`; None for a rule that certifies nothing.

    ``budget`` is the risk allowed, ``sureness`` the probability that it is kept to (None: on
    average), ``rounds`` how many more there must be at least at these settings after the `done` so
    far, ``learned`` what gradients had learned by group before it was certified, and the rest is
    `strategies.shortfall.Shortfall`.
    """
    rule = sums_rule(settings)
    if calibrating is None or not isinstance(rule, Certified):
        return None
    lack = calibrating.shortfall()
    members = {"global": settings.clients, "cluster": settings.clients / settings.clusters}
    group = members.get(settings.personalisation, 1)
    waiting = max(0, settings.learn_rounds - done) if calibrating.waits else 0
    a_round = rule.prompts * group * rule.asked / settings.clients
    return {
        "budget": settings.fidelity_budget,
        "sureness": rule.sureness,
        "rounds": None if lack.lacking is None else waiting + math.ceil(lack.lacking / a_round),
        "learned": {str(group): value for group, value in calibrating.learned.items()},
        **vars(lack),
    }
