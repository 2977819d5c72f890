"""What a link costs in time: fading channels, packets, and the speed of a method over them.

A *link* turns bytes into seconds; a *trace* is what a method did (tokens, messages, bytes, seconds
of compute); both together give its speed.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hlm.ranges import require_between

__all__ = ["LINKS", "Link", "RayleighChannel", "Trace"]

FloatArray = npt.NDArray[np.float64]

_EULER_GAMMA = 0.5772156649015329


@dataclass(frozen=True)
class RayleighChannel:
    """A flat channel whose power gain g = ``|h|**2`` is Exp(1): mean 1, Rayleigh amplitude.

    Parameters
    ----------
    bandwidth_hz
        Above 0.
    snr
        Mean signal-to-noise ratio as a plain ratio (see :meth:`from_decibels`), above 0.
    """

    bandwidth_hz: float
    snr: float

    def __post_init__(self) -> None:
        require_between("bandwidth_hz", self.bandwidth_hz, 0.0, math.inf, open_low=True)
        require_between("snr", self.snr, 0.0, math.inf, open_low=True)

    @classmethod
    def from_decibels(cls, bandwidth_hz: float, snr_db: float) -> "RayleighChannel":
        """Channel with the mean signal-to-noise ratio given in dB."""
        return cls(bandwidth_hz, 10.0 ** (snr_db / 10.0))

    def rate(self, gain: npt.ArrayLike) -> FloatArray:
        """Shannon rate B log2(1 + snr g) in bit/s at power gains g >= 0, of their shape."""
        gains = np.asarray(gain, dtype=np.float64)
        return np.asarray(self.bandwidth_hz * np.log1p(self.snr * gains) / math.log(2.0))

    def sample_rates(self, count: int, random: np.random.Generator) -> FloatArray:
        """Rates in bit/s of ``count`` independent fades, float64 [count]."""
        return self.rate(random.exponential(size=count))

    def ergodic_rate(self) -> float:
        """Mean rate in bit/s of a code that sees every fade: B log2(e) exp(1/snr) E1(1/snr)."""
        return self.bandwidth_hz / math.log(2.0) * _scaled_exponential_integral(1.0 / self.snr)

    def outage_probability(self, rate_bits_per_s: float) -> float:
        """Chance that a fade is too deep for a rate: 1 - exp(-(2**(R/B) - 1) / snr)."""
        require_between("rate_bits_per_s", rate_bits_per_s, 0.0, math.inf)
        exponent = rate_bits_per_s / self.bandwidth_hz * math.log(2.0)
        if exponent > 700.0:  # beyond float64, and beyond any channel
            return 1.0
        return -math.expm1(-math.expm1(exponent) / self.snr)

    def outage_rate(self, probability: float) -> float:
        """Highest rate in bit/s whose outage probability is at most ``probability`` < 1."""
        require_between("probability", probability, 0.0, math.nextafter(1.0, 0.0))
        return float(self.rate(-math.log1p(-probability)))

    def link(self, name: str, round_trip_s: float, outage: float | None = None) -> "Link":
        """Link over this channel.

        Parameters
        ----------
        name, round_trip_s
            As in :class:`Link`.
        outage
            None: the ergodic rate, nothing is lost. Otherwise the rate of that outage probability,
            at which each packet meets a fade of its own and is lost with that probability.
        """
        if outage is None:
            return Link(name, self.ergodic_rate(), round_trip_s)
        return Link(name, self.outage_rate(outage), round_trip_s, loss=outage)


@dataclass(frozen=True)
class Link:
    """A way between a device and a server.

    Packets are lost independently; every round trip, all that were lost are sent again.

    Parameters
    ----------
    name
        For tables.
    rate_bits_per_s
        From the device to the server, above 0.
    round_trip_s
        Seconds there and back of an empty message, from 0.
    loss
        Chance that a packet is lost, in [0, 1).
    down_bits_per_s
        From the server to the device; None is the same as upwards.
    packet_bytes
        Payload of a packet, at least 1.
    overhead_bytes
        Headers of a packet (40 for TCP over IPv4), from 0. Reports of bytes do not count them.
    """

    name: str
    rate_bits_per_s: float
    round_trip_s: float
    loss: float = 0.0
    down_bits_per_s: float | None = None
    packet_bytes: int = 1460
    overhead_bytes: int = 0

    def __post_init__(self) -> None:
        require_between("rate_bits_per_s", self.rate_bits_per_s, 0.0, math.inf, open_low=True)
        require_between("round_trip_s", self.round_trip_s, 0.0, math.inf)
        require_between("loss", self.loss, 0.0, math.nextafter(1.0, 0.0))
        require_between("packet_bytes", self.packet_bytes, 1, math.inf)
        require_between("overhead_bytes", self.overhead_bytes, 0, math.inf)
        if self.down_bits_per_s is not None:
            require_between("down_bits_per_s", self.down_bits_per_s, 0.0, math.inf, open_low=True)

    def up_seconds(self, message_bytes: float) -> float:
        """Expected seconds until a message to the server has arrived whole."""
        return self._seconds(message_bytes, self.rate_bits_per_s)

    def down_seconds(self, message_bytes: float) -> float:
        """Expected seconds until a message to the device has arrived whole."""
        down = self.rate_bits_per_s if self.down_bits_per_s is None else self.down_bits_per_s
        return self._seconds(message_bytes, down)

    def exchange_seconds(self, bytes_up: float, bytes_down: float) -> float:
        """Expected seconds of a request and its reply, without the server's own time."""
        return self.up_seconds(bytes_up) + self.down_seconds(bytes_down)

    def expected_repeats(self, packets: int) -> float:
        """Expected round trips spent on repeats: E[max of ``packets`` geometric counts] - 1.

        The sum over r >= 1 of the chance that some packet was lost r times, 1 - (1 - loss**r)**n.
        """
        if self.loss == 0.0 or packets == 0:
            return 0.0
        total, lost = 0.0, self.loss
        while True:
            term = -math.expm1(packets * math.log1p(-lost))
            total += term
            if term * self.loss <= 1e-12 * total * (1.0 - self.loss):
                return total  # the rest is a geometric series below 1e-12 of the sum
            lost *= self.loss

    def _seconds(self, message_bytes: float, rate_bits_per_s: float) -> float:
        require_between("message_bytes", message_bytes, 0.0, math.inf)
        packets = math.ceil(message_bytes / self.packet_bytes)
        sent = message_bytes + packets * self.overhead_bytes
        on_air = 8.0 * sent / (rate_bits_per_s * (1.0 - self.loss))
        return on_air + self.round_trip_s * (0.5 + self.expected_repeats(packets))


LINKS = (
    Link("1 Mbit/s 60 ms", 1e6, 0.060),
    Link("10 Mbit/s 30 ms", 1e7, 0.030),
    Link("100 Mbit/s 5 ms", 1e8, 0.005),
)
"""The links of the benchmarks: a poor cell, a good cell, a wired line."""


@dataclass(frozen=True)
class Trace:
    """What a method did to make some tokens.

    Parameters
    ----------
    tokens
        Tokens made, at least 1.
    messages
        Requests that waited for their reply one after the other, from 0.
    bytes_up, bytes_down
        All bytes of these requests and replies.
    slm_seconds, llm_seconds
        Compute of the device and of the server, in series with the messages.
    """

    tokens: int
    messages: int
    bytes_up: int
    bytes_down: int
    slm_seconds: float
    llm_seconds: float

    def __post_init__(self) -> None:
        require_between("tokens", self.tokens, 1, math.inf)
        for name in ("messages", "bytes_up", "bytes_down", "slm_seconds", "llm_seconds"):
            require_between(name, getattr(self, name), 0, math.inf)
        if self.messages == 0 and (self.bytes_up or self.bytes_down):
            raise ValueError(f"messages=0 but bytes_up={self.bytes_up}, down={self.bytes_down}")

    def seconds(self, link: Link) -> float:
        """Expected seconds over ``link``.

        Every message counts as one of mean size, which is exact on a link that loses nothing and
        has no overhead.
        """
        compute = self.slm_seconds + self.llm_seconds
        if self.messages == 0:
            return compute
        mean_up, mean_down = self.bytes_up / self.messages, self.bytes_down / self.messages
        return compute + self.messages * link.exchange_seconds(mean_up, mean_down)

    def seconds_per_token(self, link: Link) -> float:
        """Expected seconds for each token over ``link``."""
        return self.seconds(link) / self.tokens

    def tokens_per_second(self, link: Link) -> float:
        """Tokens in a second over ``link``; infinite if they took no time at all."""
        seconds = self.seconds(link)
        return self.tokens / seconds if seconds > 0 else math.inf


def _scaled_exponential_integral(x: float) -> float:
    """Return exp(x) E1(x) for x > 0: series below 1, continued fraction (modified Lentz) above.

    The product, because E1 alone underflows where exp overflows.
    """
    if x < 1.0:
        total, term, n = -_EULER_GAMMA - math.log(x), 1.0, 1
        while abs(term) > 1e-18 * abs(total):
            term *= -x / n
            total -= term / n
            n += 1
        return math.exp(x) * total
    denominator = x + 1.0
    fraction = 1.0 / denominator
    ratio, numerator = fraction, math.inf
    for n in range(1, 500):
        squared = -float(n * n)
        denominator = 1.0 / (squared * ratio + x + 2.0 * n + 1.0)
        numerator = x + 2.0 * n + 1.0 + squared / numerator
        ratio = denominator
        change = numerator * denominator
        fraction *= change
        if abs(change - 1.0) < 1e-16:
            break
    return fraction
