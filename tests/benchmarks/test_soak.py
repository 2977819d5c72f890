"""The soak judges memory, and runs."""

from __future__ import annotations

import pytest

from benchmarks.soak import ALLOWED, SAMPLES, growth, soak
from fedhlm_app.settings import Settings


@pytest.mark.parametrize(
    ("sizes", "flat"),
    [
        ([100] * 60, True),
        # What is taken once, and what comes and goes.
        ([50, 80, 100] * 4 + [100] * 48, True),
        ([100, 110] * 30, True),
        # A leak, however slow it began.
        ([100 + sample for sample in range(60)], False),
        ([100] * 50 + [130] * 10, False),
    ],
)
def test_memory_is_flat_where_it_no_longer_grows(sizes, flat):
    assert (growth(sizes) <= ALLOWED) == flat


@pytest.mark.slow
def test_a_short_soak_runs():
    found = soak(6.0, 2, 20, Settings.from_sources({}, {}))
    assert len(found["memory_MB"]) == SAMPLES
    assert found["verdicts"] > 0 and 0 < found["growth"] < 1.5
