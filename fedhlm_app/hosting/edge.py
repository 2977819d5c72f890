"""The edge servers of a run, one for each cluster, hosted in Ray actors."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from logging import WARNING
from typing import Any

import numpy as np

from fedhlm_app.learning.gradients import policy_bounds
from fedhlm_app.learning.rules import sums_rule
from fedhlm_app.models.embeddings import slm_embeddings
from fedhlm_app.settings import Settings
from fedhlm_app.settings.hierarchy import averages_at_edge
from fedhlm_app.transport.actor_names import NAMESPACE, edge_actor_name
from fedhlm_app.transport.edge_access import edge_link
from hlm.arrays import FloatArray
from servers.actors import start_actor
from servers.edge.actor import EdgeActor
from servers.edge.averaging import Averaging, UpdateLimits
from servers.edge.config import EdgeConfig
from servers.edge.server import EdgeServer

NEIGHBOUR_SECONDS = 5.0
READY_SECONDS = 120.0
"""Longest wait for an edge server that is still loading when a round begins."""


def build_edge(
    settings: Settings, run: int, cluster: int, members: Sequence[int], clusters: int
) -> EdgeServer:
    """The edge server of one cluster; runs inside its actor."""
    neighbours = []
    if settings.inter_cluster:
        others = [other for other in range(clusters) if other != cluster]
        neighbours = [edge_link(settings, run, NEIGHBOUR_SECONDS)(other) for other in others]
    averaging = Averaging(update_limits(settings)) if averages_at_edge(settings) else None
    config = EdgeConfig(
        mode=settings.peer_mode,
        similarity=settings.similarity,
        context_gate=settings.context_gate,
        reuse_gate=max(settings.reuse_gate, settings.context_gate),
        key_bytes=8 * settings.sketch_words,
        deferred=settings.reproducible,
    )
    return EdgeServer(
        cluster, slm_embeddings(settings), config, members, neighbours, averaging=averaging
    )


def update_limits(settings: Settings) -> UpdateLimits:
    """Which updates the edge servers of a run may average."""
    low, high = policy_bounds(settings)
    rule = sums_rule(settings)
    if rule is None:
        return UpdateLimits(low, high, settings.tokens_per_round)
    lengths = rule.calibration().lengths()
    ends = np.cumsum(list(lengths.values()))[:-1]

    def check(sums: FloatArray) -> str:
        return rule.problem(dict(zip(lengths, np.split(sums, ends), strict=True)))

    return UpdateLimits(low, high, settings.tokens_per_round, sum(lengths.values()), check)


def edge_of_order(run: str, said: Mapping[str, Any], slm: str = "") -> EdgeServer:
    """The edge server that the cloud's ``begin`` asks for.

    Parameters
    ----------
    run : str
        Flower's number of it.
    said : mapping
        ``settings`` (`Settings.handed_on`), ``cluster`` and ``members``.
    slm : str
        The devices' small model as it is named here; empty: as the run names it.

    Raises
    ------
    ValueError, KeyError
        When the order is none, or the model cannot be had.
    """
    settings = Settings.from_run_config(said["settings"], {})
    if slm:
        settings = settings.model_copy(update={"slm": slm})
    cluster = int(said["cluster"])
    if not 0 <= cluster < settings.clusters:
        raise ValueError(f"cluster {cluster}: the run has 0 to {settings.clusters - 1}")
    return build_edge(settings, int(run), cluster, said["members"], settings.clusters)


class EdgeHost:
    """Keeps the edge actors of a run alive, one for each cluster.

    Parameters
    ----------
    settings : Settings
        Of the run.
    run : int
        Flower's number of the run.
    """

    def __init__(self, settings: Settings, run: int) -> None:
        self.settings = settings
        self.run = run
        self._actors: dict[int, Any] = {}
        self._assignments: set[tuple[int, ...]] = set()

    def ensure(self, assignment: Sequence[int]) -> None:
        """Find the actors, or start those that are gone; members follow the assignment.

        One that restarts by itself in mid-round serves the members it began with until then.
        """
        clusters = self.settings.clusters
        self._assignments.add(tuple(assignment))
        moved = len(self._assignments) > 1
        for cluster in range(clusters):
            members = [client for client, own in enumerate(assignment) if own == cluster]
            build = partial(build_edge, self.settings, self.run, cluster, members, clusters)
            name = edge_actor_name(self.run, cluster)
            actor = start_actor(EdgeActor, name, NAMESPACE, build)
            # The handle of one that is found again does not keep it.
            if actor != self._actors.get(cluster):
                self._actors[cluster] = actor
            if moved:
                # An actor that is found knows the members it was built with.
                actor.serve.remote(members)

    def open(self, number: int, summed: Collection[int]) -> None:
        """Begin a round of updates; see `strategies.at_edge.EdgeServers`."""
        self._ask(
            lambda cluster, actor: actor.open.remote(number, cluster in summed),
            "takes no updates in this round",
            READY_SECONDS,
        )

    def collect(self, number: int) -> dict[int, bytes]:
        """A round's aggregates by cluster; see `strategies.at_edge.EdgeServers`."""
        found: dict[int, bytes] = self._ask(
            lambda _, actor: actor.collect.remote(number), "has lost the round's updates"
        )
        return found

    def publish(self) -> None:
        """Make the round's shared tokens visible (a round is over)."""
        self._ask(lambda _, actor: actor.publish.remote(), "starts empty")

    def _ask(
        self, call: Callable[[int, Any], Any], otherwise: str, seconds: float = 30.0
    ) -> dict[int, Any]:
        """Ask all actors at once; answers by cluster, without those that do not answer."""
        import ray
        from flwr.common.logger import log  # which an actor's process can do without
        from ray.exceptions import GetTimeoutError, RayActorError

        asked = {cluster: call(cluster, actor) for cluster, actor in self._actors.items()}
        found = {}
        for cluster, answer in asked.items():
            try:
                found[cluster] = ray.get(answer, timeout=seconds)
            except (RayActorError, GetTimeoutError) as error:
                log(WARNING, "edge server %d does not answer, %s: %s", cluster, otherwise, error)
        return found

    def stop(self) -> None:
        """End the actors."""
        import ray

        for actor in self._actors.values():
            ray.kill(actor, no_restart=True)
        self._actors = {}
