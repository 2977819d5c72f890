"""The learning rules by name. A new one is a module here, and a line in `RULES`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clients.policies import POLICIES
from fedhlm_app.learning.rules.balanced import Balanced
from fedhlm_app.learning.rules.base import LearningRule
from fedhlm_app.learning.rules.certified import Certified, CertifiedHighProbability
from fedhlm_app.learning.rules.linear import Linear
from fedhlm_app.learning.rules.paper import Paper
from fedhlm_app.learning.rules.primal_dual import PrimalDual
from fedhlm_app.learning.rules.sums import SumsRule

if TYPE_CHECKING:
    from fedhlm_app.settings import Settings

RULES: dict[str, type[LearningRule]] = {
    rule.name: rule
    for rule in (
        Paper,
        Balanced,
        PrimalDual,
        Linear,
        Certified,
        CertifiedHighProbability,
        LearningRule,
    )
}
GUARANTEE, GRADIENTS, LINE = CertifiedHighProbability.name, Balanced.name, Linear.name
"""What `learning` = ``auto`` stands for: by itself, where gradients are wanted, and for U-HLM."""


def named_rule(settings: Settings) -> LearningRule:
    """The rule that the settings name, whether or not their policy has anything to learn."""
    return RULES[settings.learning](settings)


def rule_of(settings: Settings) -> LearningRule:
    """The rule by which the policy of the settings learns; `none` where it cannot."""
    learned = POLICIES[settings.policy].learns
    return named_rule(settings) if learned else LearningRule(settings)


def sums_rule(settings: Settings) -> SumsRule | None:
    """That rule, if it sets thresholds by sums."""
    rule = rule_of(settings)
    return rule if isinstance(rule, SumsRule) else None
