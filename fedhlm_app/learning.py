"""The learning rule of the settings, and one client's step with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np

from clients.feedback import Feedback
from clients.records import FloatArray
from clients.threshold import (
    BalancedLearning,
    PaperLearning,
    PrimalDualLearning,
    ThresholdLearning,
)
from fedhlm_app.settings import Settings
from hlm.local_steps import LocalResult, Method, local_steps

GRADIENT_RULES = ("paper", "balanced", "primal-dual")
ONE_ROUND_RULES = ("linear", "certified", "certified-high-probability")


def learns(settings: Settings) -> bool:
    """Whether the policy has anything to learn."""
    learned = settings.policy in ("threshold", "u-hlm", "router")
    return learned and settings.learning != "none"


def rule_of(settings: Settings) -> ThresholdLearning | None:
    """The gradient rule of the settings; None where nothing is learned by gradients."""
    if not learns(settings):
        return None
    if settings.learning == "paper":
        return PaperLearning(settings.gamma, settings.transmission_penalty, settings.reduction)
    if settings.learning == "balanced":
        return BalancedLearning(
            settings.gamma, settings.cost_transmit, settings.cost_error, settings.reduction
        )
    if settings.learning == "primal-dual":
        return PrimalDualLearning(settings.fidelity_budget, settings.gamma)
    return None


def initial_policy(settings: Settings) -> FloatArray:
    """Policy parameters before the first round, float64 [d]."""
    rule = rule_of(settings)
    if rule is None:
        return np.array([settings.initial_threshold])
    return rule.initial(settings.initial_threshold)


def policy_bounds(settings: Settings) -> tuple[FloatArray, FloatArray]:
    """Smallest and largest parameters a client may send, float64 [d] each."""
    rule = rule_of(settings)
    if rule is None:
        return np.full(1, -1.0), np.full(1, 1.0)
    low, high = rule.bounds
    # An initial threshold below 0 means "escalate everything"; it is no error to start there.
    return np.minimum(low, initial_policy(settings)), np.maximum(high, initial_policy(settings))


@dataclass(frozen=True)
class LocalStep:
    """What a client's learning gave in one round.

    Attributes
    ----------
    result : LocalResult
        New parameters, and what the strategy's method needs.
    examples : int
        n_k of eq. 7.
    loss_before, loss_after : float
        The rule's loss around the steps.
    """

    result: LocalResult
    examples: int
    loss_before: float
    loss_after: float


def learn_locally(
    settings: Settings,
    policy: FloatArray,
    feedback: Feedback,
    config: Mapping[str, object],
    server_control: FloatArray | None,
    client_control: FloatArray | None,
) -> LocalStep:
    """Gradient steps on one client's feedback (eq. 6), as the strategy's method wants them.

    Parameters
    ----------
    settings : Settings
        Of the run.
    policy : numpy.ndarray
        float64 [d], where the client starts.
    feedback : Feedback
        The round's tokens.
    config : mapping
        The message's ConfigRecord: ``round``, ``local-method``, ``proximal-mu``.
    server_control, client_control : numpy.ndarray or None
        SCAFFOLD's variates, float64 [d].

    Returns
    -------
    LocalStep
        Unchanged parameters with 0 examples when there is nothing to learn from.
    """
    rule = rule_of(settings)
    examples = 0 if rule is None else rule.examples(feedback)
    if rule is None or examples == 0:
        zero = np.zeros_like(policy)
        return LocalStep(LocalResult(policy.copy(), zero, 0, zero, client_control), 0, 0.0, 0.0)
    server_round = int(cast(int, config["round"]))
    rate = settings.learning_rate / (1 + settings.learning_rate_decay * (server_round - 1))
    before = rule.loss(policy, feedback)
    result = local_steps(
        policy,
        lambda at: rule.gradient(at, feedback),
        settings.local_steps,
        rate,
        method=cast(Method, config.get("local-method", "fedavg")),
        anchor=policy,
        mu=float(cast(float, config.get("proximal-mu", 0.0))),
        server_control=server_control,
        client_control=client_control,
        clip=rule.bounds,
    )
    return LocalStep(result, examples, before, rule.loss(result.policy, feedback))
