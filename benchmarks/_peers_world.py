"""Clients that have something to say to each other, and clients that have not.

``shared``: each cluster has a pool of phrases (openings of articles), and half of a client's
prompts are drawn from its cluster's pool, Zipf-distributed like commands to an assistant; the rest
are openings of articles that no other client sees. ``apart``: every client has its own articles,
no phrase is in two clients' hands, and sources' by-lines are removed. ``news``: articles as they
come, dealt to the clients at random, by-lines included.
"""

from __future__ import annotations

import re
from typing import Any, Literal

import numpy as np

from benchmarks._pair import start_token
from benchmarks._teacher_forced import corpus
from hlm.arrays import IntArray

World = Literal["shared", "apart", "news"]

_BYLINE = re.compile(r"^.{0,60}?\s(?:--?|-)\s|\((?:Reuters|AP|AFP|[A-Z][\w. ]{1,25})\)")


class Prompts:
    """Prompts of every client and round.

    Parameters
    ----------
    world : {"shared", "apart", "news"}
        What clients have in common.
    tokenizer : Any
        Of the pair.
    clients, clusters : int
        Client k belongs to cluster ``k % clusters``.
    length : int
        Tokens of a prompt, the beginning-of-text token included.
    phrases : int
        Pool of a cluster in the `shared` world.
    share : float
        Chance that a prompt comes from the pool.
    seed : int
        Of every draw.
    """

    def __init__(
        self,
        world: World,
        tokenizer: Any,
        clients: int,
        clusters: int,
        length: int = 12,
        phrases: int = 20,
        share: float = 0.5,
        seed: int = 0,
    ) -> None:
        self.name, rows = corpus("train", 12_000)
        texts = [text for _, text in rows]
        if world != "news":
            texts = [_BYLINE.sub(" ", text).strip() for text in texts]
        encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
        openings = {
            (start_token(tokenizer), *ids[: length - 1]): None
            for ids in encoded
            if len(ids) >= length
        }
        order = np.random.default_rng(seed).permutation(len(openings))
        everything = np.array(list(openings), np.int64)[order]
        pools = clusters * phrases if world == "shared" else 0
        self._pools = everything[:pools].reshape(clusters, -1, length)
        private = everything[pools:]
        # Disjoint: row i belongs to client i % clients.
        self._own = [private[client::clients] for client in range(clients)]
        weights = 1.0 / np.arange(1, phrases + 1)
        self._popularity = weights / weights.sum()
        self._share = share if world == "shared" else 0.0
        self._clusters = clusters
        self._seed = seed

    def of(self, client: int, round_index: int, count: int) -> IntArray:
        """Prompts int64 [count, length] of a client in a round."""
        random = np.random.default_rng([self._seed, client, round_index])
        own = self._own[client]
        start = round_index * count
        prompts = own[np.arange(start, start + count) % len(own)].copy()
        pooled = random.random(count) < self._share
        chosen = random.choice(len(self._popularity), int(pooled.sum()), p=self._popularity)
        if pooled.any():
            prompts[pooled] = self._pools[client % self._clusters][chosen]
        return prompts
