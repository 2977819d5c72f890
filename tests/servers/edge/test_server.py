from __future__ import annotations

import itertools

import numpy as np
import pytest

from hlm.peers.agreement import cosine
from hlm.transport import LinkDown
from hlm.wire import InvalidField, WireError
from hlm.wire.edge import (
    NOT_RESOLVED,
    RESOLVED_BY_NEIGHBOUR,
    RESOLVED_BY_PEERS,
    EdgeQuery,
    EdgeShare,
    decode_edge_reply,
    encode_edge_query,
)
from hlm.wire.edge_probe import EdgeProbe, decode_common, encode_probe
from servers.edge.config import EdgeConfig
from servers.edge.index import IndexSize
from servers.edge.server import EdgeServer

VOCAB = 50
EMBEDDINGS = np.random.default_rng(7).normal(size=(VOCAB, 32)).astype(np.float32)
NUMBERS = itertools.count()
SOLO = EdgeConfig(min_peers=1)


def contexts(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 8), dtype=np.uint8)


def server(config=SOLO, **options):
    return EdgeServer(0, EMBEDDINGS, config, **options)


def send(edge, client, keys, drafts, share=None, steps=None, between=False):
    query = EdgeQuery(
        client, next(NUMBERS) % 65536, VOCAB, keys, np.asarray(drafts, np.int64),
        None if steps is None else np.asarray(steps), between, share or EdgeShare(),
    )  # fmt: skip
    return query, decode_edge_reply(edge.handle(encode_edge_query(query)), query)


def tell(edge, client, keys, tokens, verified=True):
    """Share tokens of contexts that were not asked about."""
    tokens = np.asarray(tokens, np.int64)
    share = EdgeShare(keys=keys, tokens=tokens, verified=np.full(len(tokens), verified))
    send(edge, client, np.zeros((0, 8), np.uint8), [], share)


def ask(edge, client, keys, drafts, verified=None, **options):
    """Ask, and let the LLM's tokens follow if there are any; tokens int64 [n]."""
    query, reply = send(edge, client, keys, drafts, **options)
    if verified is not None:
        rows = np.arange(len(drafts))
        share = EdgeShare(np.full(len(rows), query.number), rows, np.asarray(verified))
        send(edge, client, np.zeros((0, 8), np.uint8), [], share)
    return reply.tokens.tolist()


def test_peers_tokens_are_confirmed_or_reused():
    edge, keys = server(), contexts(3)
    tell(edge, 1, keys, [4, 5, 6])
    _, reply = send(edge, 2, keys, [4, 9, 6])
    assert reply.tokens.tolist() == [4, 5, 6]
    assert set(reply.outcomes) == {RESOLVED_BY_PEERS} and edge.stats.by_peers == 3


def test_a_client_never_hits_its_own_entries():
    edge, keys = server(), contexts(3)
    tell(edge, 1, keys, [4, 5, 6])
    assert ask(edge, 1, keys, [4, 5, 6], [4, 5, 6]) == [-1, -1, -1]
    assert ask(edge, 1, keys, [4, 5, 6]) == [-1, -1, -1]
    assert edge.stats.audits == 0


def test_an_unverified_entry_never_resolves():
    edge, keys = server(), contexts(3)
    for client in (1, 2, 3):
        tell(edge, client, keys, [4, 5, 6], verified=False)
    assert len(edge.index) == 9
    assert ask(edge, 9, keys, [4, 5, 6]) == [-1, -1, -1]


def test_a_context_past_the_gate_counts_one_beyond_it_does_not():
    edge = server(EdgeConfig(min_peers=1, context_gate=0.98, reuse_gate=0.995))
    key = contexts(1)
    tell(edge, 1, key, [4])

    def flipped(bits):
        mask = np.zeros(64, np.uint8)
        mask[:bits] = 1
        return key ^ np.packbits(mask)[None]

    # cos(pi * 2 / 64) = .9952, 3: .989; 4: .981, 5: .970.
    for bits, confirmed, reused in ((2, 4, 4), (3, 4, -1), (4, 4, -1), (5, -1, -1)):
        assert ask(edge, 2, flipped(bits), [4]) == [confirmed]
        assert ask(edge, 2, flipped(bits), [9]) == [reused]


def test_two_clients_are_needed_until_one_is_trusted():
    edge, keys = server(EdgeConfig(min_peers=2)), contexts(40)
    tell(edge, 1, keys, np.arange(40))
    answers = []
    for row in range(10):
        answers += ask(edge, 2, keys[row : row + 1], [row], [row])
    # Unresolved questions are audits too; after four that passed client 1 may stand alone.
    assert answers == [-1] * 4 + list(range(4, 10))
    edge = server(EdgeConfig(min_peers=2))
    tell(edge, 1, keys, np.arange(40))
    tell(edge, 3, keys, np.arange(40))
    assert ask(edge, 2, keys[:5], np.arange(5)) == [0, 1, 2, 3, 4]


def test_peers_of_different_opinion_do_not_decide():
    edge, keys = server(), contexts(1)
    assert cosine(EMBEDDINGS[4:5], EMBEDDINGS[5:6])[0] < 0.8
    tell(edge, 1, keys, [4])
    tell(edge, 3, keys, [5])
    for draft in (4, 5, 6):
        assert ask(edge, 2, keys, [draft]) == [-1]


def test_answers_do_not_depend_on_the_order_of_arrival():
    keys, results = contexts(6), set()
    for order in itertools.permutations([1, 3, 5]):
        edge = server()
        for client in order:
            tell(edge, client, keys, (np.arange(6) * (1 + (client == 5))) % 7)
        results.add(tuple(ask(edge, 2, keys, [0] * 6)))
    assert len(results) == 1


@pytest.mark.parametrize("min_peers", [1, 2])
def test_a_poisoned_peer_resolves_no_more_than_audits_let_pass(min_peers):
    """Honest devices audit 10 % of hits; everything unresolved goes to the LLM as always."""
    random = np.random.default_rng(min_peers)
    edge = server(EdgeConfig(min_peers=min_peers, size=IndexSize(capacity=4000, quota=1000)))
    places, truth = contexts(600), random.integers(0, VOCAB - 1, 600)
    poisoned = 0
    for step in range(600):
        # The poisoner claims the wrong token for a place that is asked about right after.
        tell(edge, 66, places[step : step + 1], [truth[step] + 1])
        client = step % 3
        answer = ask(edge, client, places[step : step + 1], [truth[step]])[0]
        poisoned += answer == truth[step] + 1
        if answer < 0 or random.random() < 0.1:
            ask(edge, client, places[step : step + 1], [truth[step]], truth[step : step + 1])
    if min_peers == 2:
        assert poisoned == 0  # never trusted, never enough
    # With one peer enough, two reporters with four failed audits each: some 8 / .1 tokens.
    assert poisoned < 150 and edge.reputation.barred == {66}
    assert edge.index.count(66) == 0


def test_a_peer_that_turns_bad_loses_its_trust():
    random = np.random.default_rng(0)
    edge = server(EdgeConfig(min_peers=2))
    places, truth = contexts(700), random.integers(0, VOCAB - 1, 700)
    wrong = 0
    for step in range(700):
        claim = truth[step] + (step >= 100)
        tell(edge, 66, places[step : step + 1], [claim])
        answer = ask(edge, step % 3, places[step : step + 1], [truth[step]])[0]
        wrong += answer not in (-1, truth[step])
        if answer < 0 or random.random() < 0.1:
            rows = slice(step, step + 1)
            ask(edge, step % 3, places[rows], [truth[step]], truth[rows])
    assert 0 < wrong < 200  # of 600 wrong claims; without audits all of them


def test_floods_and_bad_keys_change_nothing_for_others():
    edge = server(EdgeConfig(min_peers=1, size=IndexSize(capacity=500, quota=200)))
    keys = contexts(20, seed=5)
    tell(edge, 1, keys, np.arange(20))
    sizes = []
    for seed in range(30):
        tell(edge, 66, contexts(400, seed + 10), np.arange(400) % VOCAB)
        ask(edge, 66, contexts(300, seed + 90), np.arange(300) % VOCAB)
        sizes.append(edge.memory)
    assert len(edge.index) <= 220 and max(sizes[5:]) <= sizes[4]
    assert ask(edge, 2, keys, np.arange(20)) == list(range(20))
    nan_keys = np.zeros((5, 8), np.uint8)  # what NaN contexts give
    before = len(edge.index)
    tell(edge, 66, np.concatenate([nan_keys, ~nan_keys]), np.arange(10))
    assert len(edge.index) == before and edge.stats.refused == 10
    assert ask(edge, 2, nan_keys, np.arange(5)) == [-1] * 5


def test_answers_to_questions_nobody_asked_are_refused():
    edge = server()
    query, _ = send(edge, 1, contexts(2), [1, 2])
    share = EdgeShare(np.array([query.number, 9999]), np.array([7, 0]), np.array([3, 3]))
    send(edge, 1, np.zeros((0, 8), np.uint8), [], share)
    assert len(edge.index) == 0 and edge.stats.refused == 2
    other = EdgeShare(np.array([query.number]), np.array([0]), np.array([3]))
    send(edge, 2, np.zeros((0, 8), np.uint8), [], other)  # somebody else's question
    assert len(edge.index) == 0


def test_deferred_entries_wait_for_publish_and_then_do_not_depend_on_arrival():
    keys, results = contexts(8), set()
    for order in ([1, 3, 5], [5, 3, 1]):
        edge = server(EdgeConfig(min_peers=1, deferred=True, size=IndexSize(capacity=12, quota=6)))
        for client in order:
            tell(edge, client, keys, np.arange(8) + 20)
        assert ask(edge, 2, keys, [0] * 8) == [-1] * 8
        edge.publish()
        results.add(tuple(ask(edge, 2, keys, [0] * 8)))
    assert len(results) == 1 and set(results.pop()) != {-1}


def test_paper_mode_is_eq_9_and_10_over_the_drafts_of_the_same_step():
    theta = 0.3
    edge = server(EdgeConfig(mode="paper", similarity=theta))
    random = np.random.default_rng(0)
    drafts = random.integers(0, VOCAB, (6, 5))  # [steps, clients]
    nothing = np.zeros((1, 0), np.uint8)
    accepted = 0
    for step, tokens in enumerate(drafts):
        for client, token in enumerate(tokens):
            result = ask(edge, client, nothing, [token], steps=[step])[0]
            peers = [EMBEDDINGS[tokens[other]] for other in range(client)]
            if not peers:
                assert result == -1
                continue
            centre = np.mean(peers, axis=0)
            own = EMBEDDINGS[token]
            value = own @ centre / np.linalg.norm(own) / np.linalg.norm(centre)
            assert result == (token if value >= theta else -1)
            accepted += result >= 0
    assert accepted


class Direct:
    def __init__(self, edge):
        self.edge, self.down, self.calls = edge, False, 0

    def exchange(self, payload):
        self.calls += 1
        if self.down:
            raise LinkDown("cut by the test")
        return self.edge.handle(payload)


def test_neighbours_are_asked_before_giving_up():
    near, far = server(), EdgeServer(1, EMBEDDINGS, SOLO)
    link = Direct(far)
    near.neighbours = [Direct(server()), link]
    keys = contexts(3)
    tell(near, 1, keys[:1], [4])
    tell(far, 11, keys[1:2], [5])
    _, reply = send(near, 2, keys, [0, 0, 0])
    assert reply.tokens.tolist() == [4, 5, -1]
    assert reply.outcomes.tolist() == [RESOLVED_BY_PEERS, RESOLVED_BY_NEIGHBOUR, NOT_RESOLVED]
    assert near.stats.between_bytes > 24 and near.stats.by_neighbours == 1
    link.down = True
    assert ask(near, 2, keys, [0, 0, 0]) == [4, -1, -1]
    assert near.stats.neighbour_failures == 1


def test_neighbours_do_not_ask_on():
    first, second = server(), EdgeServer(1, EMBEDDINGS, SOLO)
    back, forth = Direct(first), Direct(second)
    first.neighbours, second.neighbours = [forth], [back]
    ask(first, 1, contexts(2), [0, 0])
    assert forth.calls == 1 and back.calls == 0


def test_a_restarted_server_knows_nothing_and_refills():
    edge, keys = server(), contexts(2)
    tell(edge, 1, keys, [4, 5])
    edge.clear()
    assert ask(edge, 2, keys, [4, 5], [4, 5]) == [-1, -1]
    assert ask(edge, 1, keys, [0, 0]) == [4, 5]


def test_strangers_and_other_shapes_are_refused():
    edge = server(members=[1, 2])
    with pytest.raises(InvalidField, match="client=3"):
        ask(edge, 3, contexts(1), [1])
    with pytest.raises(InvalidField, match="bytes wide"):
        ask(edge, 1, np.tile(contexts(1), 2), [1])
    with pytest.raises(InvalidField, match="steps"):
        ask(edge, 1, contexts(1), [1], steps=[0])
    with pytest.raises(InvalidField, match="vocab"):
        edge.handle(encode_edge_query(EdgeQuery(1, 0, VOCAB + 1, contexts(1), np.array([1]))))
    with pytest.raises(WireError):
        edge.handle(b"nonsense")
    crowded = server(EdgeConfig(max_clients=2))
    ask(crowded, 1, contexts(1), [1])
    ask(crowded, 2, contexts(1), [1])
    with pytest.raises(InvalidField, match="all it can serve"):
        ask(crowded, 3, contexts(1), [1])


@pytest.mark.parametrize(
    "field",
    [
        {"mode": "off"},
        {"similarity": 2},
        {"context_gate": 0.999},
        {"min_peers": 0},
        {"open_rows": 0},
    ],
)
def test_bad_settings_are_refused(field):
    with pytest.raises(ValueError, match=next(iter(field))):
        EdgeConfig(**field)
    with pytest.raises(ValueError, match="embeddings"):
        EdgeServer(0, np.full((3, 2), np.nan))


def show(edge, client, prints, between=False):
    """Show fingerprints; whether others have each of those that are held, bool [n]."""
    probe = EdgeProbe(client, np.asarray(prints, np.int64), between)
    return decode_common(edge.handle(encode_probe(probe))).tolist()


def test_a_device_learns_which_of_its_fingerprints_others_show():
    edge = server()
    assert show(edge, 1, [3, 70, 500]) == [False] * 3
    assert show(edge, 2, [70, 900]) == [True, False]
    assert show(edge, 1, []) == [False, True, False]  # a poll, of all that is held
    assert show(edge, 1, [900]) == [False, True, False, True]
    edge.clear()
    assert show(edge, 1, [70]) == [False]


def test_deferred_fingerprints_count_from_the_next_round_on():
    edge = server(EdgeConfig(deferred=True))
    for client in (1, 2):
        assert show(edge, client, [4]) == [False]
    edge.publish()
    assert show(edge, 1, []) == show(edge, 2, []) == [True]


def test_neighbouring_clusters_count_where_they_may_be_asked():
    near, far = server(), EdgeServer(1, EMBEDDINGS, SOLO)
    show(far, 11, [5, 6])
    assert show(near, 1, [5, 9]) == [False, False]
    link = Direct(far)
    near.neighbours = [Direct(server()), link]
    assert show(near, 1, []) == [True, False]
    assert far.prints.held(0).tolist() == []  # who asks on behalf of others shows nothing
    link.down = True
    assert show(near, 1, []) == [False, False] and near.stats.neighbour_failures == 1


def test_an_edge_server_without_others_entries_says_so():
    far = EdgeServer(1, EMBEDDINGS, SOLO)
    edge, keys = server(neighbours=[Direct(far)]), contexts(2)
    tell(edge, 1, keys[:1], [4])
    assert send(edge, 1, keys[1:], [0])[1].empty
    assert not send(edge, 2, keys[1:], [0])[1].empty
    tell(far, 11, keys[:1], [4])
    assert not send(edge, 1, keys[1:], [0])[1].empty


def test_floods_of_fingerprints_stay_within_bounds_and_strangers_show_nothing():
    edge = server(members=[1, 2, 66])
    for start in range(0, 100_000, 64):
        show(edge, 66, np.arange(start, start + 64))
    assert len(edge.prints) == edge.prints.quota
    assert show(edge, 1, [3, 100_031]) == [False, True]
    with pytest.raises(InvalidField, match="client=3"):
        show(edge, 3, [1])


def test_a_barred_device_shows_nothing_to_others():
    edge = server()
    show(edge, 66, [7])
    edge.reputation._barred.add(66)
    edge.publish()
    show(edge, 66, [8])
    assert show(edge, 1, [7, 8]) == [False, False]
