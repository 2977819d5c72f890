from __future__ import annotations

import numpy as np
import pytest

from clients.records import Stage, Traffic
from clients.resolvers.chain import resolve_in_turn
from clients.resolvers.edge import EdgeResolver
from clients.resolvers.edge_exchange import EdgeResolverConfig
from clients.resolvers.link import BackOff
from clients.resolvers.opportunistic import OpportunisticConfig, OpportunisticRule, Price
from hlm.peers.agreement import SketchMaker
from hlm.transport import LinkDown
from servers.edge.config import EdgeConfig
from servers.edge.server import EdgeServer
from tests.escalations import Oracle, escalate, run

VOCAB, SIZE = 40, 24
EMBEDDINGS = np.random.default_rng(3).normal(size=(VOCAB, SIZE)).astype(np.float32)


class Link:
    def __init__(self, edge):
        self.edge, self.down, self.calls, self.bytes = edge, False, 0, 0

    def exchange(self, payload):
        self.calls += 1
        if self.down:
            raise LinkDown("cut by the test")
        answer = self.edge.handle(payload)
        self.bytes += len(payload) + len(answer)
        return answer


def contexts(count, seed=0):
    return np.random.default_rng(seed).normal(size=(count, SIZE)).astype(np.float32)


def cluster(clients=2, mode="context", edge=None, size=None, pause=0.0, rule=None, **options):
    edge = edge or EdgeServer(0, EMBEDDINGS, EdgeConfig(mode=mode, min_peers=1))
    links = [Link(edge) for _ in range(clients)]
    resolvers = [
        EdgeResolver(
            links[client],
            EdgeResolverConfig(client, VOCAB, size or clients),
            SketchMaker(SIZE) if mode == "context" else None,
            rule=None if rule is None else rule(),
            **options,
        )
        for client in range(clients)
    ]
    for resolver in resolvers:
        resolver.exchange.link.back_off = BackOff(pause)
    return edge, links, resolvers


def test_what_one_device_had_verified_serves_the_other():
    _, links, (first, second) = cluster()
    keys, truth, traffic = contexts(6), np.arange(6), Traffic()
    _, oracle = run(first, keys, np.zeros(6), truth, traffic)
    assert oracle.rows == 6
    traffic.include(first.flush())
    final, oracle = run(second, keys, np.zeros(6), truth, traffic)
    assert oracle.rows == 0 and final.tokens.tolist() == truth.tolist()
    assert (final.stages == Stage.PEER).all()
    assert traffic.edge == sum(link.bytes for link in links) and traffic.failures == 0


def test_own_tokens_do_not_come_back():
    _, _, (first, _) = cluster()
    keys, truth = contexts(6), np.arange(6)
    for _ in range(3):
        final, oracle = run(first, keys, np.zeros(6), truth)
        assert oracle.rows == 6 and not (final.stages == Stage.PEER).any()


def test_alone_it_never_asks():
    _, (link,), (only,) = cluster(1)
    run(only, contexts(4), np.zeros(4), np.arange(4))
    only.flush()
    assert link.calls == 0 and only.alone


def test_tokens_learnt_travel_with_the_next_question():
    edge, (link, _), (first, _) = cluster()
    run(first, contexts(4), np.zeros(4), np.arange(4))
    assert len(edge.index) == 0
    run(first, contexts(4, 1), np.zeros(4), np.arange(4))
    assert link.calls == 2 and len(edge.index) == 4


def test_waiting_tokens_travel_on_their_own_when_there_are_many():
    edge, (link, _), (first, _) = cluster()
    run(first, contexts(70), np.zeros(70), np.zeros(70))
    assert link.calls == 2 and len(edge.index) == 70


def test_neighbouring_clusters_give_the_stage_edge():
    far, _, (other, _) = cluster()
    keys = contexts(3)
    traffic = Traffic()
    run(other, keys, np.zeros(3), np.arange(3), traffic)
    traffic.include(other.flush())
    near = EdgeServer(1, EMBEDDINGS, EdgeConfig(min_peers=1), neighbours=[Link(far)])
    _, _, (asker, _) = cluster(edge=near)
    final, _ = run(asker, keys, np.zeros(3), np.arange(3))
    assert (final.stages == Stage.EDGE).all() and final.tokens.tolist() == [0, 1, 2]


def test_while_the_edge_is_down_tokens_go_to_the_llm_and_it_comes_back():
    edge, (link, other_link), (first, second) = cluster(pause=30.0)
    keys, truth, traffic = contexts(5), np.arange(5), Traffic()
    link.down = True
    final, oracle = run(first, keys, np.zeros(5), truth, traffic)
    assert oracle.rows == 5 and final.tokens.tolist() == truth.tolist()
    assert traffic.failures == 1 and traffic.edge == 0
    run(first, keys, np.zeros(5), truth, traffic)
    traffic.include(first.flush())
    assert link.calls == 1 and first.exchange.link.asleep  # left alone
    link.down = False
    first.exchange.link.back_off.wake()
    edge.clear()
    # It has lost its memory, and the tokens that waited refill it.
    run(first, contexts(1, 5), [0], [0], traffic)
    final, _ = run(second, keys, np.zeros(5), truth, traffic)
    assert (final.stages == Stage.PEER).all() and other_link.calls == 1


def test_waiting_tokens_are_bounded_while_the_edge_is_away():
    _, (link, _), (first, _) = cluster(pause=0.0)
    link.down = True
    for seed in range(60):
        run(first, contexts(50, seed), np.zeros(50), np.zeros(50))
    assert len(first.exchange.waiting) == 4 * 512


def test_an_answer_that_is_none_counts_as_a_failure():
    _, (link, _), (first, _) = cluster()
    link.exchange = lambda payload: b"\xff\xff"
    traffic = Traffic()
    _, oracle = run(first, contexts(2), [0, 0], [1, 2], traffic)
    assert oracle.rows == 2 and traffic.failures >= 1


def test_contexts_that_are_not_finite_are_neither_asked_nor_shared():
    edge, _, (first, _) = cluster()
    keys = contexts(3)
    keys[1, 0] = np.nan
    traffic = Traffic()
    run(first, keys, np.zeros(3), np.arange(3), traffic)
    traffic.include(first.flush())
    assert first.rows_asked == 2 and len(edge.index) == 2 and edge.stats.refused == 0


def test_audits_count_wrong_hits_and_close_the_tier():
    _, _, (first, second) = cluster(audit_rate=0.5, max_false_hits=0.2)
    keys, traffic = contexts(200), Traffic()
    run(first, keys, np.zeros(200), np.ones(200), traffic)
    traffic.include(first.flush())
    final, oracle = run(second, keys, np.zeros(200), np.full(200, 2), traffic)
    hits = second.tier.false_hits
    assert 60 < hits.checked == hits.wrong == oracle.rows < 140
    assert (final.stages == Stage.PEER).sum() == 200 - oracle.rows
    assert second.tier.closed
    asked = second.rows_asked
    final, oracle = run(second, keys, np.zeros(200), np.full(200, 2), traffic)
    assert oracle.rows == 200 and second.rows_asked - asked < 140


def test_paper_mode_asks_by_step_and_shares_no_context():
    edge, _, resolvers = cluster(3, "paper")
    assert not resolvers[0].needs_hidden
    for client, resolver in enumerate(resolvers):
        final, _ = run(resolver, None, [7], [9], step=4)
        # Nobody has drafted before the first; the others agree on token 7, right or wrong.
        assert final.stages[0] == (Stage.PEER if client else Stage.LLM_RESAMPLED)
    final, _ = run(resolvers[0], None, [7], [9], step=5)
    assert final.stages[0] == Stage.LLM_RESAMPLED and len(edge.index) == 0


def ms_rule():
    return OpportunisticRule(
        OpportunisticConfig(edge=Price(per_message=5), llm=Price(per_message=60))
    )


def rounds(resolvers, count, contexts_of, rows=40):
    """Rows asked, edge bytes and LLM bytes of each round, int64 [rounds, 3]."""
    figures = []
    for round_index in range(count):
        before, traffic = sum(resolver.rows_asked for resolver in resolvers), Traffic()
        for client, resolver in enumerate(resolvers):
            keys = contexts_of(client, round_index)
            run(resolver, keys, np.zeros(rows), np.arange(rows) % VOCAB, traffic)
            traffic.include(resolver.flush())
        resolvers[0].exchange.link.transport.edge.publish()
        asked = sum(resolver.rows_asked for resolver in resolvers) - before
        figures.append((asked, traffic.edge, traffic.uplink + traffic.downlink))
    return np.array(figures)


@pytest.mark.parametrize("deferred", [False, True])
def test_where_clients_have_nothing_in_common_nobody_asks_and_it_costs_under_two_percent(deferred):
    edge = EdgeServer(0, EMBEDDINGS, EdgeConfig(min_peers=1, deferred=deferred))
    _, _, resolvers = cluster(4, edge=edge, rule=ms_rule, audit_rate=0.05)
    asked, edge_bytes, llm_bytes = rounds(
        resolvers, 12, lambda client, number: contexts(40, 100 * number + client)
    ).T
    assert not asked.any() and edge.stats.rows == 0 and len(edge.index) == 0
    assert 0 < edge_bytes.sum() < 0.02 * (edge_bytes + llm_bytes).sum()
    # From the first message on a device stays within its credit and half a percent.
    assert (edge_bytes.cumsum() <= 4 * 36 + 0.005 * (edge_bytes + llm_bytes).cumsum()).all()


@pytest.mark.parametrize("deferred", [False, True])
def test_where_clients_share_contexts_asking_starts_in_the_second_round(deferred):
    edge = EdgeServer(0, EMBEDDINGS, EdgeConfig(min_peers=1, deferred=deferred))
    _, _, resolvers = cluster(2, edge=edge, rule=ms_rule)
    keys = contexts(40)
    asked, _, llm_bytes = rounds(resolvers, 6, lambda client, number: keys).T
    # One step a round here: the answer comes after the second round's only step.
    assert asked[0] == 0 and asked[2] == 80
    # The LLM is asked no more once the tokens are with the edge server; where they are visible at
    # once, the first to share goes on asking, because its own entries do not count for itself.
    most_left = 0 if deferred else 400
    assert llm_bytes[0] == 800 and llm_bytes[4:].max() <= most_left


def test_clients_that_come_to_share_contexts_find_out():
    _, _, resolvers = cluster(2, rule=ms_rule)
    same = contexts(40, 7)

    def contexts_of(client, number):
        return contexts(40, 100 * number + client) if number < 6 else same

    for resolver in resolvers:
        resolver.introduction.window = 80  # contexts of two rounds
    asked, *_ = rounds(resolvers, 30, contexts_of).T
    # The one whose tokens serve the other finds nothing for itself, and may have stopped.
    assert not asked[:6].any() and asked[-1] >= 40


def test_after_a_restart_of_the_edge_server_clients_find_each_other_again():
    edge = EdgeServer(0, EMBEDDINGS, EdgeConfig(min_peers=1, deferred=True))
    _, _, resolvers = cluster(2, edge=edge, rule=ms_rule)
    for resolver in resolvers:
        resolver.rule.config = OpportunisticConfig(
            edge=Price(per_message=5), llm=Price(per_message=60), credit=200
        )
    keys = contexts(40)

    def contexts_of(client, number):
        if number == 1:
            edge.clear()  # all was shown in round 0, and nothing new turns up later
        return keys

    asked, *_ = rounds(resolvers, 9, contexts_of).T
    assert not asked[:2].any() and asked[-1] >= 40


def test_who_has_nobody_to_ask_shows_nothing():
    _, (link,), (only,) = cluster(1, rule=ms_rule)
    rounds([only], 3, lambda client, number: contexts(40, number))
    assert link.calls == 0


def test_where_even_certain_hits_do_not_pay_nothing_is_shown():
    _, links, resolvers = cluster(2, rule=OpportunisticRule)  # in bytes: 16 for 12
    keys = contexts(40)
    rounds(resolvers, 3, lambda client, number: keys)
    assert all(link.calls == 0 for link in links)


def test_another_cluster_is_introduced_anew():
    _, _, resolvers = cluster(2, rule=ms_rule)
    keys = contexts(40)
    rounds(resolvers, 2, lambda client, number: keys)
    first = resolvers[0]
    assert first.introduction.common > 0 and first.rule.hit_probability.all()
    first.joined_cluster()
    assert not first.rule.hit_probability.any()
    assert np.array_equal(first.introduction.new, first.introduction._kept)


def test_misses_while_the_edge_server_is_empty_are_little_evidence():
    _, _, (first, _) = cluster(2, rule=ms_rule)
    first.rule.expect(0.5)
    run(first, contexts(40), np.zeros(40), np.zeros(40))
    # 40 misses count ten: 8 / (16 + 10).
    assert first.rows_asked == 40 and first.rule.hit_probability.min() == pytest.approx(8 / 26)


def test_state_goes_round():
    _, _, (first, _) = cluster(rule=ms_rule, audit_rate=1.0)
    first.rule.expect(0.5)
    run(first, contexts(5), np.zeros(5), np.arange(5))
    first.flush()
    _, _, (again, _) = cluster(rule=ms_rule)
    again.restore(first.state())
    assert again.exchange.number == first.exchange.number == 2
    assert np.array_equal(again.rule.hit_probability, first.rule.hit_probability)
    for name, value in first.introduction.state().items():
        assert np.array_equal(value, again.introduction.state()[name])


def test_large_escalations_are_asked_in_parts():
    edge, (link, _), (first, _) = cluster()
    count = 1100
    escalation = escalate(contexts(count), np.zeros(count))
    resolve_in_turn([first, Oracle(np.zeros(count))], escalation)
    assert link.calls == 4 and edge.stats.rows == count  # three questions, then the tokens


def test_keys_need_hidden_states():
    _, _, (first, _) = cluster()
    with pytest.raises(ValueError, match="hidden"):
        run(first, None, [1], [1])
