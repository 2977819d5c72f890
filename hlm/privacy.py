"""Differential privacy by Gaussian noise: the noise, and what it costs.

Accounting is exact. One release with noise of standard deviation z times its L2 sensitivity is
mu-Gaussian differentially private with mu = 1/z, R of them, each chosen after the last, are
mu = sqrt(R)/z together (Dong, Roth and Su, arXiv 1905.02383), and mu is (epsilon, delta) for

    delta = Phi(mu/2 - epsilon/mu) - exp(epsilon) Phi(-mu/2 - epsilon/mu)

(the analytic Gaussian mechanism, Balle and Wang, arXiv 1805.06530). It holds for every epsilon,
unlike the textbook sqrt(2 ln(1.25/delta))/z, which is proved below 1 only. No amplification by
sampling is claimed. Noise is drawn as 64-bit floats; attacks on their lowest bits are not covered.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np

from hlm.arrays import FloatArray


def gaussian_epsilon(noise_multiplier: float, releases: int, delta: float) -> float:
    """Epsilon at `delta` after `releases` Gaussian releases.

    Parameters
    ----------
    noise_multiplier : float
        z > 0: standard deviation of the noise over the L2 sensitivity of one release.
    releases : int
        R >= 0, how many releases one person's data entered.
    delta : float
        In (0, 1).

    Returns
    -------
    float
        The least epsilon >= 0 that holds, to 1e-12 relative; 0 for no release.
    """
    _positive("noise_multiplier", noise_multiplier)
    if releases < 0:
        raise ValueError(f"releases: {releases}; allowed: >= 0")
    if not 0 < delta < 1:
        raise ValueError(f"delta: {delta}; allowed: (0, 1)")
    if releases == 0:
        return 0.0
    mu = math.sqrt(releases) / noise_multiplier
    if _delta_at(-mu / 2, mu) <= delta:
        return 0.0
    # epsilon = mu^2/2 + mu t; delta falls as t rises, and lies below Phi(-t).
    low, high = -mu / 2, -NormalDist().inv_cdf(delta)
    while high - low > 1e-12 * max(1.0, abs(high)):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if _delta_at(middle, mu) > delta else (low, middle)
    return mu * (mu / 2 + high)


def private_update(
    policy: FloatArray,
    start: FloatArray,
    clip: float,
    noise_multiplier: float,
    generator: np.random.Generator,
) -> FloatArray:
    """Local differential privacy: what a client may send so that even the server learns little.

    The change ``policy - start`` is scaled to an L2 norm of at most `clip`; two possible changes
    are then at most 2 clip apart, so Gaussian noise of standard deviation 2 clip noise_multiplier
    is added to every entry. Clamping it afterwards costs nothing (post-processing). `start` is
    public: the server sent it.

    Parameters
    ----------
    policy, start : float64 [d]
    clip : float
        > 0, in units of the policy.
    noise_multiplier : float
        > 0; see `gaussian_epsilon`.
    generator : numpy.random.Generator
        Must not be known to the server; a seed shared with it voids the guarantee.

    Returns
    -------
    float64 [d].
    """
    _positive("clip", clip)
    _positive("noise_multiplier", noise_multiplier)
    if policy.shape != start.shape:
        raise ValueError(f"policy: shape {policy.shape}; allowed: that of start, {start.shape}")
    delta = policy - start
    delta = delta * (clip / max(float(np.linalg.norm(delta)), clip))
    return start + delta + generator.normal(0.0, 2.0 * clip * noise_multiplier, policy.shape)


def _positive(name: str, value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name}: {value}; allowed: finite and > 0")


def _delta_at(t: float, mu: float) -> float:
    """Delta of mu-Gaussian privacy at epsilon = mu^2/2 + mu t, t >= -mu/2.

    Phi(-t) - phi(t) M(t + mu) with Mills' ratio M(x) = Phi(-x)/phi(x): the formula of the module
    with exp(epsilon) taken into phi, so that nothing overflows.
    """
    density = math.exp(-t * t / 2) / math.sqrt(2 * math.pi)
    return math.erfc(t / math.sqrt(2)) / 2 - density * _mills(t + mu)


def _mills(x: float) -> float:
    """Phi(-x)/phi(x), for x >= 0."""
    if x < 25:
        return math.sqrt(math.pi / 2) * math.exp(x * x / 2) * math.erfc(x / math.sqrt(2))
    return (1 - 1 / x**2 + 3 / x**4 - 15 / x**6 + 105 / x**8) / x
