"""The federated half of rounds whose tokens come from elsewhere: a trace, or steps of a pipeline.

Who is asked, what clients are told, what they learn from their tokens and what becomes of it: for
all clients at once, by the code of a run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from logging import WARNING, getLogger
from typing import Any, cast

import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp import Grid

from clients.learning.feedback import Feedback
from clients.learning.owners import Owners
from clients.learning.profile import Profile
from clients.records import TokenRecords, Traffic
from fedhlm_app.client.routed import Routed, feedback_of, figures
from fedhlm_app.learning.gradients import initial_policy, loss_of
from fedhlm_app.learning.rules import reads_kept, sums_rule
from fedhlm_app.learning.together import Steps, learn_together
from fedhlm_app.results.figures import accuracy
from fedhlm_app.results.figures import figures as shares
from fedhlm_app.server.clusters import Clusters
from fedhlm_app.server.strategy import build_of
from fedhlm_app.settings import Settings, SettingsError
from hlm.arrays import BoolArray, FloatArray, IntArray
from hlm.local_steps import starting_point
from strategies.phases import Round
from strategies.records import RoundRecord
from strategies.sampling import Node
from strategies.validation import Update


@dataclass(frozen=True)
class LocalUpdate(Update):
    """What a client of this process sends: arrays that were never bytes."""

    sent: FloatArray = field(default_factory=lambda: np.zeros(0))
    extras: dict[str, FloatArray] = field(default_factory=dict)

    @property
    def values(self) -> FloatArray:
        """The client's policy, float64 [d]."""
        return self.sent

    def extra(self, key: str) -> FloatArray:
        """A further array of the local method, float64 [d]."""
        return self.extras[key]


class Here:
    """All clients are connected; node ids are client numbers."""

    def __init__(self, clients: int) -> None:
        self._ids = range(clients)

    def get_node_ids(self) -> Sequence[int]:
        """Numbers of all clients."""
        return self._ids


@dataclass(frozen=True)
class Told:
    """What c clients are told in a round.

    Attributes
    ----------
    starts : float64 [c, d]
        Where each starts.
    arrays : dict of str to float64 [c, d]
        What the local method needs beside.
    configs : list of dict
        The other entries of each one's message.
    calibrating, reading : bool [c]
        Asked for sums; has the LLM read what it keeps.
    """

    starts: FloatArray
    arrays: dict[str, FloatArray]
    configs: list[dict[str, Any]]
    calibrating: BoolArray
    reading: BoolArray

    @property
    def contributions(self) -> list[int]:
        """Which of each one's contributions to a calibration is wanted, see `RoundDraw`."""
        return [int(config.get("contribution", -1)) for config in self.configs]


class Rounds:
    """Rounds of a run, without the tokens.

    Parameters
    ----------
    settings : Settings
    generating : bool
        Texts may be generated, by devices with caches and edge servers: each token is decided
        before the next is drafted. Otherwise a round's tokens are decided all at once.

    Raises
    ------
    SettingsError
        On settings with which that cannot be.
    """

    def __init__(self, settings: Settings, *, generating: bool = False) -> None:
        _refuse(settings, generating and settings.workload == "generate")
        self.settings = settings
        self.clusters = Clusters(settings)
        self.strategy = build_of(settings, self.clusters.map, lambda record: None)
        self._register()

    def _register(self) -> None:
        for client in range(self.settings.clients):
            self.clusters.map.register(client, client)

    def start(self, profiles: Mapping[int, Profile] | None = None) -> None:
        """Take up the first policy, and clusters learned from all clients' profiles."""
        if profiles:
            self.clusters.learn(profiles, self.strategy)
        arrays = {name: Array(value) for name, value in initial_policy(self.settings).items()}
        self.strategy.state.adopt(ArrayRecord(arrays), self.strategy.cluster_map.num_clusters)

    def state_dict(self) -> dict[str, Any]:
        """What later rounds depend on."""
        return {"strategy": self.strategy.state_dict(), "clusters": self.clusters.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`'s value."""
        self.clusters.load_state_dict(state["clusters"], self.strategy)
        self._register()
        self.strategy.load_state_dict(state["strategy"])

    def open(self, number: int) -> Round:
        """Choose the clients of a round, from 1."""
        # It logs whom it asks in every round.
        getLogger("flwr").setLevel(WARNING)
        return self.strategy.open_round(number, cast(Grid, Here(self.settings.clients)))

    def told(self, current: Round, nodes: Sequence[Node]) -> Told:
        """What these clients are told."""
        told = [self.strategy.told(current, node) for node in nodes]
        starts = np.stack([policy for policy, _, _ in told])
        for row, (policy, extras, config) in enumerate(told):
            if config["personalisation"] in ("local", "shrunk"):
                starts[row] = starting_point(
                    config["personalisation"],
                    policy,
                    extras.get("cluster"),
                    extras.get("own"),
                    float(config.get("own-weight", 0.0)),
                    float(config.get("shrink-weight", 0.0)),
                )
        names = {name for _, extras, _ in told for name in extras} - {"cluster", "own"}
        zero = np.zeros(starts.shape[1])
        arrays = {
            name: np.stack([extras.get(name, zero) for _, extras, _ in told]) for name in names
        }
        calibrating = np.array([bool(config.get("calibrate")) for _, _, config in told])
        reads = [reads_kept(self.settings, current.number, asked) for asked in (False, True)]
        reading = np.where(calibrating, reads[1], reads[0])
        return Told(starts, arrays, [config for _, _, config in told], calibrating, reading)

    def learned(
        self,
        current: Round,
        nodes: Sequence[Node],
        told: Told,
        feedback: Feedback,
        owner: IntArray,
        counted: BoolArray,
    ) -> list[Update]:
        """What each client sends after its local steps.

        Parameters
        ----------
        current, nodes, told
            The round, clients of it, and what these were told.
        feedback : Feedback
            All their tokens.
        owner : int64 [n]
            Place of each token's client among `nodes`, rising.
        counted : bool [n]
            A calibration may count the token.
        """
        owners = Owners(owner, len(nodes))
        config = told.configs[0]
        steps = learn_together(
            self.settings,
            current.number,
            told.starts,
            feedback,
            owners,
            str(config["local-method"]),
            float(config.get("proximal-mu", 0.0)),
            told.arrays,
        )
        ends, sums = np.cumsum(owners.sizes), {}
        for place in np.flatnonzero(told.calibrating).tolist():
            own = np.arange(ends[place] - owners.sizes[place], ends[place])
            sums[place] = feedback.select(own[counted[own]])
        return list(self._updates(current.number, nodes, told.starts, steps, sums))

    def _updates(
        self,
        number: int,
        nodes: Sequence[Node],
        starts: FloatArray,
        steps: Steps,
        told: dict[int, Feedback],
    ) -> Iterator[Update]:
        """What each client sends; `told` are the tokens whose sums are wanted, by its place."""
        rule, examples = sums_rule(self.settings), steps.examples
        if loss_of(self.settings, number) is None:
            examples = np.zeros(len(nodes), np.int64)
            for place, feedback in told.items():
                examples[place] = feedback.known.sum()
        done, taken = examples.tolist(), np.maximum(1, steps.steps).tolist()
        losses, after = steps.before.tolist(), steps.after.tolist()
        for place, node in enumerate(nodes):
            metrics: dict[str, Any] = {
                "num-examples": done[place],
                "loss-before": losses[place],
                "loss-after": after[place],
                "local-steps": taken[place],
            }
            if rule is not None and place in told:
                metrics |= rule.sums(told[place])
            extras = {name: values[place] for name, values in steps.arrays.items()}
            extras["start"] = starts[place]
            yield LocalUpdate(
                node.node_id,
                node.client,
                float(done[place]),
                metrics,
                sent=steps.policies[place],
                extras=extras,
            )

    def line(
        self, record: RoundRecord, sums: dict[str, Any], told: Sequence[Update]
    ) -> dict[str, Any]:
        """One round, as `metrics.jsonl` has it, with thresholds of `told`.

        Without bytes, and without hits that were audited.
        """
        strategy = self.strategy

        def threshold(policy: FloatArray) -> float:
            return float(strategy.named(policy)["threshold"][0])

        found = shares(sums)
        for unknown in ("bytes", "exchanges", "false_hits"):
            del found[unknown]
        return {
            "round": record.round,
            "threshold": {
                "global": threshold(strategy.policy),
                "clusters": {
                    str(i): threshold(policy) for i, policy in enumerate(strategy.cluster_policies)
                },
                "clients": {str(update.client): threshold(update.values) for update in told},
            },
            "weights": {str(client): weight for client, weight in record.weights.items()},
            "loss": record.means.get("loss-before"),
            "accuracy": accuracy(sums, self.settings.workload),
            **found,
        }


def validated(
    settings: Settings, records: TokenRecords, answers: IntArray
) -> tuple[Feedback, dict[str, Any]]:
    """What may be learned from decided tokens, and their sums for the report.

    Parameters
    ----------
    settings : Settings
    records : TokenRecords
        Texts of any clients, every token decided.
    answers : int64 [rows, steps]
        The right tokens, -1 where unknown.
    """
    right = records.present & (answers >= 0)
    hits = right & (records.token == answers)
    routed = Routed([records], Traffic(), int(hits.sum()), int(right.sum()))
    read = records.present & ~records.escalated & ~records.measured_only
    sums = {**figures(routed, settings), "read": int(read.sum())}
    return feedback_of(routed, settings), sums


def _refuse(settings: Settings, generating: bool) -> None:
    """Raise SettingsError where what a round does depends on more than its tokens (`Rounds`)."""
    learned = settings.cluster_by in ("classifier", "profile")
    wrong = [
        ("decoding", settings.decoding, settings.decoding != "greedy"),
        ("policy", settings.policy, settings.policy == "router"),
        ("privacy", settings.privacy, settings.privacy == "local"),
        ("local-batch", settings.local_batch, settings.local_batch > 0),
        ("free-feedback", settings.free_feedback, not settings.free_feedback),
    ]
    if generating:
        wrong += [
            ("recluster-every", settings.recluster_every, settings.recluster_every > 0),
            ("reproducible", settings.reproducible, not settings.reproducible),
            ("edge-addresses", settings.edge_addresses, bool(settings.edge_addresses)),
        ]
    else:
        wrong += [
            ("workload", settings.workload, settings.workload == "generate"),
            ("cache-mode", settings.cache_mode, settings.cache_mode != "off"),
            ("peer-mode", settings.peer_mode, settings.peer_mode != "off"),
            ("cluster-by", settings.cluster_by, learned),
        ]
    for name, value, refused in wrong:
        if refused:
            at_once = (
                "; here all tokens are decided at once, as with preset=certified workload=score"
            )
            raise SettingsError(
                f"setting {name!r} = {value!r}: only fedhlm run can do this"
                + ("" if generating else at_once)
            )
