from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hlm.peers.agreement import (
    NO_AGREEMENT,
    SketchMaker,
    centroids,
    cosine,
    degenerate,
    distance_of_cosine,
    hamming,
    unit_rows,
)

SIZE = 24


def vectors(rows, size=SIZE, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, size)).astype(np.float32)


def test_centroids_of_groups_equal_a_loop():
    embeddings, groups = vectors(40), np.random.default_rng(1).integers(0, 9, 40)
    result = centroids(embeddings, groups, 10)
    for group in range(10):
        members = [embeddings[i].astype(float) for i in range(40) if groups[i] == group]
        expected = sum(members) / len(members) if members else np.zeros(SIZE)
        assert np.allclose(result[group], expected)


def test_eq_10_is_the_cosine():
    first, second = vectors(20), vectors(20, seed=1)
    for left, right, value in zip(first, second, cosine(first, second), strict=True):
        dot = sum(float(a) * float(b) for a, b in zip(left, right, strict=True))
        lengths = math.sqrt(sum(float(a) ** 2 for a in left))
        lengths *= math.sqrt(sum(float(b) ** 2 for b in right))
        assert value == pytest.approx(dot / lengths, abs=1e-6)


@pytest.mark.parametrize("bad", [np.zeros(SIZE), np.full(SIZE, np.nan), np.full(SIZE, np.inf)])
def test_what_has_no_direction_agrees_with_nothing(bad):
    assert cosine(bad[None], vectors(1))[0] == NO_AGREEMENT
    assert cosine(vectors(1), bad[None])[0] == NO_AGREEMENT


def test_unit_rows():
    rows = unit_rows(np.vstack([vectors(5), np.zeros((1, SIZE))]))
    assert np.allclose(np.linalg.norm(rows, axis=1), [1, 1, 1, 1, 1, 0], atol=1e-6)


def test_hamming_counts_differing_bits():
    random = np.random.default_rng(0)
    queries = random.integers(0, 256, (6, 16), dtype=np.uint8)
    entries = random.integers(0, 256, (9, 16), dtype=np.uint8)
    result = hamming(queries, entries)
    for i, query in enumerate(queries):
        for j, entry in enumerate(entries):
            assert result[i, j] == np.unpackbits(query ^ entry).sum()


@given(st.floats(-1, 1), st.sampled_from([64, 128, 256]))
def test_gate_is_the_largest_distance_that_passes(gate, bits):
    most = distance_of_cosine(gate, bits)
    assert math.cos(math.pi * most / bits) >= gate - 1e-9
    if most < bits:
        assert math.cos(math.pi * (most + 1) / bits) < gate


def test_sketches_are_the_same_everywhere():
    ramp = np.arange(1.0, SIZE + 1)[None] - SIZE / 2
    sketch, usable = SketchMaker(SIZE, 64, seed=3).sketch(ramp)
    assert usable.all() and sketch.shape == (1, 8)
    # Written down once: a device and its edge server may run different releases of numpy.
    assert sketch.tobytes().hex() == "953afdd0b9c146a4"


def test_sketches_keep_the_angle():
    """False alarm: each estimate is Binomial(4096, angle / pi) / 4096; 5 sigma, 60 pairs: 4e-5."""
    bits = 4096
    maker = SketchMaker(SIZE, bits)
    first, second = vectors(60), vectors(60) + 0.7 * vectors(60, seed=2)
    left, right = maker.sketch(first)[0], maker.sketch(second)[0]
    share = np.diag(hamming(left, right)) / bits
    angle = np.arccos(np.clip(cosine(first, second), -1, 1)) / np.pi
    assert (np.abs(share - angle) < 5 * np.sqrt(angle * (1 - angle) / bits)).all()


def test_sketches_ignore_scale_and_depend_on_the_seed():
    rows = vectors(8)
    one, scaled = SketchMaker(SIZE).sketch(rows)[0], SketchMaker(SIZE).sketch(rows * 1000)[0]
    assert np.array_equal(one, scaled)
    assert not np.array_equal(one, SketchMaker(SIZE, seed=1).sketch(rows)[0])


def test_contexts_without_direction_have_no_sketch():
    rows = vectors(4)
    rows[0, 3], rows[1, 0], rows[2] = np.nan, np.inf, 0
    sketches, usable = SketchMaker(SIZE).sketch(rows)
    assert usable.tolist() == [False, False, False, True]
    assert degenerate(sketches).tolist() == [True, True, True, False]


@pytest.mark.parametrize(
    "arguments",
    [{"size": 0}, {"size": 4, "bits": 65}, {"size": 4, "bits": 0}, {"size": 4, "seed": -1}],
)
def test_bad_sketch_settings_are_refused(arguments):
    with pytest.raises(ValueError, match=next(reversed(arguments))):
        SketchMaker(**arguments)
    with pytest.raises(ValueError, match="hidden"):
        SketchMaker(4).sketch(vectors(2, 5))
