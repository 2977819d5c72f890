"""Counts of runs: against a plain loop, summed and refused."""

from __future__ import annotations

import numpy as np
import pytest

from hlm.spans import checked_counts, count_runs
from hlm.spans.runs import COUNTS, chances_of

RANDOM = np.random.default_rng(0)
SURE = RANDOM.random((12, 9)) < 0.4
LENGTHS = RANDOM.integers(0, 10, 12)


def test_counts_are_those_of_a_loop() -> None:
    expected = np.zeros(COUNTS)
    for text, length in zip(SURE, LENGTHS, strict=True):
        row = 0
        for sure in text[:length]:
            expected[row, int(sure)] += 1
            row = 1 + int(sure)
    assert count_runs(SURE, LENGTHS).tolist() == expected.tolist()


def test_counts_of_clients_add_up_and_travel_flat() -> None:
    travelled = checked_counts(count_runs(SURE[:5]).ravel() + count_runs(SURE[5:]).ravel())
    assert travelled.tolist() == count_runs(SURE).tolist()


@pytest.mark.parametrize("vector", [np.ones(3), np.full(6, -1.0), np.full(6, np.nan)])
def test_what_is_no_list_of_counts_is_refused(vector: np.ndarray) -> None:
    with pytest.raises(ValueError, match="take-back counts"):
        checked_counts(vector)


def test_a_row_never_counted_is_like_all_of_them_and_something_must_be() -> None:
    few = np.array([[0.0, 0.0], [3.0, 1.0], [0.0, 0.0]])
    assert chances_of(few).tolist() == [0.25, 0.25, 0.25]
    with pytest.raises(ValueError, match="all 0"):
        chances_of(np.zeros(COUNTS))
