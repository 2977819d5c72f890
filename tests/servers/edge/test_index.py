from __future__ import annotations

import numpy as np
import pytest

from servers.edge.index import HAS_FAISS, NOWHERE, IndexSize, SketchIndex

BYTES = 16


def keys(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, BYTES), dtype=np.uint8)


def add(index, sketches, client=1, tokens=None, verified=True):
    count = len(sketches)
    clients = np.full(count, client) if np.isscalar(client) else client
    ids = np.arange(count) if tokens is None else np.asarray(tokens)
    index.add(sketches, clients, ids, np.full(count, verified))


def brute_force(entries, query, k):
    """(distance, token) of the k nearest, one bit at a time."""
    found = []
    for token, entry in entries:
        bits = sum(bin(int(a) ^ int(b)).count("1") for a, b in zip(entry, query, strict=True))
        found.append((bits, token))
    return sorted(found)[:k]


@pytest.mark.parametrize("count", [0, 3, 200])
def test_nearest_equals_brute_force(count):
    index, entries, queries = SketchIndex(BYTES), keys(count), keys(7, seed=1)
    add(index, entries)
    near = index.nearest(queries, 5)
    for row, query in enumerate(queries):
        expected = brute_force(list(enumerate(entries)), query, 5)
        there = near.slots[row] >= 0
        assert near.distances[row][there].tolist() == [bits for bits, _ in expected]
        assert (near.distances[row][~there] == NOWHERE).all()
        for slot, bits in zip(near.slots[row][there], near.distances[row][there], strict=True):
            token = index.tokens[slot]
            assert (bits, token) in brute_force(list(enumerate(entries)), query, count)


def test_the_same_client_and_context_replaces_others_do_not():
    index, key = SketchIndex(BYTES), keys(1)
    add(index, key, 1, [5])
    add(index, key, 1, [6])
    add(index, key, 2, [7])
    near = index.nearest(key, 4)
    found = near.slots[0][near.slots[0] >= 0]
    assert sorted(index.tokens[found]) == [6, 7] and len(index) == 2


def test_a_flood_replaces_only_its_own():
    index = SketchIndex(BYTES, IndexSize(capacity=100, quota=40))
    honest = keys(30, seed=9)
    add(index, honest, 1)
    memory = index.memory
    for seed in range(20):
        add(index, keys(500, seed), 66)
    assert index.count(66) == 40 and index.count(1) == 30 and len(index) == 70
    near = index.nearest(honest, 1)
    assert (near.distances[:, 0] == 0).all() and (index.clients[near.slots[:, 0]] == 1).all()
    assert index.memory == memory


def test_when_full_the_largest_holder_makes_room():
    index = SketchIndex(BYTES, IndexSize(capacity=10, quota=9))
    add(index, keys(2, 1), 1)
    add(index, keys(8, 2), 2)
    add(index, keys(3, 3), 3)
    assert [index.count(client) for client in (1, 2, 3)] == [2, 5, 3]
    remaining = index.nearest(keys(8, 2), 1).distances[:, 0] == 0
    assert remaining.tolist() == [False] * 3 + [True] * 5


def test_a_client_that_holds_everything_can_replace_its_last_entry():
    index = SketchIndex(BYTES, IndexSize(capacity=1, quota=1))
    for seed in range(3):
        add(index, keys(1, seed), seed)
    assert len(index) == 1 and index.count(2) == 1 and index.count(0) == 0


def test_old_entries_leave_unless_renewed():
    index = SketchIndex(BYTES, IndexSize(max_age=2))
    old, renewed = keys(1, 1), keys(1, 2)
    add(index, old)
    add(index, renewed)
    index.tick()
    add(index, renewed)
    index.tick()
    assert len(index) == 2
    index.tick()
    assert len(index) == 1 and index.nearest(renewed, 1).distances[0, 0] == 0
    assert index.nearest(old, 1).distances[0, 0] > 0


def test_dropped_clients_are_gone_and_their_room_is_used_again():
    index = SketchIndex(BYTES, IndexSize(capacity=20, quota=20))
    add(index, keys(10, 1), 1)
    add(index, keys(10, 2), 2)
    index.drop_client(1)
    index.drop_client(42)
    assert len(index) == 10
    assert set(index.clients[index.nearest(keys(10, 1), 10).slots.reshape(-1)]) == {2}
    add(index, keys(10, 3), 3)
    assert len(index) == 20


@pytest.mark.skipif(not HAS_FAISS, reason="faiss is not installed")
def test_faiss_finds_what_exact_search_finds_while_entries_come_and_go():
    """Near contexts: an inverted file may miss far ones, and is not asked for them."""
    random = np.random.default_rng(0)
    size = {"capacity": 3000, "quota": 1500, "max_age": 3}
    exact = SketchIndex(32, IndexSize(**size, exact_below=10_000))
    filed = SketchIndex(32, IndexSize(**size, exact_below=50))
    centres = random.integers(0, 256, (300, 32), dtype=np.uint8)
    for step in range(12):
        flips = np.packbits(random.random((700, 256)) < 0.03, axis=1)
        chosen = centres[random.integers(0, 300, 700)] ^ flips
        for index in (exact, filed):
            add(index, chosen, step % 4, np.arange(700))
        if step == 6:
            exact.drop_client(1)
            filed.drop_client(1)
        exact.tick()
        filed.tick()
        queries = chosen[:50] ^ np.packbits(random.random((50, 256)) < 0.01, axis=1)
        left, right = exact.nearest(queries, 8), filed.nearest(queries, 8)
        near = left.distances <= 20
        assert near.any(axis=1).all()
        assert (left.distances[:, 0] == right.distances[:, 0]).all()
        assert (left.distances == right.distances)[near].mean() > 0.95
        live = right.slots >= 0
        assert (filed._born[right.slots[live]] > filed._now - 5).all()


@pytest.mark.parametrize("field", ["capacity", "quota", "exact_below", "lists_probed"])
def test_bounds_must_be_positive(field):
    with pytest.raises(ValueError, match=field):
        IndexSize(**{field: 0})


def test_bad_widths_are_refused():
    with pytest.raises(ValueError, match="max_age"):
        IndexSize(max_age=-1)
    with pytest.raises(ValueError, match="key_bytes"):
        SketchIndex(12)
    with pytest.raises(ValueError, match="keys"):
        add(SketchIndex(8), keys(1))
