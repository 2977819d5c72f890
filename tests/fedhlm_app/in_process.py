"""Whole runs in this process: real ClientApp and Federation, a grid without Ray or network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedhlm_app import client_app
from fedhlm_app.client import rounds as client_rounds
from fedhlm_app.client.device import Device
from fedhlm_app.hosting import edge as edge_hosting
from fedhlm_app.hosting.llm import build_service
from fedhlm_app.results.runs import RunFolder
from fedhlm_app.server.rounds import Federation
from fedhlm_app.server.served_edges import ServedEdges
from fedhlm_app.settings import Settings
from fedhlm_app.transport import edge_access
from fedhlm_app.transport.actor_names import edge_actor_name
from fedhlm_app.transport.transports import DirectTransport
from servers.edge.server import EdgeServer

DEFAULTS = {
    "clients": 4,
    "clusters": 2,
    "rounds": 2,
    "tokens-per-round": 20,
    "tokens-per-prompt": 5,
    "evaluate-every": 0,
    # Runs whose streams matter ask for them.
    "escalation": "token",
}


def settings_of(**changes) -> Settings:
    given = {**DEFAULTS, **{key.replace("_", "-"): value for key, value in changes.items()}}
    return Settings.from_sources(given, {})


class LocalGrid:
    """Nodes 100, 101, ... are clients 0, 1, ...; `stop_after` rounds the server is killed."""

    def __init__(self, settings: Settings, service, stop_after: int | None = None) -> None:
        self.settings, self.service, self.stop_after = settings, service, stop_after
        self.contexts = {
            100 + client: Context(
                run_id=1,
                node_id=100 + client,
                node_config={"partition-id": client, "num-partitions": settings.clients},
                state=RecordDict(),
                run_config=settings.handed_on(),
            )
            for client in range(settings.clients)
        }
        self.replies: list[Message] = []

    def get_node_ids(self) -> list[int]:
        return list(self.contexts)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        answers = []
        for message in messages:
            config = message.content.config_records.get("config", {})
            if self.stop_after is not None and config.get("round", 0) > self.stop_after:
                raise KeyboardInterrupt
            context = self.contexts[message.metadata.dst_node_id]
            answers.append(client_app.app(message, context))
        self.replies += answers
        return answers


class LocalEdges:
    """The edge servers of a run, in place of their actors."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.servers: dict[str, EdgeServer] = {}

    def ensure(self, assignment: Sequence[int]) -> None:
        clusters = self.settings.clusters
        for cluster in range(clusters):
            members = [client for client, own in enumerate(assignment) if own == cluster]
            name = edge_actor_name(1, cluster)
            if name not in self.servers:
                self.servers[name] = edge_hosting.build_edge(
                    self.settings, 1, cluster, members, clusters
                )

    def open(self, number: int, summed) -> None:
        for cluster, server in enumerate(self.servers.values()):
            server.open(number, cluster in summed)

    def collect(self, number: int) -> dict[int, bytes]:
        return {i: server.collect(number) for i, server in enumerate(self.servers.values())}

    def publish(self) -> None:
        for server in self.servers.values():
            server.publish()


class EdgeLink:
    """Reaches an edge server by its actor's name, once it is there."""

    def __init__(self, edges: LocalEdges, name: str) -> None:
        self.edges, self.name = edges, name

    def exchange(self, payload: bytes) -> bytes:
        return self.edges.servers[self.name].handle(payload)


class Runner:
    """Builds devices once; runs share the LLM service."""

    def __init__(self, monkeypatch) -> None:
        self.service = build_service(settings_of())
        self.devices: dict[tuple[Settings, int], Device] = {}
        self.edges: LocalEdges | ServedEdges | None = None
        monkeypatch.setattr(client_rounds, "_device", self._device)
        monkeypatch.setattr(edge_access, "RayTransport", lambda name, _: EdgeLink(self.edges, name))
        # Flower's Message wants to know who writes it.
        for name in ("_task_id", "_run_id", "_node_id"):
            monkeypatch.setattr(TaskIdentity, name, 1)

    def _device(self, settings: Settings, client: int, run: int) -> Device:
        key = (settings, client)
        if key not in self.devices:
            self.devices[key] = Device(
                settings,
                client,
                DirectTransport(self.service),
                edge_access.edge_link(settings, run, 120.0),
            )
        return self.devices[key]

    def run(self, folder: Path, stop_after: int | None = None, **changes):
        settings = settings_of(**changes)
        if not settings.resume:
            settings = settings.model_copy(update={"run_dir": str(folder)})
        return self.start(settings, stop_after)

    def start(self, settings: Settings, stop_after: int | None = None):
        run_folder = RunFolder.create(settings, {})
        grid = LocalGrid(settings, self.service, stop_after)
        if settings.edges:
            self.edges = ServedEdges(settings, 1)
        else:
            self.edges = LocalEdges(settings) if settings.peer_mode != "off" else None
        federation = Federation(settings, None, run_folder, None, self.edges)
        federation.run(grid)
        return federation, run_folder, grid
