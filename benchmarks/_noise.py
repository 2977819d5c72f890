"""The noise that an epsilon asks for: benchmarks compare epsilons, settings name the noise."""

from __future__ import annotations

import math

from scipy.optimize import brentq

from hlm.privacy import gaussian_epsilon


def noise_for_epsilon(epsilon: float, releases: int, delta: float) -> float:
    """Return the noise multiplier whose `gaussian_epsilon` after `releases` equals `epsilon`."""
    return math.exp(
        brentq(
            lambda log: gaussian_epsilon(math.exp(log), releases, delta) - epsilon,
            math.log(1e-3),
            math.log(1e6),
            xtol=1e-12,
        )
    )
