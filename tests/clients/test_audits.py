"""Audits say the same of a tier whatever other tiers stand between it and the LLM."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from clients.records import Stage
from clients.resolvers.cache import CacheConfig, CacheResolver, TokenCache
from clients.resolvers.chain import resolve_in_turn
from clients.resolvers.edge import EdgeResolver
from clients.resolvers.edge_exchange import EdgeResolverConfig
from clients.resolvers.hits import FalseHits, verified_rows
from fedhlm_app.transport.transports import DirectTransport
from hlm.peers.agreement import SketchMaker
from servers.edge.config import EdgeConfig
from servers.edge.server import EdgeServer
from tests.escalations import Oracle, escalate

VOCAB, SIZE, ROWS, RATE = 30, 24, 3000, 0.3
EMBEDDINGS = np.random.default_rng(3).normal(size=(VOCAB, SIZE)).astype(np.float32)
TRUTH = np.random.default_rng(4).integers(0, VOCAB, ROWS)


def world():
    """Contexts, what the cache holds (-1: nothing), what peers and neighbours hold.

    Others know mostly what the cache has right: the easy places.
    """
    rng = np.random.default_rng(5)
    keys = rng.normal(size=(ROWS, SIZE)).astype(np.float32)
    other = (TRUTH + 1 + rng.integers(0, VOCAB - 1, ROWS)) % VOCAB
    wrong = rng.random(ROWS) < 0.2
    cached = np.where(rng.random(ROWS) < 0.6, np.where(wrong, other, TRUTH), -1)
    easy = np.where(cached < 0, 0.5, np.where(wrong, 0.1, 0.9))
    theirs = np.where(rng.random(ROWS) < 0.3, (other + 1) % VOCAB, TRUTH)
    known = rng.random(ROWS) < easy
    near = rng.random(ROWS) < 0.5
    return (
        keys,
        cached,
        np.where(known & near, theirs, -1),
        np.where(known & ~near, theirs, -1),
    )


def edge_server(number, keys, tokens, neighbours=()):
    edge = EdgeServer(number, EMBEDDINGS, EdgeConfig(min_peers=1))
    teacher = EdgeResolver(
        DirectTransport(edge), EdgeResolverConfig(0, VOCAB, 2), SketchMaker(SIZE)
    )
    held = np.flatnonzero(tokens >= 0)
    escalation = escalate(keys[held], np.zeros(len(held)))
    resolve_in_turn([teacher, Oracle(tokens[held])], escalation)
    teacher.flush()
    edge.neighbours = [DirectTransport(other) for other in neighbours]
    return edge


def tiers(cache_on, peers_on, neighbours_on, rate, limit=1.0):
    keys, cached, theirs, far = world()
    chain = {}
    if cache_on:
        store = TokenCache(EMBEDDINGS, CacheConfig(capacity=ROWS), SIZE)
        store.add(keys[cached >= 0], cached[cached >= 0])
        chain["cache"] = CacheResolver(store, rate, limit, before_peers=peers_on)
    if peers_on:
        others = [edge_server(1, keys, far)] if neighbours_on else []
        chain["edge"] = EdgeResolver(
            DirectTransport(edge_server(0, keys, theirs, others)),
            EdgeResolverConfig(1, VOCAB, 2),
            SketchMaker(SIZE),
            audit_rate=rate,
            max_false_hits=limit,
        )
    return keys, chain


def route(keys, chain, kept=None):
    """Final resolution of one step; `kept` bool [ROWS] marks audited kept drafts."""
    escalation = escalate(keys, np.zeros(ROWS))
    if kept is not None:
        escalation.audited[kept] = True
    return resolve_in_turn([*chain.values(), Oracle(TRUTH)], escalation)


@pytest.mark.parametrize(
    ("cache_on", "peers_on", "neighbours_on"),
    [c for c in itertools.product([True, False], repeat=3) if c[1] or (c[0] and not c[2])],
)
def test_the_share_of_wrong_hits_is_the_tiers_own(cache_on, peers_on, neighbours_on):
    """Five standard errors of a binomial for each tier: false alarm below 1e-6 a tier."""
    keys, silent = tiers(cache_on, peers_on, neighbours_on, rate=0.0)
    final = route(keys, silent)
    wrong = final.tokens != TRUTH
    keys, chain = tiers(cache_on, peers_on, neighbours_on, RATE)
    route(keys, chain)
    stages = {"cache": (Stage.CACHE,), "edge": (Stage.PEER, Stage.EDGE)}
    for name, resolver in chain.items():
        hits = np.isin(final.stages, stages[name])
        found, true = resolver.tier.false_hits, wrong[hits].mean()
        assert hits.sum() > 200 and 0.1 < true < 0.5
        # Every audit that was drawn has ended at the LLM.
        spread = 5 * np.sqrt(RATE * (1 - RATE) * hits.sum())
        assert abs(found.checked - RATE * hits.sum()) < spread
        rate, spread = found.wrong / found.checked, np.sqrt(true * (1 - true) / found.checked)
        assert abs(rate - true) < 5 * spread


@pytest.mark.parametrize(
    ("cache_on", "peers_on", "neighbours_on"), [(True, False, False), (True, True, True)]
)
def test_audits_of_kept_drafts_end_at_the_llm(cache_on, peers_on, neighbours_on):
    keys, chain = tiers(cache_on, peers_on, neighbours_on, rate=0.0)
    kept = np.random.default_rng(6).random(ROWS) < 0.1
    final = route(keys, chain, kept)
    assert verified_rows(final)[kept].all()
    assert not verified_rows(final)[~kept].all()


def test_while_the_cache_is_closed_peers_get_its_rows_and_its_rate_stays_unbiased():
    keys, chain = tiers(True, True, True, RATE, limit=0.9)
    closed = chain["cache"]
    closed.tier.most_wrong, closed.tier.false_hits = 0.01, FalseHits(10_000, 2_000)
    final = route(keys, chain)
    assert not (final.stages == Stage.CACHE).any()
    _, cached, theirs, far = world()
    known = (cached >= 0) & ((theirs >= 0) | (far >= 0))
    answered = np.isin(final.stages, (Stage.PEER, Stage.EDGE))
    assert 0.3 < answered[known].mean() < 0.7
    checked = closed.tier.false_hits.checked - 10_000
    wrong = closed.tier.false_hits.wrong - 2_000
    true = (cached != TRUTH)[cached >= 0].mean()
    assert abs(wrong / checked - true) < 5 * np.sqrt(true * (1 - true) / checked)


def test_what_an_evaluation_held_back_is_not_judged():
    keys, chain = tiers(True, True, False, rate=1.0)
    before = {name: resolver.tier.false_hits.checked for name, resolver in chain.items()}
    entries, resolvers = len(chain["cache"].cache), [*chain.values(), Oracle(TRUTH)]
    final = resolve_in_turn(resolvers, escalate(keys, np.zeros(ROWS)), learning=False)
    assert verified_rows(final).all() and len(chain["cache"].cache) == entries
    for name, resolver in chain.items():
        assert resolver.tier.false_hits.checked == before[name]
    resolve_in_turn(resolvers, escalate(keys[:5], np.zeros(5)))
    assert chain["cache"].tier.false_hits.checked <= 5
