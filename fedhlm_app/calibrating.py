"""The rules that need sums instead of gradients: what clients sum, and what the server reads.

`docs/learning.md` says what each of them guarantees.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from clients.feedback import Feedback
from clients.records import FloatArray
from clients.sums import CertifiedLearning, LinearLearning
from hlm.betting import FRACTIONS, log_terms, wealth_bounds
from hlm.line import DegenerateLineError, LineSums
from hlm.risk import (
    ESCALATE_ALL,
    RiskSums,
    conformal_threshold,
    learn_then_test,
    risk_at,
    threshold_grid,
)
from strategies.calibration import Calibration, PooledCalibration, SequentialCalibration

if TYPE_CHECKING:
    from fedhlm_app.settings import Settings

ONE_ROUND_RULES = ("linear", "certified", "certified-high-probability")
GRID_POINTS = 64
"""Thresholds of a risk curve; a reply carries two numbers for each."""

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
        return SequentialCalibration(GRID, *levels(settings))
    rounds = settings.calibration_rounds
    if settings.learning == "linear":
        read = partial(_line_threshold, settings.line_threshold, settings.initial_threshold)
        return PooledCalibration(LINE, 6, read, settings.initial_threshold, rounds)
    read = partial(_curve_threshold, settings)
    return PooledCalibration(CURVE, 1 + 2 * GRID_POINTS, read, ESCALATE_ALL, rounds)


def reads_kept_tokens(settings: Settings) -> bool:
    """Whether kept tokens are sent for reading while the rule gathers sums."""
    return calibrates(settings) and settings.audit_rate == 0


def sums_of(settings: Settings, feedback: Feedback) -> dict[str, list[float]]:
    """A client's list metrics.

    Parameters
    ----------
    settings : Settings
        Of the run.
    feedback : Feedback
        Whole prompts that count, each once.
    """
    if settings.learning == "linear":
        return {LINE: LinearLearning().sums(feedback).tolist()}
    rule = CertifiedLearning(1 / loss_bound(settings))
    sums = rule.risk_sums(feedback, GRID)
    metrics = {CURVE: sums.as_vector().tolist()}
    if is_sequential(settings):
        metrics[WEALTH] = _wealth(settings, rule, feedback)
    return metrics


def problem_of(settings: Settings, sums: Mapping[str, FloatArray]) -> str:
    """What is impossible about one client's sums; empty when nothing is.

    A lie within these bounds is still possible: curves are not robust against one.
    """
    if settings.learning == "linear":
        count, u, beta, squares, product, below = sums[LINE]
        fine = 0 <= squares <= u + _SLACK and u <= count + _SLACK and 0 <= product <= u + _SLACK
        fine = fine and product <= beta + _SLACK and beta <= count + _SLACK
        return "" if fine and 0 <= below <= count + _SLACK else f"{LINE!r} is no sum over tokens"
    try:
        curve = RiskSums.from_vector(sums[CURVE])
    except ValueError as error:
        return str(error)
    bound, most = loss_bound(settings), settings.tokens_per_round
    rising = (np.diff(curve.risk) >= -_SLACK).all() and (np.diff(curve.kept) >= -_SLACK).all()
    inside = curve.risk[-1] <= curve.prompts * bound + _SLACK
    inside = inside and curve.kept[-1] <= curve.prompts + _SLACK and curve.prompts <= most
    if not (rising and inside):
        return f"{CURVE!r} is no sum over at most {most} prompts"
    if WEALTH in sums:
        low, high = wealth_bounds(curve.prompts, levels(settings)[0], bound)
        if (sums[WEALTH] < low - _SLACK).any() or (sums[WEALTH] > high + _SLACK).any():
            return f"{WEALTH!r} is no sum over {curve.prompts:g} prompts"
    return ""


def risk_of(threshold: float, feedback: Feedback, bound: float = 1.0) -> float:
    """Mean risk over the prompts of `feedback` at `threshold`; 0 without prompts."""
    sums = CertifiedLearning(1 / bound).risk_sums(feedback, GRID)
    if not sums.prompts:
        return 0.0
    value = risk_at(sums.risk[None], GRID, np.array([threshold]))[0]
    return float(value / sums.prompts)


def _wealth(settings: Settings, rule: CertifiedLearning, rows: Feedback) -> list[float]:
    """Log-terms of the bets against the threshold that made the text.

    Kept tokens are those the policy kept: no threshold enters, so no grid's rounding does.
    """
    if not len(rows):
        return [0.0] * len(FRACTIONS)
    names, index = np.unique(rows.prompt, return_inverse=True)
    lost = np.where(rows.kept, rule.losses(rows), 0.0)
    risk = np.bincount(index, lost, len(names)) / np.bincount(index, minlength=len(names))
    return [float(term) for term in log_terms(risk, levels(settings)[0], rule.bound)]


def _curve_threshold(settings: Settings, vector: FloatArray) -> float:
    # Sums of many replies may fall below zero by rounding only; noise is not added to curves.
    curve = RiskSums.from_vector(np.maximum(vector, 0.0))
    alpha, bound = settings.fidelity_budget, loss_bound(settings)
    if settings.learning == "certified":
        return conformal_threshold(curve.risk, curve.prompts, GRID, alpha, bound)
    # A shrunk client has a fractional number of prompts; fewer is the careful reading.
    prompts = float(np.floor(curve.prompts))
    if prompts < 1:
        return ESCALATE_ALL
    return learn_then_test(curve.risk, prompts, GRID, alpha, settings.confidence, bound)


def _line_threshold(side: str, fallback: float, vector: FloatArray) -> float:
    try:
        line = LineSums.from_array(vector).fit()
    except DegenerateLineError:
        # Too few tokens, or none that tells: the threshold stays.
        return fallback
    return line.risk_averse if side == "risk-averse" else line.risk_prone


__all__ = [
    "GRID",
    "ONE_ROUND_RULES",
    "calibrates",
    "calibration_of",
    "is_sequential",
    "levels",
    "loss_bound",
    "problem_of",
    "reads_kept_tokens",
    "risk_of",
    "sums_of",
]
