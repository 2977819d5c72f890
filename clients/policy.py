"""Policies: which drafts a device keeps.

Every baseline is a policy of the same router rather than a second loop: `always` keeps every
draft (SLM only), `never` keeps none (HLM), `random` escalates a share (Rand-HLM), `threshold` what
is too uncertain (FedHLM), `u-hlm` the same with a threshold from U-HLM's line, `router` what a
learned model expects the LLM to reject.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hlm.arrays import BoolArray, FloatArray
from hlm.randomness import DrawKeys, Purpose, uniform_matrix


@dataclass(frozen=True)
class RoutingInput:
    """What a policy may look at, for one step of all rows.

    Attributes
    ----------
    uncertainty : numpy.ndarray
        float64 [rows] in [0, 1].
    keys : DrawKeys
        What the random numbers of these rows are keyed by.
    features : numpy.ndarray or None
        float32 [rows, f], for a learned router.
    """

    uncertainty: FloatArray
    keys: DrawKeys
    features: NDArray[np.float32] | None = None

    def uniforms(self) -> FloatArray:
        """One number a row, float64 [rows] in (0, 1), the same for a text and position."""
        return uniform_matrix(self.keys, Purpose.ROUTE, 1)[:, 0]


class Policy(Protocol):
    """Decides which drafts stay on the device."""

    name: str

    def score(self, inputs: RoutingInput) -> FloatArray:
        """What is compared with the threshold: float64 [rows] in [0, 1]."""
        ...

    def keep(self, inputs: RoutingInput) -> BoolArray:
        """True where the draft is kept, bool [rows]."""
        ...


class ThresholdPolicy:
    """Keep a draft if ``u <= threshold`` (FedHLM, section IV-B).

    Parameters
    ----------
    threshold : float or numpy.ndarray
        Below 0: escalate everything. At least 1: keep everything. An array, float64 [rows], has
        each row's own.
    name : str
        Shown in reports.
    """

    def __init__(self, threshold: float | FloatArray, name: str = "threshold") -> None:
        if not np.isfinite(threshold).all():
            raise ValueError(f"threshold = {threshold}: must be a finite number")
        self.name = name
        self.threshold = threshold

    def score(self, inputs: RoutingInput) -> FloatArray:
        """The uncertainty itself."""
        return inputs.uncertainty

    def keep(self, inputs: RoutingInput) -> BoolArray:
        """True where the uncertainty is at most the threshold."""
        return np.asarray(inputs.uncertainty <= self.threshold)


class FixedPolicy:
    """Keep every draft, or none; learns nothing.

    Parameters
    ----------
    kept : bool
        True keeps all drafts (SLM only), False escalates all (HLM).
    """

    def __init__(self, kept: bool) -> None:
        self.name = "always" if kept else "never"
        self._kept = kept

    def score(self, inputs: RoutingInput) -> FloatArray:
        """The uncertainty, for the record."""
        return inputs.uncertainty

    def keep(self, inputs: RoutingInput) -> BoolArray:
        """The same answer for every row."""
        return np.full(inputs.uncertainty.shape, self._kept)


class RandomPolicy:
    """Escalate a random share of the tokens (Rand-HLM); learns nothing.

    Parameters
    ----------
    share : float
        Share escalated, in [0, 1].
    """

    name = "random"

    def __init__(self, share: float) -> None:
        if not 0 <= share <= 1:
            raise ValueError(f"random-share = {share}: must lie in 0 .. 1")
        self._share = share

    def score(self, inputs: RoutingInput) -> FloatArray:
        """The uncertainty, for the record."""
        return inputs.uncertainty

    def keep(self, inputs: RoutingInput) -> BoolArray:
        """True where the row's own uniform draw is at least the share."""
        return np.asarray(inputs.uniforms() >= self._share)


class RouterPolicy:
    """Keep a draft if a learned score is at most a threshold.

    Parameters
    ----------
    threshold : float
        Below 0: escalate everything.
    parameters : numpy.ndarray
        float64 [m], of the model.
    model : callable
        Maps (model parameters float64 [m], features float32 [rows, f]) to scores float64 [rows]
        in [0, 1].
    """

    name = "router"

    def __init__(
        self,
        threshold: float,
        parameters: FloatArray,
        model: Callable[[FloatArray, NDArray[np.float32]], FloatArray],
    ) -> None:
        self.threshold, self.parameters = threshold, parameters
        self._model = model

    def score(self, inputs: RoutingInput) -> FloatArray:
        """The learned score."""
        if inputs.features is None:
            raise ValueError("the router policy needs features of the step")
        return self._model(self.parameters, inputs.features)

    def keep(self, inputs: RoutingInput) -> BoolArray:
        """True where the score is at most the threshold."""
        return np.asarray(self.score(inputs) <= self.threshold)
