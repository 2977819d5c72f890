"""The calibration phase: thresholds from summed curves instead of averaged policies.

Clients work with the threshold they are sent and answer with list metrics that add up. The
policies they send back are an echo and are not averaged. A training phase may come first: then the
policy has other arrays too, the threshold is held where everything is escalated while they are
trained, and they are frozen while the threshold is calibrated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np

from hlm.arrays import BoolArray, FloatArray
from hlm.local_steps import Personalisation
from hlm.state import State
from strategies.calibration import Calibration
from strategies.cluster_map import ClusterMap, KnowsClients
from strategies.outbox import Start
from strategies.phases import Addition, Round
from strategies.pooled import PooledCalibration
from strategies.records import RoundRecord
from strategies.sampling import Node
from strategies.server_state import ServerState
from strategies.shortfall import Shortfall
from strategies.validation import Refusal, Update

SumsCheck = Callable[[Mapping[str, FloatArray]], str]
"""Says what is wrong with one reply's sums; an empty string when nothing is."""


@dataclass(frozen=True)
class CalibrationOptions:
    """Thresholds from sums: pooled over all clients, over clusters, or for single clients.

    Attributes
    ----------
    rule : Calibration
        Turns sums into thresholds. `privacy` of the strategy only counts here: the rule adds the
        noise to sums.
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
    training_rounds : int
        First rounds, in which a model is trained as without calibration, >= 0; with tier
        ``global`` or ``cluster`` only. No sums are asked for. `privacy` is around the model then.
    learned : bool
        Those rounds train the threshold too: nothing above what they learned is certified.
    array : str
        Name of the policy's array that is the threshold, a single number.
    """

    rule: Calibration
    tier: Personalisation = "global"
    pseudo: float = 50.0
    check: SumsCheck | None = None
    clients: int = 0
    training_rounds: int = 0
    learned: bool = False
    array: str = "threshold"

    def __post_init__(self) -> None:
        if self.tier not in get_args(Personalisation):
            raise ValueError(
                f"tier: {self.tier!r}; allowed: {', '.join(get_args(Personalisation))}"
            )
        if self.tier == "shrunk" and not isinstance(self.rule, PooledCalibration):
            raise ValueError("tier: 'shrunk'; allowed with pooled sums only")
        if self.training_rounds and self.tier not in ("global", "cluster"):
            raise ValueError(f"tier: {self.tier!r}; allowed after training: global, cluster")
        for name in ("pseudo", "clients", "training_rounds"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}: {getattr(self, name)}; allowed: >= 0")

    def start(self, personalisation: str | None) -> Start:
        """What clients start from, which `tier` says and nothing else may."""
        if personalisation is not None:
            raise ValueError(f"personalisation: {personalisation!r}; allowed without calibration")
        return Start("global" if self.tier == "global" else "cluster")

    def check_map(self, cluster_map: ClusterMap) -> None:
        """Refuse a map that can't tell clusters of clients which have not connected yet."""
        if self.clients and self.tier == "cluster" and not isinstance(cluster_map, KnowsClients):
            raise ValueError("cluster_map: has no cluster_of; allowed with clients = 0")


class Calibrating:
    """Asks clients for sums and moves thresholds by them.

    A threshold speaks about all clients that share it. With fewer than all asked in a round, those
    that have contributed least are asked first: a calibration loses least where contributions are
    even. Each is told which of its contributions is wanted (``contribution``, from 0): one that
    was lost on the way is asked for again.

    Parameters
    ----------
    options : CalibrationOptions
    state : ServerState
    private : bool
        Sums may be seen with noise only.
    """

    def __init__(self, options: CalibrationOptions, state: ServerState, private: bool) -> None:
        self.rule, self.options, self.state, self.private = options.rule, options, state, private
        self._clusters: dict[int, int] = {}
        self._connected: dict[int, int] = {}

    def lengths(self) -> Mapping[str, int]:
        """See `Phase`."""
        return self.rule.lengths()

    def client_values(self) -> dict[int, FloatArray]:
        """Its cluster's policy with the threshold in force, for every client heard of."""
        return {
            client: self._clamped(
                self.rule.result(self._group(client, cluster)), self.state.tiers.clusters[cluster]
            )
            for client, cluster in sorted(self._clusters.items())
        }

    def turns(self, nodes: Sequence[Node]) -> Sequence[int]:
        """Those who have contributed least come first."""
        ranks = []
        for node in nodes:
            if node.client >= 0 or not self.options.clients:
                self._connected[node.name] = node.cluster
            group = self._group(node.name, node.cluster)
            active = self.rule.active(group)
            ranks.append(self.rule.attendance(group).turn(node.name) if active else 0)
        return ranks

    def _members(self, current: Round) -> dict[int, set[int]]:
        """All clients by the group whose threshold they share, heard of or not."""
        clusters = dict.fromkeys(range(self.options.clients), 0)
        if isinstance(current.cluster_map, KnowsClients):
            clusters = {client: current.cluster_map.cluster_of(client) for client in clusters}
        members: dict[int, set[int]] = {}
        for client, cluster in {**clusters, **self._connected}.items():
            members.setdefault(self._group(client, cluster), set()).add(client)
        return members

    def _group(self, client: int, cluster: int) -> int:
        if self.options.tier == "global":
            return 0
        return cluster if self.options.tier == "cluster" else client

    def addition(self, current: Round, node: Node) -> Addition:
        """The threshold, and whether sums are wanted."""
        group = self._group(node.name, node.cluster)
        active = current.leg == "train" and self.rule.active(group)
        threshold = self.rule.trial(group) if active else self.rule.result(group)
        config: dict[str, int | bool] = {"calibrate": active}
        if active:
            attendance = self.rule.attendance(group)
            config["contribution"] = attendance.heard[node.name]
            attendance.ask(node.name)
            # Asked is sent, as far as privacy goes: a reply that is late or refused was seen too.
            self.state.releases += not current.wanted
            current.wanted.add(node.node_id)
        return Addition(config, self._clamped(threshold, current.sent[node.cluster]))

    def inspect(self, current: Round, updates: list[Update]) -> tuple[list[Update], list[Refusal]]:
        """Refuse replies without possible sums, where sums were wanted."""
        kept, refused = [], []
        for update in updates:
            problem = self._problem(update) if update.node_id in current.wanted else ""
            if problem:
                refused.append(Refusal("bad-metric", update.node_id, update.client, problem))
                continue
            if update.node_id in current.wanted:
                current.sums[update.node_id] = self._sums(update)
            if self.private:
                # Sums without noise must not reach records and reports.
                metrics = {k: v for k, v in update.metrics.items() if not isinstance(v, list)}
                update = replace(update, metrics=metrics)
            kept.append(update)
        return kept, refused

    def _problem(self, update: Update) -> str:
        for name, length in self.rule.lengths().items():
            value = update.metrics.get(name)
            if not isinstance(value, list) or len(value) != length:
                return f"{name!r}; allowed: a list of {length} numbers"
        return "" if self.options.check is None else self.options.check(self._sums(update))

    def _sums(self, update: Update) -> dict[str, FloatArray]:
        return {
            name: np.asarray(update.metrics[name], dtype=np.float64) for name in self.rule.lengths()
        }

    def meet(self, current: Round, updates: list[Update]) -> None:
        """Note the clusters of clients that were heard."""
        for update in updates:
            node = current.asked[update.node_id]
            self._clusters[node.name] = node.cluster

    def aggregate(self, current: Round, updates: list[Update]) -> BoolArray:
        """Hand each group's sums to the rule, and publish the thresholds that come of it."""
        self.meet(current, updates)
        given: dict[int, dict[int, dict[str, FloatArray]]] = {}
        heard = np.zeros(self.state.tiers.num_clusters, dtype=np.bool_)
        for update in updates:
            node = current.asked[update.node_id]
            heard[node.cluster] = True
            group = self._group(node.name, node.cluster)
            if update.node_id in current.wanted and self.rule.active(group):
                given.setdefault(group, {})[node.name] = current.sums[update.node_id]
        members = self._members(current) if given else {}
        for group, sums in given.items():
            self.rule.absorb(group, sums, members.get(group, set()))
        if self.options.tier == "shrunk" and isinstance(self.rule, PooledCalibration):
            self.rule.shrink(self._clusters, self.options.pseudo)
        self._publish(heard)
        return heard

    def _publish(self, heard: BoolArray) -> None:
        """Write the thresholds in force into the two tiers, for reports and new clients."""
        tiers = self.state.tiers
        values: dict[int, list[float]] = {}
        for client, cluster in sorted(self._clusters.items()):
            threshold = self.rule.result(self._group(client, cluster))
            values.setdefault(cluster, []).append(threshold)
        for cluster, thresholds in values.items():
            mean = float(np.mean(thresholds))
            tiers.clusters[cluster] = self._clamped(mean, tiers.clusters[cluster])
        tiers.reported = tiers.reported | heard
        if self.options.tier == "global":
            tiers.policy = self._clamped(self.rule.result(0), tiers.policy)
        elif tiers.reported.any():
            tiers.policy = tiers.clusters[tiers.reported].mean(axis=0)

    @property
    def learned(self) -> dict[int, float]:
        """What each group had learned when its search began; nothing before that."""
        groups = [0] if self.options.tier == "global" else range(self.state.tiers.num_clusters)
        found = {group: self.rule.learned(group) for group in groups}
        return {group: value for group, value in found.items() if value is not None}

    @property
    def waits(self) -> bool:
        """Whether thresholds are still learned, so that there is nothing to certify."""
        return self.options.learned and not self.learned

    def begin(self) -> None:
        """Have every group's search begin at what it has learned, unless it has begun."""
        tiers, name = self.state.tiers, self.options.array
        policies = {0: tiers.policy} if self.options.tier == "global" else enumerate(tiers.clusters)
        for group, policy in dict(policies).items():
            self.rule.begin(group, float(self.state.layout.part(policy, name)[0]))

    def hold(self) -> None:
        """Put all thresholds back to where the rule has them."""
        tiers = self.state.tiers
        tiers.policy = self._clamped(self.rule.result(0), tiers.policy)
        for cluster in range(tiers.num_clusters):
            threshold = self.rule.result(cluster)
            tiers.clusters[cluster] = self._clamped(threshold, tiers.clusters[cluster])

    def _clamped(self, threshold: float, policy: FloatArray) -> FloatArray:
        """A policy float64 [d] with this threshold in place of its own."""
        placed = np.array(policy, dtype=np.float64)
        self.state.layout.part(placed, self.options.array)[:] = threshold
        return np.asarray(np.clip(placed, self.state.tiers.low, self.state.tiers.high))

    def stage(self, record: RoundRecord) -> dict[str, int]:
        """How many groups of the clients of `record` still gather sums, and how many do not."""
        groups = {self._group(c, k) for c, k in record.clients.items()}
        active = sum(self.rule.active(group) for group in groups)
        return {"calibrating": active, "settled": len(groups) - active}

    def shortfall(self) -> Shortfall:
        """How far the groups of the clients heard of are from a threshold that keeps something."""
        groups = {self._group(c, k) for c, k in self._clusters.items()} or {0}
        without = [group for group in groups if self.rule.result(group) < 0]
        certified = len(groups) - len(without)
        if not without:
            return Shortfall(len(groups), certified, 0, 0, 0.0, False)
        last = min(without, key=lambda group: (self.rule.heard(group), group))
        trial = self.rule.trial(last)
        if self.waits:
            trial = float(self.state.layout.part(self.state.tiers.policy, self.options.array)[0])
        return Shortfall(
            len(groups),
            certified,
            self.rule.heard(last),
            self.rule.lacking(last),
            trial,
            self.rule.active(last),
        )

    def state_dict(self) -> State:
        """The rule's state, and who was heard and connected."""
        return {
            "calibration": self.rule.state_dict(),
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
        self.rule.load_state_dict(state["calibration"])
        self._clusters = {int(k): int(v) for k, v in state["client_clusters"].items()}
        self._connected = {int(k): int(v) for k, v in state["connected"].items()}
