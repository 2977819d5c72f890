"""A strategy that sets thresholds from summed curves instead of averaging policies.

Clients work with the threshold they are sent and answer with list metrics that add up. The
policies they send back are an echo and are not averaged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid

from strategies.aggregation import BoolArray, FloatArray
from strategies.calibration import Calibration, PooledCalibration
from strategies.cluster_map import ClusterMap, KnowsClients
from strategies.hierarchical import Hierarchical
from strategies.records import RoundRecord
from strategies.rules import State
from strategies.sampling import Node
from strategies.validation import Refusal, Update

Tier = Literal["global", "cluster", "local", "shrunk"]
SumsCheck = Callable[[Mapping[str, FloatArray]], str]
"""Says what is wrong with one reply's sums; an empty string when nothing is."""


class Calibrated(Hierarchical):
    """Thresholds from sums: pooled over all clients, over clusters, or for single clients.

    A threshold speaks about all clients that share it. With fewer than all asked in a round, those
    that have contributed least are asked first: a calibration loses least where contributions are
    even. Each is told which of its contributions is wanted (``contribution``, from 0): one that
    was lost on the way is asked for again.

    Parameters
    ----------
    calibration : Calibration
        Turns sums into thresholds.
    cluster_map : ClusterMap, optional
    tier : str
        Who shares a threshold: ``global`` all, ``cluster`` a cluster, ``local`` nobody,
        ``shrunk`` nobody, each client's sums being joined by `pseudo` prompts of its cluster's
        mean. The first two need sums over clients only, so secure aggregation fits.
    pseudo : float
        See ``shrunk``, >= 0; needs a `PooledCalibration`.
    check : callable, optional
        Refuses impossible sums, see `SumsCheck`.
    clients : int
        Clients of the federation, numbered from 0, whether they ever connect or not; with
        ``cluster`` the cluster map must know their clusters (`cluster_of`). Clients that connect
        beyond that number belong to it too, so 0 means those that have ever connected.
    options
        Those of `Hierarchical`, without rules, method and personalisation. `privacy` only counts
        here: the calibration adds the noise to sums.
    """

    def __init__(
        self,
        calibration: Calibration,
        cluster_map: ClusterMap | None = None,
        *,
        tier: Tier = "global",
        pseudo: float = 50.0,
        check: SumsCheck | None = None,
        clients: int = 0,
        **options: Any,
    ) -> None:
        if tier not in get_args(Tier):
            raise ValueError(f"tier: {tier!r}; allowed: {', '.join(get_args(Tier))}")
        if tier == "shrunk" and not isinstance(calibration, PooledCalibration):
            raise ValueError("tier: 'shrunk'; allowed with pooled sums only")
        if not pseudo >= 0:
            raise ValueError(f"pseudo: {pseudo}; allowed: >= 0")
        super().__init__(
            cluster_map, personalisation="global" if tier == "global" else "cluster", **options
        )
        self.calibration, self.tier, self.pseudo, self.check = calibration, tier, pseudo, check
        if clients < 0:
            raise ValueError(f"clients: {clients}; allowed: >= 0")
        if clients and tier == "cluster" and not isinstance(self.cluster_map, KnowsClients):
            raise ValueError("cluster_map: has no cluster_of; allowed with clients = 0")
        self.clients = clients
        self._clusters: dict[int, int] = {}
        self._connected: dict[int, int] = {}
        self._wanted: set[int] = set()
        self._taken: dict[int, dict[str, FloatArray]] = {}

    @property
    def client_values(self) -> dict[int, FloatArray]:
        """Threshold in force for every client heard of, float64 [1] each."""
        return {
            client: np.array([self.calibration.result(self._group(client, cluster))])
            for client, cluster in sorted(self._clusters.items())
        }

    @property
    def releases(self) -> int:
        """Rounds in which clients were asked for sums, whatever came of them."""
        return self.state.releases

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Write each client its message, and count the release of its sums."""
        self._wanted.clear()
        self._taken.clear()
        messages = list(super().configure_train(server_round, arrays, config, grid))
        # Asked is sent, as far as privacy goes: a reply that is late or refused was seen too.
        self.state.releases += bool(self._wanted)
        return messages

    def _turns(self, nodes: Sequence[Node]) -> Sequence[int]:
        ranks = []
        for node in nodes:
            if node.client >= 0 or not self.clients:
                self._connected[node.name] = node.cluster
            group = self._group(node.name, node.cluster)
            active = self.calibration.active(group)
            ranks.append(self.calibration.attendance(group).turn(node.name) if active else 0)
        return ranks

    def _members(self) -> dict[int, set[int]]:
        """All clients by the group whose threshold they share, heard of or not."""
        clusters = dict.fromkeys(range(self.clients), 0)
        if isinstance(self.cluster_map, KnowsClients):
            clusters = {client: self.cluster_map.cluster_of(client) for client in clusters}
        members: dict[int, set[int]] = {}
        for client, cluster in {**clusters, **self._connected}.items():
            members.setdefault(self._group(client, cluster), set()).add(client)
        return members

    def _group(self, client: int, cluster: int) -> int:
        if self.tier == "global":
            return 0
        return cluster if self.tier == "cluster" else client

    def _message(self, server_round: int, node: Node, config: ConfigRecord, kind: str) -> Message:
        message = super()._message(server_round, node, config, kind)
        group = self._group(node.name, node.cluster)
        active = kind == "train" and self.calibration.active(group)
        threshold = self.calibration.trial(group) if active else self.calibration.result(group)
        record = message.content.array_records["arrays"]
        placed = self._clamped(threshold, self._sent[node.cluster])
        record.update(self.state.layout.unflatten(placed))
        settings = message.content.config_records["config"]
        settings["calibrate"] = active
        if active:
            attendance = self.calibration.attendance(group)
            settings["contribution"] = attendance.heard[node.name]
            attendance.ask(node.name)
            self._wanted.add(node.node_id)
        return message

    def _inspect(self, updates: list[Update]) -> tuple[list[Update], list[Refusal]]:
        kept, refused = [], []
        for update in updates:
            problem = self._problem(update)
            if problem:
                refused.append(Refusal("bad-metric", update.node_id, update.client, problem))
                continue
            if update.node_id in self._wanted:
                self._taken[update.node_id] = self._sums(update)
            if self.privacy is not None:
                # Sums without noise must not reach records and reports.
                metrics = {k: v for k, v in update.metrics.items() if not isinstance(v, list)}
                update = replace(update, metrics=metrics)
            kept.append(update)
        return kept, refused

    def _problem(self, update: Update) -> str:
        if update.node_id not in self._wanted:
            return ""
        for name, length in self.calibration.lengths().items():
            value = update.metrics.get(name)
            if not isinstance(value, list) or len(value) != length:
                return f"{name!r}; allowed: a list of {length} numbers"
        return "" if self.check is None else self.check(self._sums(update))

    def _sums(self, update: Update) -> dict[str, FloatArray]:
        return {
            name: np.asarray(update.metrics[name], dtype=np.float64)
            for name in self.calibration.lengths()
        }

    def _aggregate(self, server_round: int, updates: list[Update]) -> BoolArray:
        tiers = self.state.tiers
        given: dict[int, dict[int, dict[str, FloatArray]]] = {}
        heard = np.zeros(tiers.num_clusters, dtype=np.bool_)
        for update in updates:
            node = self._asked[update.node_id]
            self._clusters[node.name] = node.cluster
            heard[node.cluster] = True
            group = self._group(node.name, node.cluster)
            if update.node_id in self._wanted and self.calibration.active(group):
                given.setdefault(group, {})[node.name] = self._taken[update.node_id]
        members = self._members() if given else {}
        for group, sums in given.items():
            self.calibration.absorb(group, sums, members.get(group, set()))
        if self.tier == "shrunk" and isinstance(self.calibration, PooledCalibration):
            self.calibration.shrink(self._clusters, self.pseudo)
        self._publish(heard)
        return heard

    def _publish(self, heard: BoolArray) -> None:
        """Write the thresholds in force into the two tiers, for reports and new clients."""
        tiers = self.state.tiers
        values: dict[int, list[float]] = {}
        for client, value in self.client_values.items():
            values.setdefault(self._clusters[client], []).append(float(value[0]))
        for cluster, thresholds in values.items():
            mean = float(np.mean(thresholds))
            tiers.clusters[cluster] = self._clamped(mean, tiers.clusters[cluster])
        tiers.reported = tiers.reported | heard
        if self.tier == "global":
            tiers.policy = self._clamped(self.calibration.result(0), tiers.policy)
        elif tiers.reported.any():
            tiers.policy = tiers.clusters[tiers.reported].mean(axis=0)

    def _clamped(self, threshold: float, policy: FloatArray) -> FloatArray:
        """A policy float64 [d] whose first entry is the threshold, with this one in its place."""
        placed = np.array(policy, dtype=np.float64)
        placed[0] = threshold
        return np.asarray(np.clip(placed, self.state.tiers.low, self.state.tiers.high))

    def stage(self, record: RoundRecord) -> dict[str, int]:
        """How many groups of the clients of `record` still gather sums, and how many do not."""
        groups = {self._group(c, k) for c, k in record.clients.items()}
        active = sum(self.calibration.active(group) for group in groups)
        return {"calibrating": active, "settled": len(groups) - active}

    def state_dict(self) -> State:
        """Everything needed to continue identically."""
        return {
            **super().state_dict(),
            "calibration": self.calibration.state_dict(),
            "client_clusters": {str(client): c for client, c in self._clusters.items()},
            "connected": {str(client): c for client, c in self._connected.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`'s value."""
        if "connected" not in state:
            raise ValueError(
                "state: of a version that did not note which client brought how many prompts, "
                "without which nothing can be certified; allowed: states of this version"
            )
        super().load_state_dict(state)
        self.calibration.load_state_dict(state["calibration"])
        self._clusters = {int(k): int(v) for k, v in state["client_clusters"].items()}
        self._connected = {int(k): int(v) for k, v in state["connected"].items()}
