import math

import pytest

from hlm.channels import LINKS, Link


def test_a_message_pays_its_round_trip_and_its_bytes() -> None:
    slow, middle, fast = LINKS
    assert slow.seconds(1, 1250 + 125) == pytest.approx(0.060 + 0.010 + 0.001)
    assert middle.seconds(1, 1250) == pytest.approx(0.030 + 0.001)
    assert fast.seconds(1, 0) == pytest.approx(0.005)
    assert slow.seconds(20, 20 * 1375) == pytest.approx(20 * 0.071)
    assert slow.seconds(0, 0) == 0.0


@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("rate_bits_per_s", lambda: Link("x", 0.0, 0.1)),
        ("rate_bits_per_s", lambda: Link("x", math.nan, 0.1)),
        ("round_trip_s", lambda: Link("x", 1.0, -0.1)),
        ("messages", lambda: LINKS[0].seconds(-1, 0)),
        ("carried_bytes", lambda: LINKS[0].seconds(1, -1)),
    ],
)
def test_bad_values_are_named(name: str, build: object) -> None:
    with pytest.raises(ValueError, match=name):
        build()  # type: ignore[operator]
