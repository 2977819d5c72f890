"""Thresholds with a guarantee, from the risk of each prompt on a grid of thresholds.

Both rules count a prompt's risk as `hlm.risk` says, at the threshold that made its text (in
generation) or at all of the grid (given texts). `docs/learning.md` says what each guarantees.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedhlm_app.learning.rules.sums import SLACK, SumsRule
from hlm.arrays import BoolArray, FloatArray, IntArray
from hlm.risk import (
    ESCALATE_ALL,
    CurveRelease,
    NoisyCurve,
    RiskSums,
    conformal_threshold,
    learn_then_test,
    private_conformal_threshold,
    private_learn_then_test,
    risk_sums,
    threshold_grid,
)
from hlm.risk.betting import FRACTIONS, log_terms, wealth_bounds
from hlm.risk.curves import UNIT

if TYPE_CHECKING:
    from clients.learning.feedback import Feedback
    from strategies.calibration import Calibration
    from strategies.pooled import Unread

GRID = threshold_grid(64)
"""Thresholds of a risk curve; a reply carries a whole number for each."""
CURVE, WEALTH = "risk-curve", "wealth"


class Certified(SumsRule):
    """Largest threshold whose expected risk is at most `fidelity-budget`."""

    name = "certified"
    metric = CURVE
    length = 1 + len(GRID)

    def initial(self) -> dict[str, FloatArray]:
        """Nothing is kept before there is a guarantee."""
        return {"threshold": np.array([ESCALATE_ALL])}

    @property
    def sequential(self) -> bool:
        """Free-running generation: what is kept becomes the context of what follows."""
        return self.settings.workload == "generate"

    @property
    def levels(self) -> tuple[float, float]:
        """Alpha and delta at which candidates of the sequence are tested.

        P(risk > .8 alpha) <= .2 alpha gives an expected risk, since a risk is at most 1:
        E[risk] <= .8 alpha + .2 alpha.
        """
        return 0.8 * self.settings.fidelity_budget, 0.2 * self.settings.fidelity_budget

    @property
    def prompts(self) -> int:
        """Prompts a client counts in one round at most: a function of the settings alone."""
        settings = self.settings
        each = 1 if settings.workload == "classify" else settings.tokens_per_prompt
        return max(1, settings.tokens_per_round // min(each, settings.tokens_per_round))

    @property
    def sureness(self) -> float | None:
        """Probability with which the risk is within the budget; None: it is so on average."""
        return None

    @property
    def asked(self) -> int:
        """Clients that a round asks."""
        settings = self.settings
        share = math.floor(settings.fraction_train * settings.clients + 1e-9)
        return min(max(share, settings.min_clients), settings.clients)

    @cached_property
    def release(self) -> CurveRelease | None:
        """Noise on the curve of a client's prompts."""
        settings = self.settings
        if settings.privacy == "none":
            return None
        return CurveRelease(
            len(GRID), self.prompts, self.bound, settings.fidelity_budget, settings.privacy_noise
        )

    def losses(self, feedback: Feedback) -> FloatArray:
        """Loss of keeping each token, float64 [n] in [0, `bound`]: the one place that decides it.

        Kept tokens that no audit has drawn have weight 0, because their audited siblings carry
        weight ``1 / audit-rate``. A token that was to be measured and is not known (no answer
        from the server) counts as wrong, with its weight, which keeps the guarantee.

        Raises
        ------
        ValueError
            If a token's weight exceeds ``1 / audit-rate``: the bound, and with it the guarantee,
            would be wrong.
        """
        heaviest = float(feedback.weight.max(initial=0.0))
        if heaviest > self.bound * (1 + 1e-9):
            raise ValueError(f"a token has weight {heaviest}, more than 1 / audit-rate")
        return np.where(feedback.known, feedback.weighted_beta, feedback.weight)

    def risk_sums(self, feedback: Feedback) -> RiskSums:
        """Risk of whole prompts, each the mean over its tokens, summed at every threshold."""
        nobody_knows = feedback.kept & ~feedback.known
        u = np.where(nobody_knows, -np.inf, feedback.u)
        return risk_sums(u, self.losses(feedback), feedback.prompt, GRID)

    def vector(self, feedback: Feedback) -> NDArray[Any]:
        """The curve: whole numbers, which travel in as many bytes as they need."""
        sums = self.risk_sums(feedback)
        if self.release is None:
            return sums.as_vector().astype(np.int64)
        return self.release.encode(sums.risk, sums.prompts)

    def sums(
        self, feedback: Feedback, generator: np.random.Generator | None = None
    ) -> dict[str, list[int] | list[float]]:
        """See `SumsRule`; in generation also the log-terms of the bets."""
        metrics = super().sums(feedback, generator)
        if self.sequential:
            metrics[WEALTH] = self._wealth(feedback)
        return metrics

    def _wealth(self, feedback: Feedback) -> list[float]:
        """Log-terms of the bets against the threshold that made the text.

        Whether a token was kept decides, and no threshold, so no grid's rounding does: those of
        which nobody knows whether they are right, although they stand in the text, are lost.
        """
        if not len(feedback):
            return [0.0] * len(FRACTIONS)
        lost = np.where(feedback.kept, self.losses(feedback), 0.0)
        names, index = np.unique(feedback.prompt, return_inverse=True)
        risk = np.bincount(index, lost, len(names)) / np.bincount(index)
        return [float(term) for term in log_terms(risk, self.levels[0], self.bound)]

    def threshold_of(self, vector: FloatArray) -> float:
        """Largest threshold that the pooled curve allows."""
        if self.release is not None:
            return self._of_noisy(self.release.read(vector))
        # Sums of many replies may fall below zero by rounding only.
        return self._of_curve(RiskSums.from_vector(np.maximum(vector, 0.0)))

    def _of_curve(self, curve: RiskSums) -> float:
        alpha = self.settings.fidelity_budget
        return conformal_threshold(curve.risk, curve.prompts, GRID, alpha, self.bound)

    def _of_noisy(self, curve: NoisyCurve) -> float:
        alpha = self.settings.fidelity_budget
        return private_conformal_threshold(curve, GRID, alpha, self.bound)

    def problem(self, sums: Mapping[str, FloatArray]) -> str:
        """See `SumsRule`; in generation also of the bets."""
        found = super().problem(sums)
        if found or self.release is not None or WEALTH not in sums:
            return found
        prompts = RiskSums.from_vector(sums[CURVE]).prompts
        low, high = wealth_bounds(prompts, self.levels[0], self.bound)
        if (sums[WEALTH] < low - SLACK).any() or (sums[WEALTH] > high + SLACK).any():
            return f"{WEALTH!r} is no sum over {prompts:g} prompts"
        return ""

    def problem_of_vector(self, vector: FloatArray) -> str:
        """See `SumsRule`."""
        try:
            curve = RiskSums.from_vector(vector)
        except ValueError as error:
            return str(error)
        fine = curve.prompts <= self.prompts and curve.prompts == int(curve.prompts)
        if fine and curve.risk[-1] <= curve.prompts * self.bound + UNIT:
            return ""
        return (
            f"{CURVE!r} is no sum over at most {self.prompts} prompts, which is what was asked for"
        )

    def unread(self) -> Unread | None:
        """A client that did not answer: all its prompts wrong."""
        from strategies.pooled import Unread

        worst = RiskSums(np.full(len(GRID), self.prompts * self.bound), float(self.prompts))
        vector = worst.as_vector()
        if self.release is not None:
            vector = self.release.encode(worst.risk, worst.prompts)
        return Unread(vector, self.settings.fidelity_budget / self.bound)

    def calibration(self) -> Calibration:
        """Pooled curves of given texts; in generation one candidate after the other."""
        if not self.sequential:
            return super().calibration()
        from strategies.calibration import SequentialCalibration

        return SequentialCalibration(GRID, *self.levels, bound=self.bound)

    def fitting(self, sizes: IntArray) -> BoolArray:
        """A number of texts: of a number of tokens, long texts would be left out more often."""
        return np.arange(len(sizes))[::-1] < self.prompts

    def conflicts(self) -> list[str]:
        """Guarantees speak about fixed groups, one threshold, and clients that can be heard."""
        settings, found = self.settings, super().conflicts()
        named, tier = f"'learning' = '{self.name}'", settings.personalisation
        if settings.recluster_every and tier in ("cluster", "shrunk"):
            found.append(
                f"settings 'recluster-every' = {settings.recluster_every}, {named} and "
                f"'personalisation' = '{tier}': what was guaranteed to a cluster's clients says "
                "nothing about others; set recluster-every=0 or personalisation=global"
            )
        if settings.policy == "router" and tier in ("local", "shrunk"):
            found.append(
                f"settings 'personalisation' = '{tier}' and 'policy' = 'router': "
                "a certified router is shared; set personalisation=global or cluster"
            )
        if not self.sequential:
            return found + self._participation()
        if tier == "shrunk" and settings.policy != "router":
            found.append(
                f"settings 'personalisation' = 'shrunk' and {named}: in generation "
                "sums of text made at different thresholds cannot be joined; set "
                "personalisation=cluster or local"
            )
        if settings.privacy != "none":
            found.append(
                f"settings 'privacy' = '{settings.privacy}', {named} and 'workload' = 'generate': "
                "text made at a candidate has no rising risk curve that noise could be bounded on; "
                "set workload=score or classify, or learning=balanced"
            )
        return found

    def _participation(self) -> list[str]:
        """With given texts a client that is never heard counts as wrong: too many are too much."""
        settings = self.settings
        clients, rounds = settings.clients, min(settings.calibration_rounds, settings.rounds)
        asked = self.asked
        enough = 1 - asked * rounds / clients < settings.fidelity_budget / self.bound
        if enough or settings.personalisation not in ("global", "cluster"):
            return []
        return [
            f"settings 'fraction-train' = {settings.fraction_train}, 'calibration-rounds' = "
            f"{settings.calibration_rounds} and 'learning' = '{self.name}': {rounds} rounds hear "
            f"{asked * rounds} of {clients} clients, the others count as wrong, and nothing could "
            f"be certified; set calibration-rounds to {math.ceil(clients / asked)} or more"
        ]


class CertifiedHighProbability(Certified):
    """The same, but for sure with probability `1 - confidence`."""

    name = "certified-high-probability"

    @property
    def levels(self) -> tuple[float, float]:
        """As the settings say."""
        return self.settings.fidelity_budget, self.settings.confidence

    @property
    def sureness(self) -> float:
        """As the settings say."""
        return 1 - self.settings.confidence

    def _of_curve(self, curve: RiskSums) -> float:
        # A shrunk client has a fractional number of prompts; fewer is the careful reading.
        prompts = float(np.floor(curve.prompts))
        if prompts < 1:
            return ESCALATE_ALL
        return learn_then_test(curve.risk, prompts, GRID, *self.levels, self.bound)

    def _of_noisy(self, curve: NoisyCurve) -> float:
        return private_learn_then_test(curve, GRID, *self.levels, self.bound)
