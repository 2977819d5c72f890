"""Confidence intervals of a share."""

from __future__ import annotations

import math

NORMAL_95 = 1.959963984540054
"""Quantile of the standard normal distribution for two-sided 95 %."""


def wilson_interval(failures: float, trials: float) -> tuple[float, float]:
    """Wilson's score interval of a share at 95 % (Wilson 1927); (0, 1) without trials.

    Parameters
    ----------
    failures, trials : float
        0 <= failures <= trials; weighted counts need not be whole numbers.

    Returns
    -------
    tuple of float
        Lower and upper end, in [0, 1].

    Raises
    ------
    ValueError
        If the counts are impossible.
    """
    if not 0 <= failures <= trials:
        raise ValueError(f"failures = {failures}, trials = {trials}: need 0 <= failures <= trials")
    if trials == 0:
        return 0.0, 1.0
    share = failures / trials
    squared = NORMAL_95 * NORMAL_95 / trials
    centre = (share + squared / 2) / (1 + squared)
    spread = math.sqrt(share * (1 - share) * squared + squared * squared / 4) / (1 + squared)
    # The ends of 0 and all failures are exactly 0 and 1; rounding must not move them.
    low = 0.0 if failures == 0 else max(centre - spread, 0.0)
    high = 1.0 if failures == trials else min(centre + spread, 1.0)
    return low, high
