"""The learning rules by name. A new one is a module here, and a line in `RULES`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clients.policies import POLICIES
from fedhlm_app.learning.rules.balanced import Balanced
from fedhlm_app.learning.rules.base import GradientRule, LearningRule
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
BUDGETED = PrimalDual.name
"""What it stands for where what gradients learn will be certified: it learns towards the budget."""


def named_rule(settings: Settings) -> LearningRule:
    """The rule that the settings name, whether or not their policy has anything to learn."""
    return RULES[settings.learning](settings)


def rule_of(settings: Settings) -> LearningRule:
    """The rule by which the policy of the settings learns; `none` where it cannot."""
    learned = POLICIES[settings.policy].learns
    return named_rule(settings) if learned else LearningRule(settings)


def sums_rule(settings: Settings) -> SumsRule | None:
    """The rule that sets thresholds by sums: that one, or the one that certifies what it learns."""
    rule = rule_of(settings)
    return rule if isinstance(rule, SumsRule) else certifier(settings)


def certifies(settings: Settings, server_round: int) -> bool:
    """Whether a round (from 1) certifies what the rounds before it have learned."""
    return certifier(settings) is not None and server_round > settings.learn_rounds


def reads_kept(settings: Settings, server_round: int, calibrate: bool) -> bool:
    """Whether the LLM reads a round's kept tokens for the device to learn from.

    It does while sums are gathered, and while something is learned that will be certified: which
    tokens free feedback tells of depends on what came later, and with caches there is little of it.
    """
    rule = sums_rule(settings)
    learning = certifier(settings) is not None and server_round <= settings.learn_rounds
    return rule is not None and rule.reads_kept_tokens and (calibrate or learning)


def certifier(settings: Settings) -> Certified | None:
    """The rule by which thresholds learned by gradients are certified after `learn-rounds`.

    None where they are not, and for a router, whose threshold certified rules set by themselves.
    """
    learned = settings.policy == "threshold" and isinstance(rule_of(settings), GradientRule)
    return CertifiedHighProbability(settings) if learned and settings.learn_rounds else None
