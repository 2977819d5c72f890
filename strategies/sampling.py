"""Waiting for nodes, for a bounded time, and choosing among them so that a run repeats."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from logging import INFO
from typing import Literal

import numpy as np
from flwr.serverapp import Grid
from flwr.supercore import log

from strategies.cluster_map import ClusterMap
from strategies.records import NotEnoughNodes

Leg = Literal["train", "evaluate"]
_STREAMS: dict[Leg, int] = {"train": 0, "evaluate": 1}  # of the random choice


@dataclass(frozen=True)
class Node:
    """A connected node: Flower's id, its client index (-1 if unknown) and its cluster."""

    node_id: int
    client: int
    cluster: int

    @property
    def name(self) -> int:
        """The client index, or the node id where that is unknown."""
        return self.client if self.client >= 0 else self.node_id


def connected_nodes(
    grid: Grid, cluster_map: ClusterMap, at_least: int, wait_s: float, poll_s: float
) -> list[Node]:
    """Nodes sorted by client index, once at least `at_least` are connected.

    Raises
    ------
    NotEnoughNodes
        After `wait_s` seconds; Flower's own strategies wait for ever.
    """
    deadline, told = time.monotonic() + wait_s, -1
    while True:
        node_ids = sorted(grid.get_node_ids())
        if len(node_ids) >= at_least:
            break
        left = deadline - time.monotonic()
        if left <= 0:
            raise NotEnoughNodes(
                f"nodes connected: {len(node_ids)}; needed: {at_least} within {wait_s:g} s"
            )
        if len(node_ids) != told:
            told = len(node_ids)
            log(
                INFO,
                "Waiting for nodes to connect: %d connected (minimum required: %d).",
                told,
                at_least,
            )
        time.sleep(min(poll_s, left))
    clients = cluster_map.clients_of(node_ids)
    clusters = cluster_map.clusters_of(node_ids)
    for node_id, cluster in zip(node_ids, clusters, strict=True):
        if not 0 <= cluster < cluster_map.num_clusters:
            raise ValueError(
                f"cluster of node {node_id}: {cluster}; "
                f"allowed: 0 to {cluster_map.num_clusters - 1}"
            )
    nodes = [Node(*row) for row in zip(node_ids, clients, clusters, strict=True)]
    return sorted(nodes, key=lambda node: (node.client, node.node_id))


def choose(
    nodes: Sequence[Node],
    fraction: float,
    at_least: int,
    seed: int,
    server_round: int,
    stream: int,
    turns: Sequence[int] | None = None,
) -> list[Node]:
    """Choose ``fraction * n`` nodes, rounded down, at least `at_least`, without replacement.

    Those with the lowest of `turns` come first, by default all are alike; chance decides between
    equals. The choice depends on seed, round, stream, turns and the order of `nodes` alone, so a
    resumed run draws what an uninterrupted one would have drawn. The result keeps the order of
    `nodes`.
    """
    # 0.29 * 100 is a little less than 29.
    count = min(max(math.floor(fraction * len(nodes) + 1e-9), at_least), len(nodes))
    generator = np.random.default_rng([seed, server_round, stream])
    if turns is None:
        picks = generator.choice(len(nodes), size=count, replace=False)
    else:
        picks = np.lexsort((generator.permutation(len(nodes)), np.array(turns)))[:count]
    return [nodes[pick] for pick in np.sort(picks)]


Turns = Callable[[Sequence[Node]], Sequence[int] | None]
"""Ranks nodes for a round: the lowest are asked first. None: all alike."""


@dataclass(frozen=True)
class Participation:
    """Who takes part in a round.

    Attributes
    ----------
    fraction_train, fraction_evaluate : float
        Share of the connected nodes asked, in [0, 1]; 0: that leg is left out.
    evaluate_every : int
        Federated evaluation in every such round, >= 1.
    min_clients : int
        Fewest usable replies for a round to count, >= 1. With fewer the policy stays; with none
        the run fails.
    min_nodes : int, optional
        Fewest connected nodes to ask; by default `min_clients`.
    min_train_nodes, min_evaluate_nodes : int
        Fewest nodes to ask, whatever the fraction says, >= 0.
    node_wait_s, poll_s : float
        How long to wait for them, and how often to look, in seconds.
    seed : int
        Of the choice of clients.
    """

    fraction_train: float = 1.0
    fraction_evaluate: float = 1.0
    evaluate_every: int = 1
    min_clients: int = 1
    min_nodes: int | None = None
    node_wait_s: float = 120.0
    poll_s: float = 0.2
    seed: int = 0
    min_train_nodes: int = 1
    min_evaluate_nodes: int = 1

    def __post_init__(self) -> None:
        checks = [
            ("fraction_train", 0 <= self.fraction_train <= 1, "[0, 1]"),
            ("fraction_evaluate", 0 <= self.fraction_evaluate <= 1, "[0, 1]"),
            ("evaluate_every", self.evaluate_every >= 1, ">= 1"),
            ("min_clients", self.min_clients >= 1, ">= 1"),
            ("min_nodes", self.connected_at_least >= 1, ">= 1"),
            ("min_train_nodes", self.min_train_nodes >= 0, ">= 0"),
            ("min_evaluate_nodes", self.min_evaluate_nodes >= 0, ">= 0"),
            ("node_wait_s", self.node_wait_s >= 0, ">= 0"),
            ("poll_s", self.poll_s > 0, "> 0"),
            ("seed", self.seed >= 0, ">= 0"),
        ]
        for name, fine, allowed in checks:
            if not fine:
                raise ValueError(f"{name}: {getattr(self, name)}; allowed: {allowed}")

    @property
    def connected_at_least(self) -> int:
        """Fewest connected nodes to ask."""
        return self.min_clients if self.min_nodes is None else self.min_nodes

    def summary(self) -> None:
        """Log the choice of nodes, as Flower's own strategies do."""
        log(INFO, "\t├──> Sampling:")
        shares = self.fraction_train, self.fraction_evaluate
        log(INFO, "\t│\t├──Fraction: train (%.2f) | evaluate (%.2f)", *shares)
        least = self.min_train_nodes, self.min_evaluate_nodes
        log(INFO, "\t│\t├──Minimum nodes: train (%d) | evaluate (%d)", *least)
        log(INFO, "\t│\t└──Minimum available nodes: %d", self.connected_at_least)

    def takes_place(self, leg: Leg, server_round: int) -> bool:
        """Tell whether this round has a training, or a federated evaluation."""
        if leg == "train":
            return self.fraction_train > 0
        return self.fraction_evaluate > 0 and server_round % self.evaluate_every == 0

    def pick(
        self,
        grid: Grid,
        cluster_map: ClusterMap,
        server_round: int,
        leg: Leg,
        turns: Turns | None = None,
    ) -> tuple[list[Node], list[Node]]:
        """Return all connected nodes, and those to ask; `turns` as in `choose`.

        Raises
        ------
        NotEnoughNodes
            See `connected_nodes`.
        """
        train = leg == "train"
        asked = self.min_train_nodes if train else self.min_evaluate_nodes
        needed = max(self.connected_at_least, asked)
        nodes = connected_nodes(grid, cluster_map, needed, self.node_wait_s, self.poll_s)
        fraction = self.fraction_train if train else self.fraction_evaluate
        least = max(self.min_clients, asked)
        ranks = None if turns is None else turns(nodes)
        picks = choose(nodes, fraction, least, self.seed, server_round, _STREAMS[leg], ranks)
        log(INFO, "configure_%s: Sampled %s nodes (out of %s)", leg, len(picks), len(nodes))
        return nodes, picks
