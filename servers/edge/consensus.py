"""What the peers' tokens say about a question: FedHLM eq. 9-10 on whatever peers were found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hlm.arrays import BoolArray, IntArray
from hlm.peers.agreement import centroids, cosine

NO_TOKEN = -1


@dataclass(frozen=True)
class Contributions:
    """Tokens of peers, at most one of each client for each question.

    Attributes
    ----------
    rows, clients, tokens, distances : ndarray of int64 [m]
        Which question, whose token, the token, and the differing bits of the two contexts (0
        where peers go by step).
    """

    rows: IntArray
    clients: IntArray
    tokens: IntArray
    distances: IntArray

    @classmethod
    def nearest_of_each(
        cls, rows: IntArray, clients: IntArray, tokens: IntArray, distances: IntArray
    ) -> Contributions:
        """Keep the nearest token of each client for each question; the lowest id on ties.

        One client has one voice, however many entries it has.
        """
        order = np.lexsort((tokens, distances, clients, rows))
        pair = np.stack([rows[order], clients[order]])
        first = np.ones(len(order), np.bool_)
        first[1:] = (pair[:, 1:] != pair[:, :-1]).any(axis=0)
        kept = order[first]
        return cls(rows[kept], clients[kept], tokens[kept], distances[kept])

    def of_row(self, row: int) -> Contributions:
        """Those to one question."""
        own = self.rows == row
        return Contributions(
            self.rows[own], self.clients[own], self.tokens[own], self.distances[own]
        )


@dataclass(frozen=True)
class ConsensusRule:
    """When peers decide a token.

    Attributes
    ----------
    similarity : float
        Theta of eq. 10, in [-1, 1].
    reuse_distance : int
        Most differing bits of two contexts for a peer's token to replace a different draft; -1
        never replaces.
    min_peers : int
        Clients that must stand behind a token, unless one of them is trusted on its own.
    alike : callable
        Two arrays of embeddings to their similarities, row by row.
    """

    similarity: float
    reuse_distance: int
    min_peers: int
    alike: Callable[..., NDArray[np.float64]] = cosine


def consensus(
    embeddings: NDArray[np.floating],
    drafts: IntArray,
    found: Contributions,
    trusted: BoolArray,
    rule: ConsensusRule,
) -> IntArray:
    """The token the peers agree on for each question.

    The draft is accepted if its similarity to the centroid of the peers' embeddings is at least
    `similarity` (eq. 10). Otherwise the peers' token nearest to the centroid is reused if it is
    itself that close (a centroid between two opinions is close to neither) and its context passes
    the stricter gate. Ties: the nearer context, then the lower id.

    Parameters
    ----------
    embeddings : ndarray [vocab, size]
        Token embeddings.
    drafts : ndarray of int64 [n]
        The asker's own tokens.
    found : Contributions
        Of the other clients.
    trusted : ndarray of bool [m]
        Contributions that need no second client behind them.
    rule : ConsensusRule
        See there.

    Returns
    -------
    ndarray of int64 [n]
        `NO_TOKEN` where the peers do not decide.
    """
    count = len(drafts)
    chosen = np.full(count, NO_TOKEN, np.int64)
    if not len(found.rows):
        return chosen
    vectors = embeddings[found.tokens]
    centre = centroids(vectors, found.rows, count)
    accepted = rule.alike(embeddings[drafts], centre) >= rule.similarity
    accepted &= np.bincount(found.rows, minlength=count) > 0
    to_centre = rule.alike(vectors, centre[found.rows])
    usable = (found.distances <= rule.reuse_distance) & (to_centre >= rule.similarity)
    candidates = np.flatnonzero(usable)
    # Rounded, so that equal tokens tie however their sums were rounded.
    closeness = np.round(to_centre[candidates], 6)
    order = np.lexsort(
        (found.tokens[candidates], found.distances[candidates], -closeness, found.rows[candidates])
    )
    best = candidates[order]
    rows, first = np.unique(found.rows[best], return_index=True)
    chosen[rows] = found.tokens[best[first]]
    chosen[accepted] = drafts[accepted]
    decided = chosen[found.rows] != NO_TOKEN
    behind = decided & (rule.alike(vectors, embeddings[chosen[found.rows]]) >= rule.similarity)
    supporters = np.bincount(found.rows[behind], minlength=count)
    vouched = np.bincount(found.rows[behind & trusted], minlength=count) > 0
    chosen[~(vouched | (supporters >= rule.min_peers))] = NO_TOKEN
    return chosen
