"""What goes down to a client in a round, and what its reply must then look like."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from strategies.aggregation import FloatArray
from strategies.record_options import RecordOptions
from strategies.sampling import Node
from strategies.server_state import ServerState
from strategies.validation import ReplySchema

Personalisation = Literal["global", "cluster", "local", "shrunk"]


@dataclass
class Outbox:
    """Writes messages; fields as the parameters of `strategies.hierarchical.Hierarchical`.

    Clients that start from the same policy share one copy of its bytes, which is let go by
    `close`.
    """

    state: ServerState
    personalisation: Personalisation
    shrink_weight: float
    max_weight: float
    require_echo: bool
    records: RecordOptions
    _arrays: dict[int, dict[str, Array]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        allowed = get_args(Personalisation)
        if self.personalisation not in allowed:
            raise ValueError(f"personalisation: {self.personalisation!r}; allowed: {allowed}")
        if not self.shrink_weight >= 0:
            raise ValueError(f"shrink_weight: {self.shrink_weight}; allowed: >= 0")
        if not self.max_weight > 0:
            raise ValueError(f"max_weight: {self.max_weight}; allowed: > 0")

    @property
    def personal(self) -> bool:
        """Whether each client goes on from a policy of its own."""
        return self.personalisation in ("local", "shrunk")

    @property
    def own_starts(self) -> bool:
        """Whether a client has to say where it started from, since its cluster does not tell."""
        return self.state.method.needs_start and self.personal

    def starting_points(self) -> FloatArray:
        """What each cluster's clients are sent, float64 [C, d]; not to be written to."""
        tiers = self.state.tiers
        if self.personalisation == "global":
            return np.broadcast_to(tiers.policy, tiers.clusters.shape)
        return tiers.clusters

    def message(
        self, server_round: int, node: Node, config: ConfigRecord, kind: str, sent: FloatArray
    ) -> Message:
        """One client's message; ``sent [C, d]`` is what each cluster starts from."""
        memory, method = self.state.memory, self.state.method
        row = 0 if self.personalisation == "global" else node.cluster
        if row not in self._arrays:
            self._arrays[row] = self.state.layout.unflatten(sent[row])
        settings: dict[str, Any] = {
            **config,
            **method.config(),
            "round": server_round,
            "server-round": server_round,
            "cluster": node.cluster,
            "personalisation": self.personalisation,
            "accepted-round": memory.accepted_round(node.name),
        }
        extras: dict[str, FloatArray] = {}
        if kind == "train":
            extras |= method.arrays_down(node.cluster, self.personalisation == "global")
            extras |= method.client_arrays(node.name)
        if self.personal:
            extras["cluster"] = self.state.tiers.clusters[node.cluster]
            settings["shrink-weight"] = float(self.shrink_weight)
            if node.name in memory.values:
                extras["own"] = memory.values[node.name]
                settings["own-weight"] = memory.weights[node.name]
        arrays = self._arrays[row] | {key: Array(np.array(v)) for key, v in extras.items()}
        content = RecordDict(
            {
                self.records.arrays_key: ArrayRecord(arrays),
                self.records.config_key: ConfigRecord(settings),
            }
        )
        return Message(content, node.node_id, kind, group_id=str(server_round))

    def close(self) -> None:
        """Let go of what messages shared."""
        self._arrays.clear()

    def schema(self, server_round: int, asked: Mapping[int, Node], train: bool) -> ReplySchema:
        """What replies of the nodes in `asked` must look like."""
        tiers, method = self.state.tiers, self.state.method
        extras = dict(method.reply_extras) if train else {}
        if train and self.own_starts:
            extras["start"] = float(np.max(np.abs([tiers.low, tiers.high])))
        return ReplySchema(
            layout=self.state.layout if train else None,
            low=tiers.low,
            high=tiers.high,
            server_round=server_round,
            clients={node_id: node.client for node_id, node in asked.items()},
            extras=extras,
            metric_ranges=method.reply_metrics if train else {},
            weight_key=self.records.weight_key,
            max_weight=self.max_weight,
            require_echo=self.require_echo,
        )
