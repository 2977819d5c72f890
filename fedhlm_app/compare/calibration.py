"""What the methods are told before the comparison, from prompts that are not part of it.

Thresholds that escalate a wanted share, and U-HLM's line. The text a threshold acts on depends on
the threshold itself, so each is read off text that was made with an earlier guess of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from clients.policy import Policy, RandomPolicy, RoutingInput
from clients.records import TokenRecords
from hlm.arrays import BoolArray, FloatArray
from hlm.line import DegenerateLineError, LineSums, UncertaintyLine
from hlm.spans import count_runs

RouteTexts = Callable[[Policy, str], TokenRecords]
"""Makes the calibration texts under a policy; every routed place has been read by the LLM."""


class SharePolicy:
    """Threshold policy that may keep a part of the drafts whose uncertainty is the threshold.

    Uncertainties that are multiples of 1/20 tie so often that no threshold alone would escalate
    a given share.

    Parameters
    ----------
    threshold : float
        Keep what is less uncertain, escalate what is more.
    kept_at : float
        Share kept of what is exactly as uncertain, in [0, 1].
    """

    name = "share"

    def __init__(self, threshold: float, kept_at: float = 1.0) -> None:
        if not 0 <= kept_at <= 1:
            raise ValueError(f"kept_at = {kept_at}: allowed are values in [0, 1]")
        self.threshold, self.kept_at = threshold, kept_at

    def score(self, inputs: RoutingInput) -> FloatArray:
        """The uncertainty itself."""
        return inputs.uncertainty

    def keep(self, inputs: RoutingInput) -> BoolArray:
        """True below the threshold, and by the row's own uniform draw at it."""
        below = inputs.uncertainty < self.threshold
        at = (inputs.uncertainty == self.threshold) & (inputs.uniforms() < self.kept_at)
        return np.asarray(below | at)


def threshold_of_share(uncertainty: FloatArray, share: float) -> SharePolicy:
    """The policy that escalates a share of tokens with given uncertainties.

    Parameters
    ----------
    uncertainty : numpy.ndarray
        float64 [tokens], at least one.
    share : float
        In [0, 1].

    Raises
    ------
    ValueError
        If there is no token or the share is out of range.
    """
    if not uncertainty.size or not 0 <= share <= 1:
        raise ValueError(f"share = {share} of {uncertainty.size} tokens: allowed are 0 to 1 of 1+")
    ordered = np.sort(uncertainty)
    kept = (1 - share) * ordered.size
    threshold = ordered[min(int(kept), ordered.size - 1)]
    below, at = (ordered < threshold).sum(), (ordered == threshold).sum()
    return SharePolicy(float(threshold), float(np.clip((kept - below) / at, 0.0, 1.0)))


@dataclass(frozen=True)
class Calibration:
    """What the calibration prompts say.

    Attributes
    ----------
    policies : dict
        By uncertainty measure, the policy that escalates the share asked for.
    runs : dict
        By measure, how often drafts are sure after sure and unsure ones (`hlm.spans.count_runs`).
    sweep : LineSums
        Of the temperature sweep's u and beta, for U-HLM's line.
    drafts : LineSums
        Of u = 1 - x_d and beta, for the k* rule.
    """

    policies: dict[str, SharePolicy]
    runs: dict[str, FloatArray]
    sweep: LineSums
    drafts: LineSums

    @property
    def line(self) -> UncertaintyLine:
        """U-HLM's line; raises ValueError where beta does not rise with u."""
        return _fitted(self.sweep)

    @property
    def draft_line(self) -> UncertaintyLine:
        """The line that the k* rule asks; raises ValueError where beta does not rise with u."""
        return _fitted(self.drafts)


def _fitted(sums: LineSums) -> UncertaintyLine:
    try:
        return sums.fit()
    except DegenerateLineError as error:
        raise ValueError(
            f"calibration prompts: their {sums.count:.0f} tokens give U-HLM no line ({error}); "
            "use more of them (--calibration-prompts), or --methods without u-hlm and cu-hlm"
        ) from error


def calibrate(
    route: RouteTexts, share: float, measures: tuple[str, ...], greedy: bool
) -> Calibration:
    """Run the calibration prompts.

    Parameters
    ----------
    route : callable
        See `RouteTexts`.
    share : float
        Share of tokens to escalate.
    measures : tuple of str
        Uncertainties for which a policy is wanted.
    greedy : bool
        Whether beta is 1{draft is not the LLM's choice} instead of eq. 3.
    """
    sweep = route(RandomPolicy(share), "temperature-sweep")
    policies: dict[str, SharePolicy] = {}
    runs: dict[str, FloatArray] = {}
    for measure in measures:
        first = sweep
        if measure != "temperature-sweep":
            first = route(RandomPolicy(share), measure)
        guess = threshold_of_share(first.uncertainty[first.present], share)
        second = route(guess, measure)
        policies[measure] = threshold_of_share(second.uncertainty[second.present], share)
        sure = second.uncertainty <= policies[measure].threshold
        runs[measure] = count_runs(sure, second.present.sum(axis=1))
    beta = sweep.loss(greedy)
    known = sweep.present & np.isfinite(beta)
    return Calibration(
        policies,
        runs,
        LineSums.of(sweep.uncertainty[known], beta[known]),
        LineSums.of(1 - sweep.probability[known], beta[known]),
    )
