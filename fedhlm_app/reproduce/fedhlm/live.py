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
from fedhlm_app.client.routed import Routed, feedback_of, figures
from fedhlm_app.hosting.devices_here import DevicesHere
from fedhlm_app.learning.gradients import initial_policy, learn_locally
from fedhlm_app.results.figures import accuracy
from fedhlm_app.results.figures import figures as shares
from fedhlm_app.server.clusters import Clusters
from fedhlm_app.server.strategy import build_of
from fedhlm_app.settings import Settings
from fedhlm_app.trace.rounds import Here, LocalUpdate
from fedhlm_app.transport.transports import DirectTransport
from hlm.arrays import FloatArray
from hlm.state import state_to_bytes
from servers.llm import LanguageModelService
from strategies.sampling import Node

Sums = dict[str, Any]

COUNTS = ("correct", "answered", "uplink", "downlink", "edge", "uncertainty")
"""Sums that are kept of each client, beside its tokens by stage."""


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
        ``rounds`` as the lines of `metrics.jsonl`, ``clients``: by client, its counts, and
        ``memory``: bytes held after the last round by a device and an edge server on average, for
        caches and peers, and by the server for the policies.
    """
    # It logs whom it asks in every round.
    getLogger("flwr").setLevel(WARNING)
    clusters = Clusters(settings).map
    for client in range(settings.clients):
        clusters.register(client, client)
    strategy = build_of(settings, clusters, lambda record: None)
    first = ArrayRecord({n: Array(a) for n, a in initial_policy(settings).items()})
    strategy.state.adopt(first, strategy.cluster_map.num_clusters)
    assigned = clusters.clusters_of(range(settings.clients))
    devices = DevicesHere(settings, DirectTransport(service), assigned)
    clients = _Clients(settings, devices)
    lines, here = [], cast(Grid, Here(settings.clients))
    for number in range(1, settings.rounds + 1):
        current, updates = strategy.open_round(number, here), []
        sums: Sums = {}
        for node in current.asked.values():
            policy, arrays, config = strategy.told(current, node)
            routed = clients.route(node, strategy.named(policy), number, sums)
            updates.append(clients.learn(node, routed, policy, arrays, config, sums))
        begin = time.perf_counter()
        record = strategy.take(current, updates)
        devices.edges.publish()
        seconds = time.perf_counter() - begin
        threshold = float(strategy.named(strategy.policy)["threshold"][0])
        loss = record.means.get("loss-before")
        lines.append(_line(settings, number, threshold, loss, seconds, sums))
        listen(number)
    memory = {
        "device": devices.memory(),
        "edge": float(np.mean([one.memory for one in devices.edges.servers] or [0])),
        "server": len(state_to_bytes(strategy.state_dict())),
    }
    return {"rounds": lines, "clients": clients.told(), "memory": memory}


class _Clients:
    """The devices of a run, and what has come of their tokens.

    Parameters
    ----------
    settings : Settings
    devices : DevicesHere
    """

    def __init__(self, settings: Settings, devices: DevicesHere) -> None:
        self._settings, self._devices = settings, devices
        self._stages = np.zeros((settings.clients, len(Stage)), np.int64)
        self._counts = np.zeros((settings.clients, len(COUNTS)))

    def route(
        self, node: Node, policy: Mapping[str, FloatArray], number: int, sums: Sums
    ) -> Routed:
        """A client's tokens of a round; their figures are added to the round's."""
        client = node.client
        device = self._devices.joined(client)
        routed = device.train_round(device.policy(policy), number)
        edge = self._devices.finish(device, routed.traffic)
        found, traffic = figures(routed, self._settings), routed.traffic
        counts = routed.correct, routed.answered, traffic.uplink, traffic.downlink, traffic.edge
        self._counts[client] += [*counts, found["uncertainty"]]
        _add(sums, {**found, **edge})
        for records in routed.records:
            np.add.at(self._stages[client], records.stage[records.present], 1)
        return routed

    def learn(
        self,
        node: Node,
        routed: Routed,
        policy: FloatArray,
        arrays: Mapping[str, FloatArray],
        config: Mapping[str, Any],
        sums: Sums,
    ) -> LocalUpdate:
        """What the client sends after its round; the seconds it took are added to the round's."""
        settings, begin = self._settings, time.perf_counter()
        step = learn_locally(settings, policy, feedback_of(routed, settings), config, arrays)
        _add(sums, {"seconds-learning": time.perf_counter() - begin})
        return LocalUpdate(
            node.node_id,
            node.client,
            float(step.examples),
            {
                "num-examples": step.examples,
                "loss-before": step.loss_before,
                "local-steps": max(1, step.result.steps),
            },
            sent=step.result.policy,
            extras={**step.result.arrays, "start": policy},
        )

    def told(self) -> dict[str, list[Any]]:
        """By client: tokens by stage, and `COUNTS`."""
        counts = {name: self._counts[:, i].tolist() for i, name in enumerate(COUNTS)}
        return {"stages": self._stages.tolist(), **counts}


def _add(sums: Sums, found: Mapping[str, Any]) -> None:
    for name, value in found.items():
        sums[name] = sums.get(name, 0) + value


def _line(
    settings: Settings,
    number: int,
    threshold: float,
    loss: float | None,
    aggregation: float,
    sums: Sums,
) -> dict[str, Any]:
    """One round, as `metrics.jsonl` has it."""
    return {
        "round": number,
        "threshold": {"global": threshold},
        "loss": loss,
        "accuracy": accuracy(sums, settings.workload),
        "seconds": {
            "slm": sums["seconds-slm"],
            "waited": sums["seconds-waited"],
            "learning": sums["seconds-learning"],
            "aggregation": aggregation,
        },
        **shares(sums),
    }
