import math

import numpy as np
import pytest
import torch
from scipy import stats

from hlm.randomness import (
    DrawKeys,
    Purpose,
    exponentials,
    portable_log,
    session_keys,
    uniforms,
)

RECORDED_UNIFORMS = [
    "0x1.61150c14cb43fp-1",
    "0x1.e3ebdb89bbb78p-4",
    "0x1.852d29d7e03c5p-1",
]
RECORDED_EXPONENTIALS = [
    "0x1.ce372671364dbp-3",
    "0x1.ef31d4490140bp-3",
    "0x1.8f185e39f4f4ep+0",
]


def keys(sessions, positions, seed=2024):
    return DrawKeys(seed, np.array(sessions, dtype=np.uint64), np.array(positions))


def test_values_are_those_of_every_machine():
    # recorded once; a change of generator, counter layout or conversion must not pass unseen
    drawn = uniforms(keys([3], [5]), Purpose.DRAFT, 3)[0].tolist()
    raw = np.random.Philox(
        key=np.array([2024, 3], dtype=np.uint64), counter=np.array([0, 5, 1, 0], dtype=np.uint64)
    ).random_raw(3)
    assert drawn == [(int(value) // 2**12 + 0.5) / 2**52 for value in raw]
    assert [value.hex() for value in drawn] == RECORDED_UNIFORMS
    rung = exponentials(keys([3], [5]), 3)[0].tolist()
    assert [value.hex() for value in rung] == RECORDED_EXPONENTIALS


def test_a_row_does_not_depend_on_its_batch():
    batch = keys([9, 1, 4], [0, 7, 2])
    together = uniforms(batch, Purpose.ACCEPT, 5)
    clocks = exponentials(batch, 33)
    for row in range(3):
        alone = batch.select(np.array([row]))
        assert torch.equal(uniforms(alone, Purpose.ACCEPT, 5), together[row : row + 1])
        assert torch.equal(exponentials(alone, 33), clocks[row : row + 1])
    assert torch.equal(
        uniforms(batch.select(torch.tensor([True, False, True])), Purpose.ACCEPT, 5),
        together[[0, 2]],
    )


def test_a_longer_draw_starts_with_the_shorter():
    assert torch.equal(
        uniforms(keys([1], [1]), Purpose.DRAFT, 9)[:, :4],
        uniforms(keys([1], [1]), Purpose.DRAFT, 4),
    )


def test_every_part_of_the_name_changes_the_numbers():
    base = uniforms(keys([1], [1]), Purpose.DRAFT, 4)
    others = [
        uniforms(keys([1], [1], seed=2025), Purpose.DRAFT, 4),
        uniforms(keys([2], [1]), Purpose.DRAFT, 4),
        uniforms(keys([1], [2]), Purpose.DRAFT, 4),
        uniforms(keys([1], [1]), Purpose.ACCEPT, 4),
    ]
    values = {tuple(other[0].tolist()) for other in others}
    assert len(values | {tuple(base[0].tolist())}) == 5


def test_uniforms_are_uniform_across_sessions_positions_and_indices():
    # Kolmogorov-Smirnov at three ways of walking; false alarm 3 * 1e-4
    by_session = uniforms(keys(range(2000), [3] * 2000), Purpose.ROUTE, 1)[:, 0]
    by_position = uniforms(keys([3] * 2000, range(2000)), Purpose.ROUTE, 1)[:, 0]
    by_index = uniforms(keys([3], [3]), Purpose.ROUTE, 20_000)[0]
    for sample in (by_session, by_position, by_index):
        assert stats.kstest(sample.numpy(), "uniform").pvalue > 1e-4
    # neighbours are uncorrelated: |r| * sqrt(n) < 4 fails once in 16,000
    pairs = np.corrcoef(by_position[:-1], by_position[1:])[0, 1]
    assert abs(pairs) * math.sqrt(2000) < 4


def test_uniforms_are_strictly_inside_whatever_the_bits(monkeypatch):
    class Extreme:
        def __init__(self, key, counter):
            pass

        def random_raw(self, count):
            return np.array([0, 2**64 - 1], dtype=np.uint64)[:count]

    monkeypatch.setattr(np.random, "Philox", Extreme)
    low, high = uniforms(keys([0], [0]), Purpose.DRAFT, 2)[0].tolist()
    assert 0 < low < 1e-15
    assert 1 - 1e-15 < high < 1
    clocks = exponentials(keys([0], [0]), 2)
    assert bool(((clocks > 0) & torch.isfinite(clocks)).all())


def test_portable_log_is_the_logarithm():
    values = uniforms(keys([0], [0]), Purpose.DRAFT, 50_000)[0].numpy()
    values = np.concatenate([values, [2.0**-53, 0.5, 1 - 2.0**-53, 1.0, 2.0, 1e300, 2.3e-308]])
    expected = np.array([math.log(value) for value in values])
    assert np.all(np.abs(portable_log(values) - expected) <= 4 * np.spacing(np.abs(expected)))


def test_exponentials_are_exponential():
    clocks = exponentials(keys([7], [7]), 20_000)[0].numpy()
    assert stats.kstest(clocks, "expon").pvalue > 1e-4  # false alarm 1e-4


@pytest.mark.parametrize(
    ("seed", "sessions", "positions", "message"),
    [
        (-1, [0], [0], "seed"),
        (2**64, [0], [0], "seed"),
        (0, [0, 1], [0], "shape"),
        (0, [0], [-1], "positions"),
        (0, [-1], [0], "sessions"),
        (0, [0.5], [0], "sessions"),
    ],
)
def test_names_out_of_range_are_refused(seed, sessions, positions, message):
    with pytest.raises(ValueError, match=message):
        DrawKeys(seed, np.array(sessions), np.array(positions))


def test_counts_out_of_range_are_refused():
    with pytest.raises(ValueError, match="count"):
        uniforms(keys([0], [0]), Purpose.DRAFT, 0)


def test_no_rows_are_no_numbers():
    assert uniforms(keys([], np.array([], dtype=np.int64)), Purpose.DRAFT, 4).shape == (0, 4)


def test_session_keys_tell_texts_and_devices_apart():
    ends = [0, 1, 2**32 - 1]
    keys = [session_keys(client, np.array(ends)) for client in ends]
    assert len(np.unique(np.concatenate(keys))) == 9
    assert keys[2][2] == np.uint64(2**64 - 1)
