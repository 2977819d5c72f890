"""Replays a run over a trace: all clients at once, by the code of the live run but for the models.

What a round draws (`RoundDraw`), how policies keep (`clients.policy`), what records and feedback
say, the rules' losses, the local steps and the strategy are those of a run. Only the forward passes
are looked up, so nothing is known of bytes and seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from logging import WARNING, getLogger
from typing import Any, cast

import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp import Grid

from clients.learning.feedback import Feedback
from clients.learning.owners import Owners
from clients.records import Stage, TokenRecords, Traffic
from fedhlm_app.client.routed import Routed, feedback_of, figures
from fedhlm_app.data.partitions import partition, split_client
from fedhlm_app.learning.gradients import initial_policy
from fedhlm_app.learning.rules import sums_rule
from fedhlm_app.learning.together import Steps, learn_together
from fedhlm_app.results.figures import accuracy
from fedhlm_app.results.figures import figures as shares
from fedhlm_app.server.clusters import Clusters
from fedhlm_app.server.strategy import build_of
from fedhlm_app.settings import Settings, SettingsError
from fedhlm_app.trace.file import Trace
from fedhlm_app.trace.texts import Texts, drawn, routed
from hlm.arrays import BoolArray, FloatArray, IntArray
from hlm.local_steps import starting_point
from strategies.phases import Round
from strategies.records import RoundRecord
from strategies.sampling import Node
from strategies.validation import Update

__all__ = ["Here", "LocalUpdate", "Replay", "Replayed"]

CHUNK = 20_000
"""Clients routed at a time: memory does not grow with the number of clients."""


@dataclass(frozen=True)
class LocalUpdate(Update):
    """What a replayed client sends: arrays that were never bytes."""

    sent: FloatArray = field(default_factory=lambda: np.zeros(0))
    extras: dict[str, FloatArray] = field(default_factory=dict)

    @property
    def values(self) -> FloatArray:
        """The client's policy, float64 [d]."""
        return self.sent

    def extra(self, key: str) -> FloatArray:
        """A further array of the local method, float64 [d]."""
        return self.extras[key]


@dataclass(frozen=True)
class Replayed:
    """What came of a replay.

    Attributes
    ----------
    rounds : list of dict
        As the lines of a run's `metrics.jsonl`, without bytes and seconds.
    stages : int64 [clients, stages]
        Tokens of each client by the stage that decided them.
    correct, answered : int64 [clients]
        Tokens that are right, of those for which it is known what is right.
    """

    rounds: list[dict[str, Any]]
    stages: IntArray
    correct: IntArray
    answered: IntArray


class Here:
    """All clients are connected; node ids are client numbers."""

    def __init__(self, clients: int) -> None:
        self._ids = range(clients)

    def get_node_ids(self) -> Sequence[int]:
        """Numbers of all clients."""
        return self._ids


class Replay:
    """A run over a trace.

    Parameters
    ----------
    trace : Trace
    settings : Settings
        Of the run that is replayed.

    Raises
    ------
    SettingsError
        On settings whose run a trace cannot stand in for.
    """

    def __init__(self, trace: Trace, settings: Settings) -> None:
        trace.refuse(settings)
        _refuse(settings)
        self.trace, self.settings = trace, settings
        shares = partition(
            trace.items(),
            settings.clients,
            settings.partition,
            settings.dirichlet_alpha,
            settings.seed,
        )
        self.train_rows = [
            split_client(share, settings.held_out_fraction, settings.seed)[0] for share in shares
        ]
        clusters = Clusters(settings).map
        for client in range(settings.clients):
            clusters.register(client, client)
        self.strategy = build_of(settings, clusters, lambda record: None)
        tokens_each = 1 if settings.workload == "classify" else settings.tokens_per_prompt
        # Routed tokens of every item as a list, by the most that are wanted of it: a few small sums
        # for each client are most of what a replay of very many costs.
        self._lengths = {
            most: trace.places(np.arange(len(trace.labels)), settings.prompt_tokens, most)[
                1
            ].tolist()
            for most in range(1, tokens_each + 1)
        }
        stages = (settings.clients, len(Stage))
        self._stages = np.zeros(stages, np.int64)
        self._correct, self._answered = (np.zeros(settings.clients, np.int64) for _ in "ab")

    def run(self, listen: Callable[[int, int], None] = lambda done, all_: None) -> Replayed:
        """All rounds; `listen` is told how many of how many are done."""
        arrays = ArrayRecord({n: Array(a) for n, a in initial_policy(self.settings).items()})
        strategy, lines = self.strategy, []
        # It logs whom it asks in every round.
        getLogger("flwr").setLevel(WARNING)
        strategy.state.adopt(arrays, strategy.cluster_map.num_clusters)
        here = cast(Grid, Here(self.settings.clients))
        for number in range(1, self.settings.rounds + 1):
            current = strategy.open_round(number, here)
            nodes, updates = list(current.asked.values()), []
            sums: dict[str, Any] = {}
            for begin in range(0, len(nodes), CHUNK):
                made, found = self._round(current, nodes[begin : begin + CHUNK])
                updates += made
                for name, value in found.items():
                    sums[name] = sums.get(name, 0) + value
            record = strategy.take(current, updates)
            lines.append(self._line(record, sums, updates if len(updates) <= CHUNK else []))
            listen(number, self.settings.rounds)
        return Replayed(lines, self._stages, self._correct, self._answered)

    def _round(self, current: Round, nodes: list[Node]) -> tuple[list[Update], dict[str, Any]]:
        """What these clients send, and the sums of their tokens."""
        settings, number = self.settings, current.number
        clients = np.array([node.client for node in nodes], np.int64)
        starts, arrays, configs = self._told(current, nodes)
        calibrating = np.array([bool(config.get("calibrate")) for config in configs])
        texts = drawn(settings, self.train_rows, self._lengths, clients, configs, number)
        records, answers = routed(self.trace, settings, texts, clients, starts[:, 0])
        rule = sums_rule(settings)
        reading = calibrating & (rule is not None and rule.reads_kept_tokens)
        told = reading[texts.client][:, None] & records.present & ~records.escalated
        records.measured_only &= ~told
        right = records.present & (answers >= 0)
        hits = right & (records.token == answers)
        sums = dict(
            figures(Routed([records], Traffic(), int(hits.sum()), int(right.sum())), settings)
        )
        sums["read"] = int(told.sum())
        self._count(clients[texts.client], records, right, hits)
        feedback = feedback_of(Routed([records], Traffic()), settings)
        owners = Owners(texts.client[feedback.prompt], len(nodes))
        config = configs[0]
        steps = learn_together(
            settings,
            number,
            starts,
            feedback,
            owners,
            str(config["local-method"]),
            float(config.get("proximal-mu", 0.0)),
            arrays,
        )
        counted = self._sums(feedback, owners, texts, calibrating)
        return list(self._updates(nodes, starts, steps, counted)), sums

    def _told(
        self, current: Round, nodes: list[Node]
    ) -> tuple[FloatArray, dict[str, FloatArray], list[dict[str, Any]]]:
        """Where clients start float64 [c, d], arrays of the local method, and configs."""
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
        return starts, arrays, [config for _, _, config in told]

    def _count(
        self, clients: IntArray, records: TokenRecords, right: BoolArray, hits: BoolArray
    ) -> None:
        """Add the tokens of texts (client int64 [t] of each) to their clients' own."""
        rows, _ = at = np.nonzero(records.present)
        np.add.at(self._stages, (clients[rows], records.stage[at].astype(np.int64)), 1)
        np.add.at(self._answered, clients, right.sum(axis=1))
        np.add.at(self._correct, clients, hits.sum(axis=1))

    def _sums(
        self, feedback: Feedback, owners: Owners, texts: Texts, calibrating: BoolArray
    ) -> dict[int, Feedback]:
        """What rules of sums may count, by place of a client that is asked for sums."""
        ends, counted = np.cumsum(owners.sizes), texts.counted[feedback.prompt]
        found = {}
        for place in np.flatnonzero(calibrating).tolist():
            own = np.arange(ends[place] - owners.sizes[place], ends[place])
            found[place] = feedback.select(own[counted[own]])
        return found

    def _updates(
        self, nodes: list[Node], starts: FloatArray, steps: Steps, told: dict[int, Feedback]
    ) -> Iterator[Update]:
        """What each client sends."""
        rule, examples = sums_rule(self.settings), steps.examples
        if rule is not None:
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

    def _line(
        self, record: RoundRecord, sums: dict[str, Any], told: list[Update]
    ) -> dict[str, Any]:
        """One round, as `metrics.jsonl` has it."""
        strategy = self.strategy

        def threshold(policy: FloatArray) -> float:
            return float(strategy.named(policy)["threshold"][0])

        found = shares(sums)
        for unknown in ("bytes", "exchanges"):
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


def _refuse(settings: Settings) -> None:
    """Raise SettingsError where what a round does depends on more than recorded tokens."""
    wrong = (
        ("policy", settings.policy, settings.policy == "router"),
        ("cache-mode", settings.cache_mode, settings.cache_mode != "off"),
        ("peer-mode", settings.peer_mode, settings.peer_mode != "off"),
        ("privacy", settings.privacy, settings.privacy == "local"),
        ("local-batch", settings.local_batch, settings.local_batch > 0),
        ("free-feedback", settings.free_feedback, not settings.free_feedback),
        (
            "cluster-by",
            settings.cluster_by,
            settings.cluster_by in ("classifier", "profile"),
        ),
    )
    for name, value, refused in wrong:
        if refused:
            raise SettingsError(
                f"setting {name!r} = {value!r}: cannot be replayed from a trace; use fedhlm run"
            )
