"""Closed forms of fading channels and lossy links against Monte Carlo and quadrature."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from hlm.channels import LINKS, Link, RayleighChannel, Trace

quick = settings(max_examples=100, deadline=None)
FALSE_ALARM_SIGMAS = 5.0  # a two-sided normal tail of 5.7e-7 for every statistical check


def assert_mean(samples: np.ndarray, expected: float) -> None:
    error = samples.std(ddof=1) / math.sqrt(samples.size)
    assert abs(samples.mean() - expected) < FALSE_ALARM_SIGMAS * error


@pytest.mark.parametrize("snr_db", [-10, 0, 10, 25])
def test_channel_against_monte_carlo(snr_db: float) -> None:
    channel = RayleighChannel.from_decibels(1e6, snr_db)
    rates = channel.sample_rates(200_000, np.random.default_rng(snr_db + 50))
    assert_mean(rates, channel.ergodic_rate())
    for quantile in (0.01, 0.1, 0.5):
        rate = channel.outage_rate(quantile)
        assert channel.outage_probability(rate) == pytest.approx(quantile, rel=1e-12)
        assert_mean((rates < rate).astype(float), quantile)


@quick
@given(st.floats(-30, 60))
def test_ergodic_rate_against_quadrature(snr_db: float) -> None:
    channel = RayleighChannel.from_decibels(1.0, snr_db)
    # By parts, and with gain = e^t, the integrand is smooth and dies out at both ends, where the
    # trapezoidal rule is exact to rounding.
    place = np.linspace(-45.0, 5.0, 20_001)
    gain = np.exp(place)
    integrand = channel.snr * gain / (1 + channel.snr * gain) * np.exp(-gain)
    mean = float(np.trapezoid(integrand, place)) / math.log(2)
    assert channel.ergodic_rate() == pytest.approx(mean, rel=1e-7)


@quick
@given(st.floats(1e-12, 600))
def test_ergodic_rate_against_the_exponential_integral(x: float) -> None:
    exact = special.exp1(x) * math.exp(x) / math.log(2)
    assert RayleighChannel(1.0, 1 / x).ergodic_rate() == pytest.approx(exact, rel=1e-12)


def test_channel_corners() -> None:
    channel = RayleighChannel(1e6, 100.0)
    assert channel.rate(0.0) == 0.0
    assert channel.rate(1.0) == pytest.approx(1e6 * math.log2(101))
    assert channel.outage_probability(0.0) == 0.0
    assert channel.outage_probability(1e12) == 1.0
    assert channel.outage_rate(0.0) == 0.0
    assert channel.ergodic_rate() < channel.rate(1.0)  # Jensen
    faint = RayleighChannel(1.0, 1e-6)  # log2(1 + x) ~ x / ln 2
    assert faint.ergodic_rate() == pytest.approx(1e-6 / math.log(2), rel=1e-5)
    link = channel.link("cell", 0.05, outage=0.1)
    assert (link.loss, link.rate_bits_per_s) == (0.1, channel.outage_rate(0.1))
    assert channel.link("cell", 0.05).rate_bits_per_s == channel.ergodic_rate()


@pytest.mark.parametrize(("loss", "packets"), [(0.01, 1), (0.1, 7), (0.5, 40), (0.9, 3)])
def test_repeats_against_monte_carlo(loss: float, packets: int) -> None:
    link = Link("lossy", 1e6, 0.1, loss=loss)
    random = np.random.default_rng(7)
    tries = random.geometric(1 - loss, (100_000, packets))
    assert_mean(tries.max(axis=1) - 1.0, link.expected_repeats(packets))
    # Time of one message: each try of each packet on air, half a round trip, and repeats.
    on_air = tries.sum(axis=1) * 8 * link.packet_bytes / link.rate_bits_per_s
    seconds = on_air + link.round_trip_s * (tries.max(axis=1) - 0.5)
    assert_mean(seconds, link.up_seconds(packets * link.packet_bytes))


def test_repeats_of_one_packet_are_geometric() -> None:
    for loss in (1e-9, 0.3, 0.99):
        expected = Link("x", 1.0, 1.0, loss=loss).expected_repeats(1)
        assert expected == pytest.approx(loss / (1 - loss), rel=1e-9)


def test_links_of_the_benchmarks() -> None:
    slow, middle, fast = LINKS
    assert slow.exchange_seconds(1250, 125) == pytest.approx(0.060 + 0.010 + 0.001)
    assert middle.exchange_seconds(1250, 0) == pytest.approx(0.030 + 0.001)
    assert fast.exchange_seconds(0, 0) == pytest.approx(0.005)
    skewed = Link("skewed", 1e6, 0.0, down_bits_per_s=1e7, overhead_bytes=40)
    assert skewed.up_seconds(2000) == pytest.approx(8 * 2080 / 1e6)
    assert skewed.down_seconds(2000) == pytest.approx(8 * 2080 / 1e7)
    assert skewed.down_seconds(0) == 0.0


def test_time_of_a_method() -> None:
    trace = Trace(100, 20, 20 * 1250, 20 * 125, slm_seconds=0.5, llm_seconds=0.3)
    assert trace.seconds(LINKS[0]) == pytest.approx(0.8 + 20 * 0.071)
    assert trace.seconds_per_token(LINKS[0]) * 100 == pytest.approx(trace.seconds(LINKS[0]))
    assert trace.tokens_per_second(LINKS[0]) == pytest.approx(100 / (0.8 + 20 * 0.071))
    alone = Trace(100, 0, 0, 0, slm_seconds=0.5, llm_seconds=0.0)
    assert {alone.seconds(link) for link in LINKS} == {0.5}
    assert Trace(1, 0, 0, 0, 0.0, 0.0).tokens_per_second(LINKS[0]) == math.inf


@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("bandwidth_hz", lambda: RayleighChannel(0.0, 1.0)),
        ("snr", lambda: RayleighChannel(1.0, math.nan)),
        ("probability", lambda: RayleighChannel(1.0, 1.0).outage_rate(1.0)),
        ("rate_bits_per_s", lambda: RayleighChannel(1.0, 1.0).outage_probability(-1.0)),
        ("rate_bits_per_s", lambda: Link("x", 0.0, 0.1)),
        ("round_trip_s", lambda: Link("x", 1.0, -0.1)),
        ("loss", lambda: Link("x", 1.0, 0.1, loss=1.0)),
        ("packet_bytes", lambda: Link("x", 1.0, 0.1, packet_bytes=0)),
        ("overhead_bytes", lambda: Link("x", 1.0, 0.1, overhead_bytes=-1)),
        ("down_bits_per_s", lambda: Link("x", 1.0, 0.1, down_bits_per_s=0.0)),
        ("message_bytes", lambda: LINKS[0].up_seconds(-1)),
        ("tokens", lambda: Trace(0, 0, 0, 0, 0.0, 0.0)),
        ("llm_seconds", lambda: Trace(1, 0, 0, 0, 0.0, -1.0)),
        ("messages", lambda: Trace(1, 0, 5, 0, 0.0, 0.0)),
    ],
)
def test_bad_values_are_named(name: str, build: object) -> None:
    with pytest.raises(ValueError, match=name):
        build()  # type: ignore[operator]
