"""What communication costs: channels and links, time per token, and when to ask peers.

A *link* turns bytes into seconds; a *trace* is what a method did (tokens, messages, bytes, seconds
of compute); both together give its speed. Costs of eq. 12-13 (FedHLM, section V-A) are in whatever
unit the caller chooses (bytes, milliseconds, money), as long as it is the same one throughout.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

_EULER_GAMMA = 0.5772156649015329
_GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0


def _check(name: str, value: float, low: float, high: float, open_low: bool = False) -> None:
    inside = low < value <= high if open_low else low <= value <= high
    if not inside:  # NaN is outside as well
        bracket = "(" if open_low else "["
        raise ValueError(f"{name}={value} must be in {bracket}{low}, {high}]")


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
        _check("bandwidth_hz", self.bandwidth_hz, 0.0, math.inf, open_low=True)
        _check("snr", self.snr, 0.0, math.inf, open_low=True)

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
        _check("rate_bits_per_s", rate_bits_per_s, 0.0, math.inf)
        exponent = rate_bits_per_s / self.bandwidth_hz * math.log(2.0)
        if exponent > 700.0:  # beyond float64, and beyond any channel
            return 1.0
        return -math.expm1(-math.expm1(exponent) / self.snr)

    def outage_rate(self, probability: float) -> float:
        """Highest rate in bit/s whose outage probability is at most ``probability`` < 1."""
        _check("probability", probability, 0.0, math.nextafter(1.0, 0.0))
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
        _check("rate_bits_per_s", self.rate_bits_per_s, 0.0, math.inf, open_low=True)
        _check("round_trip_s", self.round_trip_s, 0.0, math.inf)
        _check("loss", self.loss, 0.0, math.nextafter(1.0, 0.0))
        _check("packet_bytes", self.packet_bytes, 1, math.inf)
        _check("overhead_bytes", self.overhead_bytes, 0, math.inf)
        if self.down_bits_per_s is not None:
            _check("down_bits_per_s", self.down_bits_per_s, 0.0, math.inf, open_low=True)

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
        _check("message_bytes", message_bytes, 0.0, math.inf)
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
        _check("tokens", self.tokens, 1, math.inf)
        for name in ("messages", "bytes_up", "bytes_down", "slm_seconds", "llm_seconds"):
            _check(name, getattr(self, name), 0, math.inf)
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


@dataclass(frozen=True)
class PeerCosts:
    """Costs of resolving an uncertain token, all in one unit.

    Parameters
    ----------
    peer
        C_P2P, cost of asking the peers, from 0.
    llm
        C_LLM, cost of asking the large model, from 0.
    error
        c_err, cost of a wrong token, from 0. 0 gives the paper's rule.
    false_hit
        eps_hit, share of the peers' answers that are wrong, in [0, 1].
    """

    peer: float
    llm: float
    error: float = 0.0
    false_hit: float = 0.0

    def __post_init__(self) -> None:
        for name in ("peer", "llm", "error"):
            _check(name, getattr(self, name), 0.0, math.inf)
        _check("false_hit", self.false_hit, 0.0, 1.0)

    def expected(self, hit_probability: float) -> float:
        """Expected cost of a token for which peers are asked first.

        Eq. 12, (1 - p_hit) (C_P2P + C_LLM) + p_hit C_P2P, and p_hit c_err eps_hit for wrong hits.
        """
        _check("hit_probability", hit_probability, 0.0, 1.0)
        wrong = self.error * self.false_hit
        return self.peer + (1.0 - hit_probability) * self.llm + hit_probability * wrong

    def least_hit_probability(self) -> float:
        """p_hit from which asking costs no more than not asking; infinite if it never pays.

        Eq. 13 is C_P2P / C_LLM; with wrong hits, C_P2P / (C_LLM - c_err eps_hit).
        """
        saved = self.llm - self.error * self.false_hit
        return self.peer / saved if saved > 0 else math.inf

    def worth_asking(self, hit_probability: float) -> bool:
        """Whether to ask the peers before the large model (eq. 13)."""
        _check("hit_probability", hit_probability, 0.0, 1.0)
        return hit_probability >= self.least_hit_probability()


@dataclass(frozen=True)
class HitRatioFit:
    """Eq. 14, H(S) = 1 - exp(-alpha S), fitted to measured hit ratios.

    Parameters
    ----------
    alpha
        Per cache entry, from 0.
    rmse
        Root of the mean squared difference between measured and fitted ratios.
    """

    alpha: float
    rmse: float

    def ratio(self, size: npt.ArrayLike) -> FloatArray:
        """Fitted hit ratio at cache sizes S >= 0, of their shape."""
        return np.asarray(-np.expm1(-self.alpha * np.asarray(size, dtype=np.float64)))


def fit_hit_ratio(sizes: npt.ArrayLike, ratios: npt.ArrayLike) -> HitRatioFit:
    """Least-squares fit of eq. 14.

    Parameters
    ----------
    sizes
        Cache sizes, [n], finite, from 0, at least one above 0.
    ratios
        Measured hit ratios, [n], in [0, 1].

    Raises
    ------
    ValueError
        If the two do not match or leave their ranges.
    """
    size = np.asarray(sizes, dtype=np.float64)
    ratio = np.asarray(ratios, dtype=np.float64)
    if size.ndim != 1 or size.shape != ratio.shape:
        raise ValueError(f"sizes {size.shape} and ratios {ratio.shape} must be equal vectors")
    if not (np.all(np.isfinite(size)) and np.all(size >= 0) and np.any(size > 0)):
        raise ValueError("sizes must be finite and from 0, at least one above 0")
    if not np.all((ratio >= 0) & (ratio <= 1)):
        raise ValueError("ratios must be in [0, 1]")

    def squares(alpha: FloatArray) -> FloatArray:
        return np.asarray(np.square(ratio + np.expm1(-alpha[:, None] * size)).mean(axis=1))

    # The sum of squares can have several minima: a fine grid finds the lowest one's valley.
    positive = size[size > 0]
    grid = np.geomspace(1e-9 / positive.max(), 40.0 / positive.min(), 4001)
    grid = np.concatenate([[0.0], grid])
    best = int(squares(grid).argmin())
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, grid.size - 1)]
    for _ in range(100):
        inner = high - _GOLDEN * (high - low)
        outer = low + _GOLDEN * (high - low)
        at_inner, at_outer = squares(np.array([inner, outer]))
        low, high = (low, outer) if at_inner <= at_outer else (inner, high)
    candidates = np.array([0.0, grid[best], (low + high) / 2])
    errors = squares(candidates)
    chosen = int(errors.argmin())
    return HitRatioFit(float(candidates[chosen]), math.sqrt(float(errors[chosen])))


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
