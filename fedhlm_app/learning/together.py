"""Gradient steps of many clients at once: each client's are those of `gradients.learn_locally`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from clients.learning.feedback import Feedback
from clients.learning.owners import Owners
from fedhlm_app.learning.gradients import step_size
from fedhlm_app.learning.rules import certifies, rule_of
from fedhlm_app.learning.rules.base import GradientRule
from fedhlm_app.settings import Settings
from hlm.arrays import FloatArray, IntArray
from hlm.local_steps import idle, local_steps


@dataclass(frozen=True)
class Steps:
    """What learning gave each of c clients in one round.

    Attributes
    ----------
    policies : float64 [c, d]
    steps : int64 [c]
        0 where there was nothing to learn from.
    examples : int64 [c]
        n_k of eq. 7.
    before, after : float64 [c]
        The rule's loss around the steps.
    arrays : dict of str to float64 [c, d]
        What the strategy's method needs beside the policy.
    """

    policies: FloatArray
    steps: IntArray
    examples: IntArray
    before: FloatArray
    after: FloatArray
    arrays: dict[str, FloatArray]


def learn_together(
    settings: Settings,
    server_round: int,
    policies: FloatArray,
    feedback: Feedback,
    owners: Owners,
    method: str,
    mu: float,
    arrays: Mapping[str, FloatArray],
) -> Steps:
    """Gradient steps (eq. 6) of every client on its own tokens.

    Parameters
    ----------
    settings : Settings
        Of the run; no router, and all tokens in one step (`local-batch` 0).
    server_round : int
        From 1.
    policies : numpy.ndarray
        float64 [c, d], where each client starts.
    feedback, owners : Feedback, Owners
        Tokens of the round, and whose they are.
    method, mu : str, float
        Local method and its pull, as messages tell them.
    arrays : mapping of str to numpy.ndarray
        What the method sends down, float64 [c, d].
    """
    rule, count = rule_of(settings), owners.count
    if settings.audit_rate == 0 and not rule.counts_unknown:
        feedback, owners = feedback.select(feedback.known), owners.select(feedback.known)
    zero, resting = np.zeros(count), idle(policies, method)
    examples = np.zeros(count, np.int64)
    if isinstance(rule, GradientRule) and not certifies(settings, server_round):
        examples = owners.select(rule.counts(feedback)).sizes
    learning = examples > 0
    if not isinstance(rule, GradientRule) or not learning.any():
        return Steps(policies, np.zeros(count, np.int64), examples, zero, zero, resting.arrays)
    before = rule.losses(policies, feedback, owners)
    moved = local_steps(
        policies,
        lambda at: rule.gradients(at, feedback, owners),
        settings.local_steps,
        step_size(settings, server_round),
        method,
        mu,
        arrays,
        rule.bounds,
    )
    after = rule.losses(moved.policy, feedback, owners)
    column = learning[:, None]
    return Steps(
        np.where(column, moved.policy, policies),
        np.where(learning, moved.steps, 0),
        examples,
        np.where(learning, before, 0.0),
        np.where(learning, after, 0.0),
        {name: np.where(column, moved.arrays[name], rest) for name, rest in resting.arrays.items()},
    )
