from __future__ import annotations

import numpy as np
import pytest

from clients.records import Stage
from clients.resolvers.cache import CacheConfig, CacheResolver, TokenCache
from clients.resolvers.chain import Resolution, resolve_in_turn
from tests.escalations import escalate, run

VOCAB, SIZE = 30, 16
EMBEDDINGS = np.random.default_rng(3).normal(size=(VOCAB, SIZE)).astype(np.float32)


def contexts(count, seed=0):
    return np.random.default_rng(seed).normal(size=(count, SIZE)).astype(np.float32)


def turned(hidden, cosine, seed=1):
    """Vectors at a given cosine to each row."""
    unit = hidden / np.linalg.norm(hidden, axis=1, keepdims=True)
    other = contexts(len(hidden), seed)
    other -= (other * unit).sum(1, keepdims=True) * unit
    other /= np.linalg.norm(other, axis=1, keepdims=True)
    return (cosine * unit + np.sqrt(1 - cosine**2) * other).astype(np.float32)


def cache(mode="context", **options):
    return TokenCache(EMBEDDINGS, CacheConfig(mode=mode, **options))


def test_looks_up_the_nearest_context_as_a_loop_would():
    store, keys, tokens = cache(context_gate=0.5, reuse_gate=0.8), contexts(40), np.arange(40) % 30
    store.add(keys, tokens)
    queries = np.concatenate([turned(keys[:10], 0.9), turned(keys[10:20], 0.6), contexts(10, 8)])
    drafts = np.concatenate([tokens[:20], np.zeros(10, np.int64)])
    drafts[[3, 13]] = 29
    for query, draft, found in zip(queries, drafts, store.look_up(queries, drafts), strict=True):
        cosines = [
            float(query @ key) / float(np.linalg.norm(query) * np.linalg.norm(key)) for key in keys
        ]
        best = int(np.argmax(cosines))
        gate = 0.5 if tokens[best] == draft else 0.8
        assert found == (tokens[best] if cosines[best] >= gate else -1)


@pytest.mark.parametrize(
    ("cosine", "same", "other"), [(0.998, 4, 4), (0.99, 4, -1), (0.97, -1, -1)]
)
def test_two_gates(cosine, same, other):
    store, key = cache(), contexts(1)
    store.add(key, np.array([4]))
    query = turned(key, cosine)
    assert store.look_up(query, np.array([4]))[0] == same
    assert store.look_up(query, np.array([5]))[0] == other


def test_paper_mode_accepts_drafts_close_to_any_cached_token():
    store = cache("paper", similarity=0.5)
    assert store.look_up(None, np.arange(VOCAB)).tolist() == [-1] * VOCAB
    store.add(None, np.array([4, 9]))
    unit = EMBEDDINGS / np.linalg.norm(EMBEDDINGS, axis=1, keepdims=True)
    close = (unit @ unit[[4, 9]].T).max(axis=1) >= 0.5
    found = store.look_up(None, np.arange(VOCAB))
    assert np.array_equal(found, np.where(close, np.arange(VOCAB), -1))
    assert close.sum() > 2 or found[4] == 4


def test_least_recently_used_leaves():
    store, keys = cache(capacity=4), contexts(6)
    for i in range(4):
        store.add(keys[i : i + 1], np.array([i]))
    assert store.look_up(keys[:1], np.array([0])).tolist() == [0]
    store.add(keys[4:6], np.array([4, 5]))
    assert len(store) == 4
    assert store.look_up(keys, np.zeros(6, np.int64)).tolist() == [0, -1, -1, 3, 4, 5]


def test_more_than_fits_at_once_keeps_the_newest():
    store, keys = cache(capacity=3), contexts(10)
    store.add(keys, np.arange(10))
    assert store.tokens.tolist() == [7, 8, 9]


def test_the_same_context_takes_the_newer_token():
    store, key = cache(), contexts(1)
    store.add(np.repeat(key, 3, axis=0), np.array([1, 2, 3]))
    store.add(key * 5, np.array([4]))
    assert store.tokens.tolist() == [4]


def test_contexts_without_direction_are_neither_kept_nor_found():
    store, keys = cache(), contexts(3)
    keys[0], keys[1, 2] = 0, np.nan
    store.add(keys, np.array([1, 2, 3]))
    assert store.tokens.tolist() == [3]
    assert store.look_up(keys, np.array([1, 2, 3])).tolist() == [-1, -1, 3]


def test_a_hit_costs_the_llm_nothing_and_a_miss_is_remembered():
    resolver = CacheResolver(cache())
    keys, truth = contexts(5), np.array([3, 4, 5, 6, 7])
    first, oracle = run(resolver, keys, [3, 0, 0, 0, 0], truth)
    assert oracle.rows == 5
    second, oracle = run(resolver, keys, [3, 0, 0, 0, 0], truth)
    assert oracle.rows == 0 and second.tokens.tolist() == truth.tolist()
    assert (second.stages == Stage.CACHE).all()
    assert (first.stages != Stage.CACHE).all()


def test_only_what_the_llm_decided_is_remembered():
    resolver = CacheResolver(cache())
    keys = contexts(2)
    run(resolver, keys, [1, 2], [1, 2])
    run(resolver, keys, [1, 2], [9, 9])
    assert len(resolver.cache) == 2 and sorted(resolver.cache.tokens) == [1, 2]


def test_audits_find_wrong_hits_and_close_the_cache():
    resolver = CacheResolver(cache(), audit_rate=0.5, max_false_hits=0.2)
    keys = contexts(200)
    run(resolver, keys, np.zeros(200), np.ones(200))
    final, oracle = run(resolver, keys, np.zeros(200), np.full(200, 2))
    hits = resolver.tier.false_hits
    assert 60 < hits.checked == hits.wrong == oracle.rows < 140
    assert resolver.tier.closed and (final.stages == Stage.CACHE).sum() == 200 - oracle.rows
    closed, oracle = run(resolver, keys, np.zeros(200), np.full(200, 2))
    assert oracle.rows == 200 and not (closed.stages == Stage.CACHE).any()


def test_without_a_verdict_the_draft_stays_unresolved():
    resolver = CacheResolver(cache())
    final = resolve_in_turn([resolver], escalate(contexts(3), [1, 2, 3]))
    assert (final.stages == Stage.UNRESOLVED).all() and len(resolver.cache) == 0


@pytest.mark.parametrize("mode", ["context", "paper"])
def test_restored_from_its_state_it_answers_the_same(mode):
    store, keys = cache(mode), contexts(20)
    store.add(keys, np.arange(20))
    store.look_up(keys[:3], np.arange(3))
    kept = {name: values.copy() for name, values in store.state().items()}
    again = cache(mode)
    again.restore(kept)
    drafts = np.arange(20)[::-1]
    assert np.array_equal(store.look_up(keys, drafts), again.look_up(keys, drafts))
    smaller = cache(mode, capacity=5)
    smaller.restore(kept)
    assert len(smaller) == 5 and {0, 1, 2} & set(smaller.tokens.tolist())


def test_bad_states_are_refused():
    store = cache()
    good = store.state()
    for name, value, message in (
        ("keys", np.zeros((2, SIZE)), "expected"),
        ("tokens", np.array([VOCAB]), "expected|outside"),
    ):
        with pytest.raises(ValueError, match=message):
            store.restore(good | {name: value})
    one = {"keys": np.full((1, SIZE), np.nan), "tokens": np.array([1]), "used": np.array([1])}
    one["prompts"] = np.array([1])
    with pytest.raises(ValueError, match="finite"):
        store.restore(one)
    with pytest.raises(ValueError, match="lacks"):
        store.restore({"keys": good["keys"]})


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"mode": "off"}, "cache-mode"),
        ({"capacity": 0}, "cache-size"),
        ({"similarity": -2}, "similarity"),
        ({"context_gate": 0.999}, "context-gate"),
    ],
)
def test_bad_settings_are_refused(options, name):
    with pytest.raises(ValueError, match=name):
        CacheConfig(**options)
    with pytest.raises(ValueError, match="hidden"):
        cache().add(None, np.array([1]))


def test_paper_mode_holds_what_the_device_kept_and_what_anybody_decided():
    """FedHLM V-A-3: "a local token cache of previously inferred or received tokens"."""
    for mode, expected in (("paper", [2, 3, 7, 11, 20]), ("context", [7, 11])):
        resolver = CacheResolver(cache(mode))
        escalation = escalate(contexts(4), [1, 2, 7, 9])
        final = Resolution.none(4)
        final.tokens[:] = 20, 2, 7, 11
        final.stages[:] = Stage.PEER, Stage.UNRESOLVED, Stage.LLM_ACCEPTED, Stage.LLM_RESAMPLED
        resolver.learn(escalation, final, None)
        resolver.inferred(np.array([3]))
        assert sorted(resolver.cache.tokens.tolist()) == expected


def test_answers_from_the_same_prompt_are_counted_apart():
    store, keys = cache(), contexts(3)
    store.add(keys, np.arange(3), np.array([7, 7, 8]))
    store.look_up(keys, np.zeros(3, np.int64), np.array([7, 9, 8]))
    assert store.copies == 2
    again = cache()
    again.restore(store.state())
    again.look_up(turned(keys, 0.5), np.zeros(3, np.int64), np.array([7, 7, 8]))
    assert again.copies == 0  # no answer, no copy
    again.add(keys[:1], np.array([5]), np.array([4]))  # the last who brought it counts
    again.look_up(keys, np.zeros(3, np.int64), np.array([4, 7, 8]))
    assert again.copies == 3
