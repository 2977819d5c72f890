"""What the rules share whose clients send sums in place of policies.

Sums are over tokens or prompts, never a single token's value, so secure aggregation fits.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedhlm_app.learning.rules.base import LearningRule
from hlm.arrays import BoolArray, FloatArray, IntArray
from hlm.private_line import LineRelease
from hlm.risk import CurveRelease

if TYPE_CHECKING:
    from clients.learning.feedback import Feedback
    from strategies.calibration import Calibration
    from strategies.options import StrategyOptions
    from strategies.pooled import Unread

SLACK = 1e-6
"""By which sums of floats may exceed what they are compared with."""


class SumsRule(LearningRule):
    """A rule that reads thresholds from sums over clients; `docs/learning.md` says what they hold.

    Besides `initial`, a subclass has `vector`, `threshold_of`, `problem_of_vector` and, for noise,
    `release`.
    """

    learns = True
    covers = "sums of the threshold"
    metric: ClassVar[str]
    """List metric in which a client's sums travel."""
    length: ClassVar[int]
    """Numbers in it, without noise."""

    @property
    def sequential(self) -> bool:
        """Whether thresholds must be judged on text made with them, one after the other."""
        return False

    @property
    def bound(self) -> float:
        """Largest possible risk of one prompt: 1, or 1 / audit-rate when only audits tell."""
        rate = self.settings.audit_rate
        return 1 / rate if rate > 0 else 1.0

    @property
    def reads_kept_tokens(self) -> bool:
        """Whether kept tokens are sent for reading while sums are gathered."""
        return self.settings.audit_rate == 0

    @cached_property
    def release(self) -> CurveRelease | LineRelease | None:
        """How sums are encoded and noised; None where they are sent as they are."""
        raise NotImplementedError

    def vector(self, feedback: Feedback) -> NDArray[Any]:
        """A client's sums over whole prompts, [`length`], or as `release` encodes them."""
        raise NotImplementedError

    def threshold_of(self, vector: FloatArray) -> float:
        """The threshold that the sums of many clients tell."""
        raise NotImplementedError

    def problem_of_vector(self, vector: FloatArray) -> str:
        """What is impossible about one client's sums without noise; empty when nothing is."""
        raise NotImplementedError

    def unread(self) -> Unread | None:
        """What stands for a contribution that has not come; None where nothing does."""
        return None

    def fitting(self, sizes: IntArray) -> BoolArray:
        """Which texts of a store a round counts, of their tokens int64 [n], the oldest first."""
        return np.cumsum(sizes[::-1])[::-1] <= self.settings.tokens_per_round

    def sums(
        self, feedback: Feedback, generator: np.random.Generator | None = None
    ) -> dict[str, list[int] | list[float]]:
        """A client's list metrics, with noise where `privacy` is ``local``.

        Parameters
        ----------
        feedback : Feedback
            Whole prompts that count, each once.
        generator : numpy.random.Generator, optional
            Of the noise, unknown to the server; by default seeded by the operating system.
        """
        vector = self.vector(feedback)
        if self.release is not None and self.settings.privacy == "local":
            vector = self.release.add_noise(vector, generator or np.random.default_rng())
        return {self.metric: vector.tolist()}

    def problem(self, sums: Mapping[str, FloatArray]) -> str:
        """What is impossible about one client's sums; empty when nothing is.

        No client speaks for more prompts than it was asked for, so lies within the bounds weigh
        no more than those of a client whose risk is 0, or the largest there is.
        """
        vector = sums[self.metric]
        if self.release is None:
            return self.problem_of_vector(vector)
        found = self.release.problem(vector, int(self.settings.privacy == "local"))
        return f"{self.metric!r}: {found}" if found else ""

    def calibration(self) -> Calibration:
        """The server's part."""
        from strategies.pooled import PooledCalibration

        length, noise = self.length, None
        if self.release is not None:
            length = self.release.length
            if self.settings.privacy == "central":
                # Whoever knows the seed of noise can take it away: it is drawn, and kept nowhere.
                noise = partial(self.release.add_noise, generator=np.random.default_rng())
        return PooledCalibration(
            self.metric,
            length,
            self.threshold_of,
            float(self.initial()["threshold"][0]),
            self.settings.calibration_rounds,
            noise,
            self.unread(),
        )

    def strategy_options(self) -> StrategyOptions:
        """Rounds of sums, after those that train a router."""
        from strategies.calibrated import CalibrationOptions

        settings = self.settings
        # Where settings name another rule, this one certifies what that has learned.
        learning = 0 if settings.learning == self.name else settings.learn_rounds
        calibration = CalibrationOptions(
            self.calibration(),
            tier=settings.personalisation,
            pseudo=settings.shrinkage,
            check=self.problem,
            clients=settings.clients,
            training_rounds=settings.router_rounds if settings.policy == "router" else learning,
            learned=learning > 0,
        )
        return {"calibration": calibration}

    def conflicts(self) -> list[str]:
        """Policies are not averaged, and a single client's sums are too few for noise."""
        settings = self.settings
        averaging = (
            ("strategy", settings.strategy, "fedavg"),
            ("edge-rule", settings.edge_rule, "weighted-mean"),
            ("cloud-rule", settings.cloud_rule, "unweighted-mean"),
        )
        found = [
            f"settings 'learning' = '{self.name}' and '{name}' = '{value}': the rule adds up sums "
            f"and averages no policies; set {name}={plain}"
            for name, value, plain in averaging
            # A router's model is averaged before sums set its threshold.
            if value != plain and settings.policy != "router"
        ]
        if settings.privacy == "central" and settings.personalisation in ("local", "shrunk"):
            found.append(
                f"settings 'privacy' = 'central' and 'personalisation' = "
                f"'{settings.personalisation}': a single client's sums would drown in the noise "
                "that hides it; set personalisation=global or cluster"
            )
        return found
