"""U-HLM's line from uncertainty to rejection, beta = a u + b, fitted from sums that add up.

Oh et al., arXiv 2412.12687, fit it on one machine. Least squares needs only six sums, so many
devices can fit one line in one round and nothing else about a token leaves them.
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass

import numpy as np

from hlm.arrays import FloatArray

UHLM_LINE = (0.815, -0.066)
"""Slope and intercept that U-HLM fitted for its own pair, TinyLlama-1.1B and Llama-2-7B."""

_LEAST_VARIANCE = 1e-12


class DegenerateLineError(ValueError):
    """The sums do not determine a rising line, so they give no threshold."""


@dataclass(frozen=True)
class UncertaintyLine:
    """A fitted line and the share of drafts that could be rejected.

    Attributes
    ----------
    slope, intercept : float
        a > 0 and b of beta = a u + b.
    lower_share : float
        Delta = P(y_d < x_d), in [0, 1].
    """

    slope: float
    intercept: float
    lower_share: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.intercept) and math.isfinite(self.slope) and self.slope > 0):
            raise DegenerateLineError(
                f"line beta = {self.slope} u + {self.intercept}: the slope must be positive"
            )
        if not 0 <= self.lower_share <= 1:
            raise ValueError(f"lower_share = {self.lower_share}: allowed are values in [0, 1]")

    @property
    def risk_averse(self) -> float:
        """Threshold -b/a: keep only what the line expects never to be rejected. In [0, 1]."""
        return min(max(-self.intercept / self.slope, 0.0), 1.0)

    @property
    def risk_prone(self) -> float:
        """Threshold (Delta - b)/a: keep what is rejected no more often than Delta. In [0, 1]."""
        return min(max((self.lower_share - self.intercept) / self.slope, 0.0), 1.0)


@dataclass(frozen=True)
class LineSums:
    """What one device sends, and what all of them add up to.

    Attributes
    ----------
    count : float
        Number n of verified tokens (a float so that secure aggregation or weights may scale it).
    uncertainty, rejection, uncertainty_squared, product : float
        Sums of u, beta, u**2 and u * beta.
    lower : float
        Number of tokens with y_d < x_d.
    """

    count: float = 0.0
    uncertainty: float = 0.0
    rejection: float = 0.0
    uncertainty_squared: float = 0.0
    product: float = 0.0
    lower: float = 0.0

    @classmethod
    def of(cls, uncertainty: FloatArray, rejection: FloatArray) -> LineSums:
        """Sum over verified tokens.

        Parameters
        ----------
        uncertainty, rejection : ndarray [tokens]
            u and beta, in [0, 1]; y_d < x_d is where beta > 0.

        Raises
        ------
        ValueError
            If lengths differ or a value is outside [0, 1].
        """
        u = np.asarray(uncertainty, dtype=np.float64)
        beta = np.asarray(rejection, dtype=np.float64)
        if u.ndim != 1 or u.shape != beta.shape:
            raise ValueError(f"uncertainty {u.shape}, rejection {beta.shape}: must be [tokens]")
        for name, values in (("uncertainty", u), ("rejection", beta)):
            if not np.all((values >= 0) & (values <= 1)):
                raise ValueError(f"{name}: allowed are values in [0, 1]")
        sums = (u.size, u.sum(), beta.sum(), u @ u, u @ beta, (beta > 0).sum())
        return cls(*map(float, sums))

    @classmethod
    def from_array(cls, values: FloatArray) -> LineSums:
        """Read the flat array of `to_array`.

        Raises
        ------
        ValueError
            If it does not hold six finite numbers.
        """
        flat = np.asarray(values, dtype=np.float64)
        if flat.shape != (6,) or not np.all(np.isfinite(flat)):
            raise ValueError(f"values = {flat}: six finite numbers are needed")
        return cls(*flat.tolist())

    def to_array(self) -> FloatArray:
        """The six sums in the order of the attributes, float64 [6]."""
        return np.array(astuple(self))

    def __add__(self, other: LineSums) -> LineSums:
        """Pool two devices."""
        return LineSums.from_array(self.to_array() + other.to_array())

    def fit(self) -> UncertaintyLine:
        """Ordinary least squares, exactly as on the pooled tokens.

        Raises
        ------
        DegenerateLineError
            With fewer than two tokens, uncertainties that are all alike, or a slope that is not
            positive.
        """
        if not self.count >= 2:
            raise DegenerateLineError(f"count = {self.count}: a line needs at least 2 tokens")
        mean_u = self.uncertainty / self.count
        mean_beta = self.rejection / self.count
        variance = self.uncertainty_squared / self.count - mean_u**2
        if not variance > _LEAST_VARIANCE:
            raise DegenerateLineError(f"variance of u = {variance}: all uncertainties are alike")
        slope = (self.product / self.count - mean_u * mean_beta) / variance
        share = min(max(self.lower / self.count, 0.0), 1.0)
        return UncertaintyLine(slope, mean_beta - slope * mean_u, share)
