from __future__ import annotations

import numpy as np
import pytest

from servers.edge.consensus import NO_TOKEN, ConsensusRule, Contributions, consensus

VOCAB, SIZE = 12, 3
EMBEDDINGS = np.random.default_rng(0).normal(size=(VOCAB, SIZE)).astype(np.float32)


def reference(draft, peers, rule):
    """Eq. 9-10 and the rule for one question; peers: (client, token, distance, trusted)."""

    def close(a, b):
        return float(a @ b) / float(np.linalg.norm(a) * np.linalg.norm(b))

    if not peers:
        return NO_TOKEN
    vectors = EMBEDDINGS.astype(np.float64)
    centre = sum(vectors[token] for _, token, _, _ in peers) / len(peers)
    if close(vectors[draft], centre) >= rule.similarity:
        chosen = draft
    else:
        usable = [
            (-round(close(vectors[token], centre), 6), distance, token)
            for _, token, distance, _ in peers
            if distance <= rule.reuse_distance and close(vectors[token], centre) >= rule.similarity
        ]
        if not usable:
            return NO_TOKEN
        chosen = min(usable)[2]
    behind = [peer for peer in peers if close(vectors[peer[1]], vectors[chosen]) >= rule.similarity]
    enough = len(behind) >= rule.min_peers or any(peer[3] for peer in behind)
    return chosen if enough else NO_TOKEN


@pytest.mark.parametrize("similarity", [0.6, 0.9, 0.99])
@pytest.mark.parametrize("min_peers", [1, 2, 3])
def test_equals_the_rule_written_out(similarity, min_peers):
    random = np.random.default_rng(min_peers)
    rule = ConsensusRule(similarity, 5, min_peers)
    outcomes = set()
    for _ in range(300):
        rows, peers = 4, []
        for row in range(rows):
            clients = random.permutation(6)[: random.integers(0, 5)]
            for client in sorted(clients.tolist()):
                peers.append((row, client, *random.integers(0, [4, 10]), random.random() < 0.2))
        drafts = random.integers(0, 4, rows)
        table = np.array([peer[:4] for peer in peers], np.int64).reshape(-1, 4)
        trusted = np.array([peer[4] for peer in peers], np.bool_)
        result = consensus(EMBEDDINGS, drafts, Contributions(*table.T), trusted, rule)
        for row in range(rows):
            mine = [peer[1:] for peer in peers if peer[0] == row]
            expected = reference(int(drafts[row]), mine, rule)
            assert result[row] == expected
            outcomes.add("none" if expected < 0 else expected == drafts[row])
    assert outcomes == {"none", True, False}


def test_one_voice_a_client_the_nearest_then_the_lowest_id():
    rows = np.array([0, 0, 0, 0, 1])
    clients = np.array([7, 7, 7, 3, 7])
    tokens = np.array([5, 4, 9, 8, 2])
    distances = np.array([6, 6, 7, 9, 1])
    kept = Contributions.nearest_of_each(rows, clients, tokens, distances)
    assert kept.rows.tolist() == [0, 0, 1] and kept.clients.tolist() == [3, 7, 7]
    assert kept.tokens.tolist() == [8, 4, 2] and kept.distances.tolist() == [9, 6, 1]
    assert kept.of_row(1).tokens.tolist() == [2]
    shuffled = np.array([3, 1, 4, 0, 2])
    again = Contributions.nearest_of_each(
        rows[shuffled], clients[shuffled], tokens[shuffled], distances[shuffled]
    )
    assert again.tokens.tolist() == kept.tokens.tolist()


def test_the_rules_own_likeness_decides():
    found = Contributions(*(np.array([column]) for column in (0, 1, 4, 0)))
    drafts, trusted = np.array([2]), np.array([True])

    def never(first, second):
        return np.full(np.broadcast(first, second).shape[:-1], -1.0)

    for alike, token in ((lambda a, b: -never(a, b), 2), (never, NO_TOKEN)):
        rule = ConsensusRule(0.9, 5, 1, alike)
        assert consensus(EMBEDDINGS, drafts, found, trusted, rule).tolist() == [token]
