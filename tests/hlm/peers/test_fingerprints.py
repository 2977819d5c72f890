from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hlm.peers.agreement import SketchMaker
from hlm.peers.fingerprints import FINGERPRINTS, fingerprints, smallest


def test_equal_contexts_and_only_those_have_equal_fingerprints():
    random = np.random.default_rng(0)
    contexts = random.normal(size=(300, 32))
    near = contexts + 0.02 * random.normal(size=contexts.shape)  # cosine .9998
    maker = SketchMaker(32)
    first, again, close = (
        fingerprints(maker.sketch(each)[0]) for each in (contexts, 3 * contexts, near)
    )
    assert np.array_equal(first, again)
    assert len(np.unique(first)) == 300  # 45,000 pairs of 2**24: equal by chance .003
    # (1 - acos(.9998) / pi) ** 48 = .74 agree; seeded.
    assert 0.6 < (first == close).mean() < 0.9


def test_they_are_spread_evenly():
    found = fingerprints(np.random.default_rng(1).integers(0, 256, (40_000, 8), dtype=np.uint8))
    counts = np.bincount(found * 16 // FINGERPRINTS, minlength=16)
    # Chi-square of 15 degrees: above 37.7 once in 1,000 times; seeded.
    assert ((counts - 2500) ** 2 / 2500).sum() < 37.7
    assert 0 <= found.min() and found.max() < FINGERPRINTS


def test_only_the_first_48_bits_count():
    sketch = np.arange(16, dtype=np.uint8)[None]
    changed = sketch.copy()
    changed[0, 6:] = 0
    assert np.array_equal(fingerprints(sketch), fingerprints(changed))
    with pytest.raises(ValueError, match="at least 6"):
        fingerprints(sketch[:, :4])


@given(st.lists(st.integers(0, 99)), st.lists(st.integers(0, 99)), st.integers(1, 9))
def test_the_smallest_of_both(first, second, count):
    found = smallest(np.array(first, np.int64), np.array(second, np.int64), count)
    assert found.tolist() == sorted(set(first) | set(second))[:count]


def test_their_overlap_estimates_what_is_in_common():
    """Two devices with 300 contexts each, 100 of them common: a fifth of all 500."""
    random = np.random.default_rng(2)
    shares = []
    for _ in range(200):
        pool = random.choice(FINGERPRINTS, 500, replace=False)
        left, right = smallest(pool[:300], pool[:0], 16), smallest(pool[200:], pool[:0], 16)
        union = smallest(left, right, 16)
        shares.append(np.isin(union, np.intersect1d(left, right)).mean())
    # Standard error of the mean .007; further off than .03 less than once in 10,000 times; seeded.
    assert abs(np.mean(shares) - 0.2) < 0.03
