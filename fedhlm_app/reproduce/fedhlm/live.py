"""A run in this process, for tiers whose answers depend on what was routed before.

Devices, edge servers, the LLM's service, learning and strategy are those of `fedhlm run`, joined
by calls in place of Flower's messages and Ray's actors. Clusters are assigned, not learned.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from logging import WARNING, getLogger
from typing import Any, cast

import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp import Grid

from clients.records import Stage
from fedhlm_app.client.device import Device
from fedhlm_app.client.routed import Routed, feedback_of, figures
from fedhlm_app.hosting.edge import build_edge
from fedhlm_app.learning.gradients import initial_policy, learn_locally
from fedhlm_app.results.figures import accuracy
from fedhlm_app.results.figures import figures as shares
from fedhlm_app.server.clusters import Clusters
from fedhlm_app.server.strategy import build_of
from fedhlm_app.settings import Settings
from fedhlm_app.trace.replaying import Here, LocalUpdate
from fedhlm_app.transport.transports import DirectTransport
from hlm.arrays import FloatArray
from servers.edge.server import EdgeServer
from servers.llm import LanguageModelService

__all__ = ["live"]


class _ToEdge(DirectTransport):
    """Reaches an edge server that may not be there yet."""

    def __init__(self, servers: list[EdgeServer], cluster: int) -> None:
        self.servers, self.cluster = servers, cluster

    def exchange(self, payload: bytes) -> bytes:
        """Send a message, return the reply."""
        return self.servers[self.cluster].handle(payload)


def live(
    settings: Settings, service: LanguageModelService, listen: Callable[[int], None]
) -> dict[str, Any]:
    """All rounds of a run whose rule learns by gradients, or not at all.

    Parameters
    ----------
    settings : Settings
        Of the run; `average-at` ``cloud``.
    service : LanguageModelService
        The LLM.
    listen : callable
        Told how many rounds are done.

    Returns
    -------
    dict
        ``rounds`` as the lines of `metrics.jsonl`, and ``clients``: by client, its counts.
    """
    # It logs whom it asks in every round.
    getLogger("flwr").setLevel(WARNING)
    count, first = settings.clients, initial_policy(settings)
    clusters = Clusters(settings).map
    for client in range(count):
        clusters.register(client, client)
    strategy = build_of(settings, clusters, lambda record: None)
    assigned = clusters.clusters_of(range(count))
    sizes = np.bincount(assigned, minlength=settings.clusters)
    servers: list[EdgeServer] = []
    if settings.peer_mode != "off":
        for cluster in range(settings.clusters):
            members = [client for client in range(count) if assigned[client] == cluster]
            servers.append(build_edge(settings, 0, cluster, members, settings.clusters))
            others = [other for other in range(settings.clusters) if other != cluster]
            if settings.inter_cluster:
                servers[-1].neighbours = [_ToEdge(servers, other) for other in others]
    devices = [
        Device(settings, client, DirectTransport(service), lambda c: _ToEdge(servers, c))
        for client in range(count)
    ]
    states: list[Mapping[str, Any]] = [{} for _ in devices]
    stages, told = np.zeros((count, len(Stage)), np.int64), np.zeros((count, 6))
    lines, here = [], cast(Grid, Here(count))
    strategy.state.adopt(
        ArrayRecord({n: Array(a) for n, a in first.items()}), strategy.cluster_map.num_clusters
    )
    for number in range(1, settings.rounds + 1):
        current, updates = strategy.open_round(number, here), []
        sums: dict[str, Any] = {}
        for node in current.asked.values():
            device, (policy, arrays, config) = devices[node.client], strategy.told(current, node)
            if device.edge is not None:
                device.edge.join(node.cluster, int(sizes[node.cluster]), states[node.client])
            routed = device.train_round(device.policy(strategy.named(policy)), number)
            hits = {}
            if device.edge is not None:
                states[node.client] = device.edge.finish(routed.traffic)
                hits = device.edge.figures()
            begin = time.perf_counter()
            step = learn_locally(settings, policy, feedback_of(routed, settings), config, arrays)
            learning = time.perf_counter() - begin
            found = {**figures(routed, settings), **hits}
            for name, value in found.items():
                sums[name] = sums.get(name, 0) + value
            sums["seconds-learning"] = sums.get("seconds-learning", 0.0) + learning
            for records in routed.records:
                np.add.at(stages[node.client], records.stage[records.present], 1)
            told[node.client] += _told(routed, found)
            metrics = {"num-examples": step.examples, "loss-before": step.loss_before}
            metrics["local-steps"] = max(1, step.result.steps)
            updates.append(
                LocalUpdate(
                    node.node_id,
                    node.client,
                    float(step.examples),
                    metrics,
                    sent=step.result.policy,
                    extras={**step.result.arrays, "start": policy},
                )
            )
        begin = time.perf_counter()
        record = strategy.take(current, updates)
        for server in servers:
            server.publish()
        lines.append(
            {
                "round": number,
                "threshold": {"global": float(strategy.named(strategy.policy)["threshold"][0])},
                "loss": record.means.get("loss-before"),
                "accuracy": accuracy(sums, settings.workload),
                "seconds": {
                    "slm": sums["seconds-slm"],
                    "waited": sums["seconds-waited"],
                    "learning": sums["seconds-learning"],
                    "aggregation": time.perf_counter() - begin,
                },
                **shares(sums),
            }
        )
        listen(number)
    columns = ("correct", "answered", "uplink", "downlink", "edge", "uncertainty")
    by_client = {name: told[:, i].tolist() for i, name in enumerate(columns)}
    return {"rounds": lines, "clients": {"stages": stages.tolist(), **by_client}}


def _told(routed: Routed, found: Mapping[str, Any]) -> FloatArray:
    """A client's own counts, float64 [6]."""
    traffic = routed.traffic
    told = routed.correct, routed.answered, traffic.uplink, traffic.downlink, traffic.edge
    return np.array([*told, found["uncertainty"]])
