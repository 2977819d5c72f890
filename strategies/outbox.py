"""What goes down to a client in a round, and what its reply must then look like."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from hlm.arrays import FloatArray
from hlm.local_steps import Personalisation
from strategies.phases import Addition, Phase, Round
from strategies.record_options import RecordOptions
from strategies.sampling import Node
from strategies.server_state import ServerState
from strategies.validation import ReplyLimits, ReplySchema


@dataclass(frozen=True)
class Start:
    """What a client starts from.

    Attributes
    ----------
    personalisation : str
        ``global`` the global policy, ``cluster`` its cluster's; ``local`` and ``shrunk`` its own,
        as last accepted, or the cluster's the first time; ``shrunk`` draws the own one towards
        the cluster's: (n_k own + m cluster) / (n_k + m).
    shrink_weight : float
        m above, in tokens, >= 0.
    """

    personalisation: Personalisation = "global"
    shrink_weight: float = 100.0

    def __post_init__(self) -> None:
        allowed = get_args(Personalisation)
        if self.personalisation not in allowed:
            raise ValueError(f"personalisation: {self.personalisation!r}; allowed: {allowed}")
        if not self.shrink_weight >= 0:
            raise ValueError(f"shrink_weight: {self.shrink_weight}; allowed: >= 0")

    @property
    def shared(self) -> bool:
        """Whether all clients start from one policy."""
        return self.personalisation == "global"

    @property
    def own(self) -> bool:
        """Whether each client goes on from a policy of its own."""
        return self.personalisation in ("local", "shrunk")


@dataclass
class Outbox:
    """Writes messages. Clients that start from the same policy share one copy of its bytes."""

    state: ServerState
    start: Start
    limits: ReplyLimits
    records: RecordOptions
    _arrays: dict[int, dict[str, Array]] = field(default_factory=dict)

    @property
    def own_starts(self) -> bool:
        """Whether a client has to say where it started from, since its cluster does not tell."""
        return self.state.method.needs_start and self.start.own

    def starting_points(self) -> FloatArray:
        """What each cluster's clients are sent, float64 [C, d]; not to be written to."""
        tiers = self.state.tiers
        if self.start.shared:
            return np.broadcast_to(tiers.policy, tiers.clusters.shape)
        return tiers.clusters

    def messages(self, current: Round, phase: Phase, config: ConfigRecord) -> list[Message]:
        """One message for each client that is asked; the caller's `config` goes with all."""
        messages = [
            self._message(current, node, config, phase.addition(current, node))
            for node in current.asked.values()
        ]
        self._arrays.clear()
        return messages

    def told(
        self, current: Round, node: Node, addition: Addition
    ) -> tuple[dict[str, FloatArray], dict[str, Any]]:
        """What a client is told beside the policy: arrays float64 [d], and its config."""
        memory, method, start = self.state.memory, self.state.method, self.start
        settings: dict[str, Any] = {
            **method.config(),
            "round": current.number,
            "server-round": current.number,
            "cluster": node.cluster,
            "personalisation": start.personalisation,
            "accepted-round": memory.accepted_round(node.name),
            **addition.config,
        }
        extras: dict[str, FloatArray] = {}
        if current.leg == "train":
            extras |= method.arrays_down(node.cluster, start.shared)
            extras |= method.client_arrays(node.name)
        if start.own:
            extras["cluster"] = self.state.tiers.clusters[node.cluster]
            settings["shrink-weight"] = float(start.shrink_weight)
            if node.name in memory.values:
                extras["own"] = memory.values[node.name]
                settings["own-weight"] = memory.weights[node.name]
        return extras, settings

    def _message(
        self, current: Round, node: Node, config: ConfigRecord, addition: Addition
    ) -> Message:
        if addition.policy is None:
            row = 0 if self.start.shared else node.cluster
            if row not in self._arrays:
                self._arrays[row] = self.state.layout.unflatten(current.sent[row])
            policy = self._arrays[row]
        else:
            policy = self.state.layout.unflatten(addition.policy)
        extras, settings = self.told(current, node, addition)
        arrays = policy | {key: Array(np.array(v)) for key, v in extras.items()}
        content = RecordDict(
            {
                self.records.arrays_key: ArrayRecord(arrays),
                self.records.config_key: ConfigRecord({**config, **settings}),
            }
        )
        return Message(content, node.node_id, current.leg, group_id=str(current.number))

    def schema(self, current: Round) -> ReplySchema:
        """What replies must look like."""
        tiers, method, train = self.state.tiers, self.state.method, current.leg == "train"
        extras = dict(method.reply_extras) if train else {}
        if train and self.own_starts:
            extras["start"] = float(np.max(np.abs([tiers.low, tiers.high])))
        return ReplySchema(
            layout=self.state.layout if train else None,
            low=tiers.low,
            high=tiers.high,
            server_round=current.number,
            clients={node_id: node.client for node_id, node in current.asked.items()},
            extras=extras,
            metric_ranges={**self.limits.metric_ranges, **method.reply_metrics} if train else {},
            weight_key=self.records.weight_key,
            max_weight=self.limits.max_weight,
            require_echo=self.limits.require_echo,
        )
