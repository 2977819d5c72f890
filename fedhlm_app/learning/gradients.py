"""One client's gradient steps, and the policy they start from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import cast

import numpy as np

from clients.learning.feedback import Feedback
from clients.learning.minibatches import minibatch_gradient
from clients.learning.router_model import adam_steps
from fedhlm_app.learning.router import (
    RouterRule,
    escalates_all,
    router_model,
    router_rule,
    trains_router,
)
from fedhlm_app.learning.rules import RULES, certifier, certifies, rule_of
from fedhlm_app.learning.rules.base import GradientRule
from fedhlm_app.settings import Settings
from hlm.arrays import FloatArray, joined, parted
from hlm.local_steps import LOCAL_METHODS, LocalResult, idle, local_steps
from hlm.privacy import private_update
from hlm.risk import ESCALATE_ALL

ROUTER_STEP_SIZES = {"sgd": 0.05, "adam": 0.01}
"""First step of a router by optimizer, where the settings leave it to that."""


def loss_of(settings: Settings, server_round: int) -> GradientRule | RouterRule | None:
    """What a client descends in a round (from 1); None where it takes no gradient steps."""
    rule = rule_of(settings)
    threshold = rule if isinstance(rule, GradientRule) else None
    if settings.policy != "router":
        return None if certifies(settings, server_round) else threshold
    if not trains_router(settings, server_round):
        return None
    waits = escalates_all(settings, server_round)
    return router_rule(settings, None if waits else threshold)


def initial_policy(settings: Settings) -> dict[str, FloatArray]:
    """What is learned, before the first round: float64 arrays by name."""
    arrays = rule_of(settings).initial()
    if settings.policy == "router":
        arrays["router"] = router_model(settings).initial()
    return arrays


def policy_bounds(settings: Settings) -> tuple[FloatArray, FloatArray]:
    """Smallest and largest entries of the arrays that a client may send, joined: float64 [d]."""
    first, rule = joined(initial_policy(settings)), rule_of(settings)
    low, high = first.copy(), first.copy()
    if settings.policy == "router" and rule.learns:
        low, high = router_rule(settings, None).bounds
    own = len(rule.bounds[0])
    low[:own], high[:own] = rule.bounds
    if certifier(settings) is not None:
        low[0] = ESCALATE_ALL  # until something is certified
    # An initial threshold below 0 means "escalate everything"; it is no error to start there.
    return np.minimum(low, first), np.maximum(high, first)


def step_size(settings: Settings, server_round: int) -> float:
    """Step size of a round, from 1."""
    if settings.policy == "router":
        rate = settings.router_learning_rate or ROUTER_STEP_SIZES[settings.router_optimizer]
        return rate / (1 + settings.router_learning_rate_decay * (server_round - 1))
    first, decay = settings.learning_rate, settings.learning_rate_decay
    if first == 0:
        first, decay = RULES[settings.learning].steps
    return first / (1 + decay * (server_round - 1))


def own_step_sizes(settings: Settings) -> dict[str, float]:
    """What settings of 0 stand for, by kebab-case key: the first step of a rule, an optimizer."""
    found = {}
    first, decay = RULES[settings.learning].steps
    if settings.learning_rate == 0 and first:
        found = {"learning-rate": first, "learning-rate-decay": decay}
    if settings.policy == "router" and settings.router_learning_rate == 0:
        found["router-learning-rate"] = ROUTER_STEP_SIZES[settings.router_optimizer]
    return found


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
    arrays: Mapping[str, FloatArray],
) -> LocalStep:
    """Gradient steps on one client's feedback (eq. 6), as the strategy's method wants them.

    Parameters
    ----------
    settings : Settings
        Of the run.
    policy : numpy.ndarray
        float64 [d], where the client starts: its arrays joined.
    feedback : Feedback
        The round's tokens.
    config : mapping
        The message's ConfigRecord: ``round``, ``local-method``, ``proximal-mu``.
    arrays : mapping of str to numpy.ndarray
        Those of the message, of which the method takes its own: float64 [d].

    Returns
    -------
    LocalStep
        Unchanged parameters with 0 examples when there is nothing to learn from.
    """
    server_round = int(cast(int, config["round"]))
    rule = loss_of(settings, server_round)
    if settings.audit_rate == 0 and not rule_of(settings).counts_unknown:
        feedback = feedback.select(feedback.known)
    method = str(config.get("local-method", "fedavg"))
    examples = 0 if rule is None else rule.examples(feedback)
    if rule is None or examples == 0:
        return LocalStep(idle(policy, method), 0, 0.0, 0.0)
    rate = step_size(settings, server_round)
    before = rule.loss(policy, feedback)
    steps = settings.router_steps if settings.policy == "router" else settings.local_steps
    mu = float(cast(float, config.get("proximal-mu", 0.0)))
    gradient: Callable[[FloatArray], FloatArray] = partial(rule.gradient, feedback=feedback)
    if 0 < settings.local_batch < len(feedback):
        shuffle = np.random.default_rng([settings.seed, server_round])
        gradient = minibatch_gradient(rule, feedback, settings.local_batch, shuffle)
        steps *= -(-len(feedback) // settings.local_batch)
    if settings.router_optimizer == "adam" and escalates_all(settings, server_round):
        direction = LOCAL_METHODS[method].direction
        moved = adam_steps(
            policy, lambda at: direction(gradient(at), at - policy, mu, {}), steps, rate
        )
        result = LocalResult(np.clip(moved, *rule.bounds), steps)
    else:
        result = local_steps(policy, gradient, steps, rate, method, mu, arrays, rule.bounds)
    return LocalStep(result, examples, before, rule.loss(result.policy, feedback))


def private_policy(
    settings: Settings,
    policy: FloatArray,
    start: FloatArray,
    server_round: int,
    generator: np.random.Generator,
) -> FloatArray:
    """The policy as it may leave the client: with noise where `privacy` is ``local``, float64 [d].

    Parameters
    ----------
    settings : Settings
        Of the run.
    policy, start : numpy.ndarray
        float64 [d], what was learned, and what the client was sent.
    server_round : int
        From 1: what no gradient has moved in it is sent as it came.
    generator : numpy.random.Generator
        Unknown to the server.
    """
    if settings.privacy != "local" or loss_of(settings, server_round) is None:
        return policy
    noisy = private_update(policy, start, settings.privacy_clip, settings.privacy_noise, generator)
    if not isinstance(rule_of(settings), GradientRule):
        # A certified router's threshold is set by sums: held until then, it tells nothing.
        first = initial_policy(settings)
        parted(noisy, first)["threshold"][:] = parted(start, first)["threshold"]
    return np.clip(noisy, *policy_bounds(settings))
