"""Differential privacy by Gaussian noise: the noise, and what it costs.

Accounting is by zero-concentrated differential privacy (Bun and Steinke, arXiv 1605.02658): one
release with noise of standard deviation z times its L2 sensitivity is 1/(2 z^2)-zCDP, R releases
are R/(2 z^2)-zCDP together, and rho-zCDP implies (epsilon, delta)-DP with
epsilon = rho + 2 sqrt(rho ln(1/delta)). This holds for every epsilon, unlike the textbook
sqrt(2 ln(1.25/delta))/z, which is proved below 1 only. No amplification by sampling is claimed.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


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
        R/(2 z^2) + 2 sqrt(R/(2 z^2) ln(1/delta)); 0 for no release.
    """
    _positive("noise_multiplier", noise_multiplier)
    if releases < 0:
        raise ValueError(f"releases: {releases}; allowed: >= 0")
    if not 0 < delta < 1:
        raise ValueError(f"delta: {delta}; allowed: (0, 1)")
    rho = releases / (2.0 * noise_multiplier**2)
    return rho + 2.0 * math.sqrt(rho * math.log(1.0 / delta))


def noise_for_epsilon(epsilon: float, releases: int, delta: float) -> float:
    """Return the noise multiplier whose `gaussian_epsilon` after `releases` equals `epsilon`.

    From sqrt(rho) = sqrt(L + epsilon) - sqrt(L), L = ln(1/delta).
    """
    _positive("epsilon", epsilon)
    if releases < 1:
        raise ValueError(f"releases: {releases}; allowed: >= 1")
    if not 0 < delta < 1:
        raise ValueError(f"delta: {delta}; allowed: (0, 1)")
    log_term = math.log(1.0 / delta)
    root_rho = epsilon / (math.sqrt(log_term + epsilon) + math.sqrt(log_term))
    return math.sqrt(releases / 2.0) / root_rho


def private_update(
    policy: FloatArray,
    start: FloatArray,
    clip: float,
    noise_multiplier: float,
    generator: np.random.Generator,
    bounds: tuple[float, float] | None = None,
) -> FloatArray:
    """Local differential privacy: what a client may send so that even the server learns little.

    The change ``policy - start`` is scaled to an L2 norm of at most `clip`; two possible changes
    are then at most 2 clip apart, so Gaussian noise of standard deviation 2 clip noise_multiplier
    is added to every entry. Clamping to `bounds` comes last and costs nothing (post-processing).
    `start` is public: the server sent it.

    Parameters
    ----------
    policy, start : float64 [d]
    clip : float
        > 0, in units of the policy.
    noise_multiplier : float
        > 0; see `gaussian_epsilon`.
    generator : numpy.random.Generator
        Must not be known to the server; a seed shared with it voids the guarantee.
    bounds : (low, high), optional
        Range the server accepts.

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
    noisy = start + delta + generator.normal(0.0, 2.0 * clip * noise_multiplier, policy.shape)
    return noisy if bounds is None else np.clip(noisy, *bounds)


def _positive(name: str, value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name}: {value}; allowed: finite and > 0")
