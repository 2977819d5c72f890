"""U-HLM's line from sums with noise: what a client sends, and when the sums still tell a line.

A token adds ``w (1, v, e, v^2, v e, l)`` with ``v = u - 1/2``, ``e = beta - 1/2``,
``l = 1{y_d < x_d} - 1/2`` and a weight ``w``; least squares are the same after a shift, and centred
entries move less. If a client's weights sum to at most M, its vector lies in M times the hull of 0
and all such tokens, whose diameter is sqrt(3): two tokens differ by at most 1 in ``l``, and with
``d = |v - v'|``, ``f = |e - e'|`` the squares of the other differences sum to at most
``d^2 (1 + (1-d)^2) + f^2 + (d (1-f) + f (1-d))^2 / 4 <= 2``, reached at d = f = 1; a token's own
square is at most 1.875.

A line has no guarantee to lose. Noise that leaves it undetermined is told from the noise's known
size, and then there is no line.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from hlm.arrays import FloatArray
from hlm.line import DegenerateLineError, LineSums, UncertaintyLine

_ENTRIES = 6
_FAR = 12.0
_CLEAR = 4.0
"""Standard deviations of its noise by which count, variance of u and slope must exceed 0."""


@dataclass(frozen=True)
class LineRelease:
    """How sums of the line are encoded, noised, added up and read.

    A vector is float64 [7]: number of noises in it, and the six centred sums. Vectors add up.

    Parameters
    ----------
    tokens : float
        M > 0, largest sum of the weights of a client's tokens in one release.
    noise_multiplier : float
        z > 0, see `hlm.privacy.gaussian_epsilon`.
    """

    tokens: float
    noise_multiplier: float

    def __post_init__(self) -> None:
        for name, value in (("tokens", self.tokens), ("noise_multiplier", self.noise_multiplier)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name}: {value}; allowed: finite and > 0")

    @property
    def length(self) -> int:
        """Numbers of a vector."""
        return 1 + _ENTRIES

    @property
    def sensitivity(self) -> float:
        """Largest L2 change of a sum of vectors when one client is replaced."""
        return self.tokens * math.sqrt(3.0)

    def encode(self, sums: LineSums) -> FloatArray:
        """One client's vector without noise.

        Raises
        ------
        ValueError
            If the weights sum to more than M.
        """
        if not 0 <= sums.count <= self.tokens * (1 + 1e-9):
            raise ValueError(f"count: {sums.count}; allowed: [0, {self.tokens}]")
        n, u, beta = sums.count, sums.uncertainty, sums.rejection
        return np.array(
            [
                0.0,
                n,
                u - n / 2,
                beta - n / 2,
                sums.uncertainty_squared - u + n / 4,
                sums.product - (u + beta) / 2 + n / 4,
                sums.lower - n / 2,
            ]
        )

    def add_noise(self, vector: FloatArray, generator: np.random.Generator) -> FloatArray:
        """`vector` with one noise more; `generator` must be unknown to whoever gets to see it."""
        noise = generator.normal(0.0, self.noise_multiplier * self.sensitivity, _ENTRIES)
        return np.asarray(vector + np.concatenate([[1.0], noise]), dtype=np.float64)

    def problem(self, vector: FloatArray, noises: int) -> str:
        """What is impossible about one client's vector with `noises` noises; empty if nothing."""
        if vector.shape != (self.length,) or not np.isfinite(vector).all():
            return f"must be {self.length} finite numbers"
        if vector[0] != noises:
            return f"{vector[0]:g} noises; must be {noises}"
        far = self.tokens + _FAR * self.noise_multiplier * self.sensitivity * noises
        return "" if (np.abs(vector[1:]) <= far).all() else "beyond any sum and its noise"

    def fit(self, vector: FloatArray) -> UncertaintyLine:
        """Least squares on a sum of vectors.

        Raises
        ------
        DegenerateLineError
            If the tokens do not determine a rising line, or the noise leaves it undetermined.
        """
        deviation = self.noise_multiplier * self.sensitivity * math.sqrt(float(vector[0]))
        n, v, e, vv, ve, low = (float(entry) for entry in vector[1:])
        if not n > max(2.0, _CLEAR * deviation):
            raise DegenerateLineError(
                f"count = {n:.1f} with noise of {deviation:.1f}: too few clients for a line"
            )
        mean_v, mean_e = v / n, e / n
        variance = vv / n - mean_v**2
        slope = (ve / n - mean_v * mean_e) / variance if variance > 0 else 0.0
        # First-order propagation of independent noise of one deviation on all six sums.
        relative = deviation / n
        variance_noise = relative * math.hypot(1.0, 2 * mean_v, vv / n - 2 * mean_v**2)
        if not variance > _CLEAR * variance_noise:
            raise DegenerateLineError(
                f"variance of u = {variance:.3g} with noise of {variance_noise:.3g}"
            )
        slope_noise = (
            relative
            / variance
            * math.hypot(
                1.0,
                slope,
                mean_v,
                2 * slope * mean_v - mean_e,
                ve / n - 2 * mean_v * mean_e - slope * (vv / n - 2 * mean_v**2),
            )
        )
        if not slope > _CLEAR * slope_noise:
            raise DegenerateLineError(f"slope = {slope:.3g} with noise of {slope_noise:.3g}")
        share = min(max(low / n + 0.5, 0.0), 1.0)
        return UncertaintyLine(slope, mean_e + 0.5 - slope * (mean_v + 0.5), share)
