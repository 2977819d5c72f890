"""The rules that need sums instead of gradients: what clients sum, and what the server reads.

`docs/learning.md` says what each of them guarantees.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache, partial
from logging import WARNING
from typing import TYPE_CHECKING

import numpy as np
from flwr.common.logger import log

from clients.learning.feedback import Feedback
from clients.learning.sums import CertifiedLearning, LinearLearning
from clients.records import FloatArray
from hlm.line import DegenerateLineError, LineSums, UncertaintyLine
from hlm.private_line import LineRelease
from hlm.risk import (
    ESCALATE_ALL,
    CurveRelease,
    RiskSums,
    conformal_threshold,
    learn_then_test,
    private_conformal_threshold,
    private_learn_then_test,
    threshold_grid,
)
from hlm.risk.betting import FRACTIONS, log_terms, wealth_bounds
from hlm.risk.curves import UNIT
from strategies.calibration import Calibration, SequentialCalibration
from strategies.pooled import PooledCalibration, Unread

if TYPE_CHECKING:
    from fedhlm_app.settings import Settings

ONE_ROUND_RULES = ("linear", "certified", "certified-high-probability")
GRID_POINTS = 64
"""Thresholds of a risk curve; a reply carries a whole number for each."""

GRID = threshold_grid(GRID_POINTS)
CURVE, WEALTH, LINE = "risk-curve", "wealth", "line-sums"
_SLACK = 1e-6


def calibrates(settings: Settings) -> bool:
    """Whether the policy is set by sums."""
    learned = settings.policy in ("threshold", "u-hlm", "router")
    return learned and settings.learning in ONE_ROUND_RULES


def is_sequential(settings: Settings) -> bool:
    """Whether risk must be measured on text made at the candidate: free-running generation."""
    return settings.workload == "generate" and settings.learning.startswith("certified")


def loss_bound(settings: Settings) -> float:
    """Largest possible risk of one prompt: 1, or 1 / audit-rate when only audits tell."""
    return 1 / settings.audit_rate if settings.audit_rate > 0 else 1.0


def levels(settings: Settings) -> tuple[float, float]:
    """Alpha and delta at which candidates of the sequence are tested.

    `certified` promises an expected risk. P(risk > .8 alpha) <= .2 alpha gives it, since a risk
    is at most 1: E[risk] <= .8 alpha + .2 alpha.
    """
    if settings.learning == "certified":
        return 0.8 * settings.fidelity_budget, 0.2 * settings.fidelity_budget
    return settings.fidelity_budget, settings.confidence


def calibration_of(settings: Settings) -> Calibration:
    """The server's part of the rule of the settings."""
    if is_sequential(settings):
        return SequentialCalibration(GRID, *levels(settings), bound=loss_bound(settings))
    linear = settings.learning == "linear"
    metric, start = (LINE, settings.initial_threshold) if linear else (CURVE, ESCALATE_ALL)
    read = partial(_line_threshold if linear else _curve_threshold, settings)
    length = 6 if linear else 1 + GRID_POINTS
    release, noise = release_of(settings), None
    if release is not None:
        length = release.length
        if settings.privacy == "central":
            # Whoever knows the seed of noise can take it away: it is drawn, and kept nowhere.
            noise = partial(release.add_noise, generator=np.random.default_rng())
    unread = None if linear else _unread(settings)
    return PooledCalibration(
        metric, length, read, start, settings.calibration_rounds, noise, unread
    )


def _unread(settings: Settings) -> Unread:
    """What stands for a contribution of a client that did not answer: all prompts wrong."""
    prompts, bound = prompts_counted(settings), loss_bound(settings)
    worst = RiskSums(np.full(GRID_POINTS, prompts * bound), float(prompts))
    release = release_of(settings)
    vector = worst.as_vector()
    if isinstance(release, CurveRelease):
        vector = release.encode(worst.risk, worst.prompts)
    return Unread(vector, settings.fidelity_budget / bound)


def prompts_counted(settings: Settings) -> int:
    """Prompts a client counts in one round at most: a function of the settings alone."""
    each = 1 if settings.workload == "classify" else settings.tokens_per_prompt
    return max(1, settings.tokens_per_round // min(each, settings.tokens_per_round))


def release_of(settings: Settings) -> CurveRelease | LineRelease | None:
    """How sums are encoded and noised; None where they are sent as they are."""
    if settings.privacy == "none" or not calibrates(settings):
        return None
    bound = loss_bound(settings)
    if settings.learning == "linear":
        return LineRelease(settings.tokens_per_round * bound, settings.privacy_noise)
    return _curve_release(
        prompts_counted(settings), bound, settings.fidelity_budget, settings.privacy_noise
    )


@lru_cache(maxsize=8)
def _curve_release(prompts: int, bound: float, alpha: float, noise: float) -> CurveRelease:
    return CurveRelease(GRID_POINTS, prompts, bound, alpha, noise)


def reads_kept_tokens(settings: Settings) -> bool:
    """Whether kept tokens are sent for reading while the rule gathers sums."""
    return calibrates(settings) and settings.audit_rate == 0


def sums_of(
    settings: Settings, feedback: Feedback, generator: np.random.Generator | None = None
) -> dict[str, list[int] | list[float]]:
    """A client's list metrics, with noise where `privacy` is ``local``.

    Parameters
    ----------
    settings : Settings
        Of the run.
    feedback : Feedback
        Whole prompts that count, each once.
    generator : numpy.random.Generator, optional
        Of the noise, unknown to the server; by default seeded by the operating system.
    """
    release = release_of(settings)
    if settings.learning == "linear":
        vector = LinearLearning().sums(feedback)
    else:
        rule = CertifiedLearning(1 / loss_bound(settings))
        sums = rule.risk_sums(feedback, GRID)
        vector = sums.as_vector()
    if isinstance(release, LineRelease):
        vector = release.encode(LineSums.from_array(vector))
    elif release is not None:
        vector = release.encode(sums.risk, sums.prompts)
    if release is not None and settings.privacy == "local":
        vector = release.add_noise(vector, generator or np.random.default_rng())
    if settings.learning == "linear":
        return {LINE: vector.tolist()}
    # Whole numbers travel in as many bytes as they need.
    curve = vector.astype(np.int64) if release is None else vector
    metrics: dict[str, list[int] | list[float]] = {CURVE: curve.tolist()}
    if is_sequential(settings):
        metrics[WEALTH] = _wealth(settings, rule, feedback)
    return metrics


def problem_of(settings: Settings, sums: Mapping[str, FloatArray]) -> str:
    """What is impossible about one client's sums; empty when nothing is.

    No client speaks for more prompts than it was asked for, so lies within the bounds weigh no
    more than those of a client whose risk is 0, or the largest there is.
    """
    release = release_of(settings)
    if release is not None:
        metric = LINE if settings.learning == "linear" else CURVE
        found = release.problem(sums[metric], int(settings.privacy == "local"))
        return f"{metric!r}: {found}" if found else ""
    if settings.learning == "linear":
        count, u, beta, squares, product, below = sums[LINE]
        fine = 0 <= squares <= u + _SLACK and u <= count + _SLACK and 0 <= product <= u + _SLACK
        fine = fine and product <= beta + _SLACK and beta <= count + _SLACK
        fine = fine and count <= settings.tokens_per_round * loss_bound(settings) + _SLACK
        return "" if fine and 0 <= below <= count + _SLACK else f"{LINE!r} is no sum over tokens"
    try:
        curve = RiskSums.from_vector(sums[CURVE])
    except ValueError as error:
        return str(error)
    bound, most = loss_bound(settings), prompts_counted(settings)
    fine = curve.prompts <= most and curve.prompts == int(curve.prompts)
    if not fine or curve.risk[-1] > curve.prompts * bound + UNIT:
        return f"{CURVE!r} is no sum over at most {most} prompts, which is what was asked for"
    if WEALTH in sums:
        low, high = wealth_bounds(curve.prompts, levels(settings)[0], bound)
        if (sums[WEALTH] < low - _SLACK).any() or (sums[WEALTH] > high + _SLACK).any():
            return f"{WEALTH!r} is no sum over {curve.prompts:g} prompts"
    return ""


def _wealth(settings: Settings, rule: CertifiedLearning, rows: Feedback) -> list[float]:
    """Log-terms of the bets against the threshold that made the text.

    No threshold enters, so no grid's rounding does.
    """
    if not len(rows):
        return [0.0] * len(FRACTIONS)
    names, index = np.unique(rows.prompt, return_inverse=True)
    risk = np.bincount(index, rule.lost(rows), len(names)) / np.bincount(index)
    return [float(term) for term in log_terms(risk, levels(settings)[0], rule.bound)]


def _curve_threshold(settings: Settings, vector: FloatArray) -> float:
    alpha, bound = settings.fidelity_budget, loss_bound(settings)
    release = release_of(settings)
    if isinstance(release, CurveRelease):
        noisy = release.read(vector)
        if settings.learning == "certified":
            return private_conformal_threshold(noisy, GRID, alpha, bound)
        return private_learn_then_test(noisy, GRID, alpha, settings.confidence, bound)
    # Sums of many replies may fall below zero by rounding only.
    curve = RiskSums.from_vector(np.maximum(vector, 0.0))
    if settings.learning == "certified":
        return conformal_threshold(curve.risk, curve.prompts, GRID, alpha, bound)
    # A shrunk client has a fractional number of prompts; fewer is the careful reading.
    prompts = float(np.floor(curve.prompts))
    if prompts < 1:
        return ESCALATE_ALL
    return learn_then_test(curve.risk, prompts, GRID, alpha, settings.confidence, bound)


def _line_threshold(settings: Settings, vector: FloatArray) -> float:
    try:
        line = _line(settings, vector)
    except DegenerateLineError as error:
        # Too few tokens, none that tells, or too much noise: the threshold stays.
        log(WARNING, "no line yet, the threshold stays: %s", error)
        return settings.initial_threshold
    return line.risk_averse if settings.line_threshold == "risk-averse" else line.risk_prone


def _line(settings: Settings, vector: FloatArray) -> UncertaintyLine:
    release = release_of(settings)
    if isinstance(release, LineRelease):
        return release.fit(vector)
    return LineSums.from_array(vector).fit()


__all__ = [
    "GRID",
    "ONE_ROUND_RULES",
    "calibrates",
    "calibration_of",
    "is_sequential",
    "levels",
    "loss_bound",
    "problem_of",
    "prompts_counted",
    "reads_kept_tokens",
    "release_of",
    "sums_of",
]
