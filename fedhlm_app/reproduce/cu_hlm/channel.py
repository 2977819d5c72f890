"""A fading channel as a link: what a code that sees every fade carries."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy.special import exp1

from hlm.channels import Link
from hlm.ranges import require_between


@dataclass(frozen=True)
class RayleighChannel:
    """A flat channel whose power gain is Exp(1): mean 1, Rayleigh amplitude.

    Attributes
    ----------
    bandwidth_hz : float
        Above 0.
    snr_db : float
        Mean signal-to-noise ratio in dB, in [-25, 100].
    """

    bandwidth_hz: float
    snr_db: float

    def __post_init__(self) -> None:
        require_between("bandwidth_hz", self.bandwidth_hz, 0.0, math.inf, open_low=True)
        require_between("snr_db", self.snr_db, -25.0, 100.0)

    @property
    def rate(self) -> float:
        """Ergodic rate in bit/s: B log2(e) exp(1/snr) E1(1/snr)."""
        inverse = 10.0 ** (-self.snr_db / 10.0)
        return float(self.bandwidth_hz * math.exp(inverse) * exp1(inverse) / math.log(2.0))

    def link(self, round_trip_s: float) -> Link:
        """The link over it, by its own name."""
        name = f"{self.bandwidth_hz / 1e6:g} MHz, {self.snr_db:g} dB"
        return Link(name, self.rate, round_trip_s)
