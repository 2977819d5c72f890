import math

import pytest

from hlm.channels import Link, Times


@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("rate_bits_per_s", lambda: Link("x", 0.0, 0.1)),
        ("rate_bits_per_s", lambda: Link("x", math.nan, 0.1)),
        ("round_trip_s", lambda: Link("x", 1.0, -0.1)),
    ],
)
def test_bad_values_are_named(name: str, build: object) -> None:
    with pytest.raises(ValueError, match=name):
        build()  # type: ignore[operator]


def test_a_stream_pays_its_round_trip_once_and_then_the_slower_of_server_and_device() -> None:
    times = Times([Link("a", 8000.0, 0.060)])
    times.compute(1.0)
    times.exchange(10, 20, 0.5)
    assert times.now == pytest.approx(1 + 0.060 + 0.030 + 0.5)
    begin = times.now[0]
    stream = times.stream(5, 5, 0.1)
    assert times.now[0] - begin == pytest.approx(0.060 + 0.010 + 0.1)
    opened = times.now[0]
    # The server writes on from when it sent the first frame, which took 5 ms to carry.
    stream.frame(2, 0.1)
    assert times.now[0] - opened == pytest.approx(0.1 - 0.005 + 0.002)
    before = times.now[0]
    times.compute(0.5)
    stream.frame(2, 0.1)
    assert times.now[0] - before == pytest.approx(0.5)
    # It has written for .5 s less .1, and for the way of two messages, when it hears of the stop.
    stream.stop(credit=50)
    assert times.overshoot.tolist() == [5]
    # The next request is answered after the step that had begun.
    assert times.busy == pytest.approx(times.now + 0.030, abs=0.1)
    begin = times.busy[0]
    times.exchange(0, 0, 0.2)
    assert times.now[0] == pytest.approx(begin + 0.2 + 0.030)
    stream.stop(credit=3)
    assert times.overshoot.tolist() == [6]
