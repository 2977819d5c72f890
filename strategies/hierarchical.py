"""A Flower strategy in two tiers: edge rule inside clusters, cloud rule over clusters.

FedHLM's own is the n_k-weighted mean inside each cluster (eq. 7) and the unweighted mean over
clusters (eq. 8): `HierarchicalFedAvg`. Other strategies come from composition, not from more
classes: (edge rule, cloud rule, cluster map, local method). Flat is one cluster.

What goes down to a client, in messages of their own: an ArrayRecord ``arrays`` with the policy to
start from (and what the local method needs), a ConfigRecord ``config`` with ``round``,
``cluster``, ``personalisation``, ``accepted-round`` (of the client's last accepted reply) and the
caller's own keys. A client keeps nothing that depends on whether its reply was accepted. What comes
back: one ArrayRecord with the policy's arrays, and one MetricRecord with ``num-examples``,
``round`` and ``client``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from logging import INFO
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from flwr.serverapp.strategy.strategy_utils import log_strategy_start_info
from flwr.supercore import log

from strategies.aggregation import BoolArray, FloatArray
from strategies.cluster_map import ClusterMap, OneCluster
from strategies.combining import combine
from strategies.local_methods import FedAvgSteps, LocalMethod
from strategies.loop import run_rounds
from strategies.node_clusters import ReplyClusters, in_words
from strategies.outbox import Outbox, Personalisation
from strategies.privacy import CentralPrivacy
from strategies.record_options import RecordOptions
from strategies.records import RoundFailed, RoundRecord, add_up
from strategies.replies import log_replies, sort_replies, why_failed
from strategies.rules import State
from strategies.sampling import EVALUATE_STREAM, TRAIN_STREAM, Node, Participation
from strategies.server_state import Bounds, ServerState
from strategies.tiers import RuleSource
from strategies.validation import Refusal, Update

UNBOUNDED: Bounds = (-np.inf, np.inf)


class Hierarchical(Strategy):
    """Edge rule inside clusters (eq. 7), cloud rule over them (eq. 8).

    Parameters
    ----------
    cluster_map : ClusterMap, optional
        By default one cluster: a flat strategy.
    edge_rule, cloud_rule : str or callable
        A name in `strategies.rules.RULES` or a function that makes a fresh rule.
    method : LocalMethod, optional
        `FedProx`, `Scaffold`, `FedNova`; by default plain local steps.
    personalisation : str
        What a client starts from: ``global`` the global policy, ``cluster`` its cluster's;
        ``local`` and ``shrunk`` its own, as last accepted, or the cluster's the first time;
        ``shrunk`` draws the own one towards the cluster's: (n_k own + m cluster) / (n_k + m).
    shrink_weight : float
        m above, in tokens, >= 0.
    fraction_train, fraction_evaluate : float
        Share of the connected nodes asked, in [0, 1]; 0: that leg is left out.
    evaluate_every : int
        Federated evaluation in every such round, >= 1.
    min_clients : int
        Fewest usable replies for a round to count, >= 1. With fewer the policy stays; with none
        the run fails.
    min_nodes : int, optional
        Fewest connected nodes to ask; by default `min_clients`.
    min_train_nodes, min_evaluate_nodes : int
        Fewest nodes to ask, whatever the fraction says, >= 0.
    node_wait_s, poll_s : float
        How long to wait for them, and how often to look, in seconds.
    seed : int
        Of the choice of clients.
    bounds : (low, high)
        Allowed range of every parameter, scalars or float64 [d]; by default any finite number.
        Replies outside are refused, results clamped.
    max_weight : float
        Largest believable n_k.
    require_echo : bool
        Replies must carry ``round`` and ``client``; see `ReplySchema`.
    cloud_weights : str
        ``uniform`` (eq. 8) or ``examples``.
    privacy : CentralPrivacy, optional
        Needs edge rule ``weighted-mean`` or ``unweighted-mean`` and a method without arrays of its
        own. Flower's wrappers with fixed clipping work as well, with
        ``personalisation="global"``: they add noise to the global policy only.
    on_round : callable, optional
        Called with each finished `RoundRecord`, after its evaluation.
    records : RecordOptions, optional
        Names in messages, and functions that sum metrics up; by default Flower's own.
    keep_values : bool
        Keep each client's last accepted value: for `client_values`, for `recluster`, and always
        with ``local`` and ``shrunk``. Without it the server holds one model, and one for each
        cluster, whatever the number of clients and rounds.

    Raises
    ------
    ValueError
        On an option outside its range, naming it.
    """

    def __init__(
        self,
        cluster_map: ClusterMap | None = None,
        *,
        edge_rule: RuleSource = "weighted-mean",
        cloud_rule: RuleSource = "unweighted-mean",
        method: LocalMethod | None = None,
        personalisation: Personalisation = "global",
        shrink_weight: float = 100.0,
        fraction_train: float = 1.0,
        fraction_evaluate: float = 1.0,
        evaluate_every: int = 1,
        min_clients: int = 1,
        min_nodes: int | None = None,
        min_train_nodes: int = 1,
        min_evaluate_nodes: int = 1,
        node_wait_s: float = 120.0,
        poll_s: float = 0.2,
        seed: int = 0,
        bounds: Bounds = UNBOUNDED,
        max_weight: float = 1e9,
        require_echo: bool = False,
        cloud_weights: str = "uniform",
        privacy: CentralPrivacy | None = None,
        on_round: Callable[[RoundRecord], None] | None = None,
        records: RecordOptions | None = None,
        keep_values: bool = False,
    ) -> None:
        self.cluster_map: ClusterMap = OneCluster() if cluster_map is None else cluster_map
        self.method: LocalMethod = FedAvgSteps() if method is None else method
        self.participation = Participation(
            fraction_train,
            fraction_evaluate,
            evaluate_every,
            min_clients,
            min_clients if min_nodes is None else min_nodes,
            node_wait_s,
            poll_s,
            seed,
            min_train_nodes,
            min_evaluate_nodes,
        )
        self.state = ServerState(
            self.method,
            edge_rule,
            cloud_rule,
            cloud_weights,
            bounds,
            keep_values or personalisation in ("local", "shrunk"),
        )
        self.records = RecordOptions() if records is None else records
        self.outbox = Outbox(
            self.state, personalisation, shrink_weight, max_weight, require_echo, self.records
        )
        self.privacy = privacy
        self.on_round = on_round
        self._check_options()
        self.history: list[RoundRecord] = []
        self._asked: dict[int, Node] = {}
        self._sent: FloatArray = np.zeros((0, 0))
        self._cluster_sizes = np.zeros(0, dtype=np.int64)
        self._asked_at = 0.0

    def _check_options(self) -> None:
        if self.outbox.personalisation != "global" and isinstance(self.cluster_map, ReplyClusters):
            raise ValueError(
                f"clusters: {self.cluster_map.key!r}; allowed with personalisation='global' only: "
                "a client's cluster is known from its reply"
            )
        if self.privacy is not None:
            if self.state.edge_rule not in ("weighted-mean", "fedavg", "unweighted-mean"):
                raise ValueError(
                    f"edge_rule: {self.state.edge_rule!r}; allowed with privacy: weighted-mean, "
                    "unweighted-mean"
                )
            if self.method.reply_extras or self.method.reply_metrics:
                raise ValueError(
                    f"method: {self.method.name}; allowed with privacy: fedavg, fedprox"
                )

    # --- what the caller may look at -----------------------------------------------------

    @property
    def policy(self) -> FloatArray:
        """Global policy, float64 [d]."""
        return self.state.tiers.policy

    @property
    def cluster_policies(self) -> FloatArray:
        """Cluster policies, float64 [C, d]."""
        return self.state.tiers.clusters

    @property
    def rounds_done(self) -> int:
        """The last round that was aggregated, 0 before the first."""
        return self.state.rounds_done

    @property
    def client_values(self) -> dict[int, FloatArray]:
        """Last accepted value of every client, by client index; empty without `keep_values`."""
        return dict(sorted(self.state.memory.values.items()))

    def client_sent(self, record: RoundRecord) -> dict[int, FloatArray]:
        """What clients sent in the round that has just ended; empty without `keep_values`."""
        values = self.state.memory.values if record.counted else {}
        return {client: values[client] for client in record.weights if client in values}

    @property
    def epsilon(self) -> float | None:
        """Privacy spent so far at `privacy.delta`; None without central privacy."""
        return None if self.privacy is None else self.privacy.epsilon(self.state.releases)

    def arrays(self) -> ArrayRecord:
        """Global policy as named arrays."""
        return self.state.arrays()

    # --- training ------------------------------------------------------------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Choose clients and write each its own message."""
        self._asked = {}
        if self.participation.fraction_train == 0:
            return []
        self.state.adopt(arrays, self.cluster_map.num_clusters)
        nodes, picks = self._pick(grid, server_round, TRAIN_STREAM)
        clusters = np.array([node.cluster for node in nodes], dtype=np.int64)
        self._cluster_sizes = np.bincount(clusters, minlength=self.state.tiers.num_clusters)
        self.method.open(self.state.tiers.policy.size, self.state.tiers.num_clusters)
        self._sent = self.outbox.starting_points()
        self._asked_at = time.monotonic()
        return self._messages(server_round, picks, config, "train")

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Refuse what is bad, then eq. 7 and eq. 8 over the rest.

        Raises
        ------
        RoundFailed
            When no reply could be used.
        """
        if not self._asked:
            self.state.rounds_done = server_round
            return None, None
        updates, refused, failed = sort_replies(
            replies, self.outbox.schema(server_round, self._asked, train=True), self._asked
        )
        for look in (self._inspect, self._learn_clusters):
            updates, odd = look(updates)
            refused += odd
        log_replies("aggregate_train", updates, refused, failed)
        if not updates:
            raise RoundFailed(why_failed("training", server_round, refused, failed))
        counted = len(updates) >= self.participation.min_clients
        heard = np.zeros(self.state.tiers.num_clusters, dtype=np.bool_)
        if counted:
            heard = self._aggregate(server_round, updates)
            for update in updates:
                self.state.memory.remember(self._asked[update.node_id].name, update, server_round)
        sums, means = add_up((u.metrics for u in updates), (u.weight for u in updates))
        self.state.rounds_done = server_round
        self.history.append(
            RoundRecord(
                round=server_round,
                heard=heard.tolist(),
                counted=counted,
                asked=[node.name for node in self._asked.values()],
                weights={_name(u): u.weight for u in updates},
                clients={_name(u): self._asked[u.node_id].cluster for u in updates},
                refused=refused,
                failed=failed,
                sums=sums,
                means=means,
                epsilon=self.epsilon,
                seconds=time.monotonic() - self._asked_at,
            )
        )
        metrics = self.records.summed_up(updates, train=True)
        return (self.arrays() if counted else None), metrics

    def _inspect(self, updates: list[Update]) -> tuple[list[Update], list[Refusal]]:
        """Refuse more; for strategies that read metrics as well."""
        return updates, []

    def _learn_clusters(self, updates: list[Update]) -> tuple[list[Update], list[Refusal]]:
        """Where clients name their clusters, take them from the replies."""
        if not isinstance(self.cluster_map, ReplyClusters):
            return updates, []
        kept, refused = self.cluster_map.learn(updates)
        clusters = self.cluster_map.clusters_of(list(self._asked))
        self._asked = {
            node_id: replace(node, cluster=cluster)
            for (node_id, node), cluster in zip(self._asked.items(), clusters, strict=True)
        }
        tiers = self.state.tiers
        tiers.add_clusters(self.cluster_map.num_clusters)
        self._cluster_sizes = np.bincount(clusters, minlength=tiers.num_clusters)
        self.method.open(tiers.policy.size, tiers.num_clusters)
        self._sent = self.outbox.starting_points()
        return kept, refused

    def _aggregate(self, server_round: int, updates: list[Update]) -> BoolArray:
        nodes = [self._asked[update.node_id] for update in updates]
        return combine(
            self.outbox,
            updates,
            nodes,
            self._sent,
            self._cluster_sizes,
            self.privacy,
            server_round,
        )

    # --- evaluation ----------------------------------------------------------------------

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask clients to evaluate what they would start from, every `evaluate_every` rounds."""
        self._asked = {}
        if not self.participation.evaluates(server_round):
            return []
        self.state.adopt(arrays, self.cluster_map.num_clusters)
        _, picks = self._pick(grid, server_round, EVALUATE_STREAM)
        self._sent = self.outbox.starting_points()
        return self._messages(server_round, picks, config, "evaluate")

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Sums and weighted means of the metrics; then the round is over.

        Raises
        ------
        RoundFailed
            When clients were asked and no reply could be used.
        """
        metrics = None
        record = self.history[-1] if self.history else None
        if record is not None and record.round != server_round:
            record = None
        if self._asked:
            updates, refused, failed = sort_replies(
                replies, self.outbox.schema(server_round, self._asked, train=False), self._asked
            )
            log_replies("aggregate_evaluate", updates, refused, failed)
            if not updates:
                raise RoundFailed(why_failed("evaluation", server_round, refused, failed))
            sums, means = add_up((u.metrics for u in updates), (u.weight for u in updates))
            metrics = self.records.summed_up(updates, train=False)
            if record is not None:
                record.evaluation_sums, record.evaluation_means = sums, means
                record.evaluation_replies = {_name(u): u.metrics for u in updates}
                record.evaluation_refused, record.evaluation_failed = refused, failed
        if self.on_round is not None and record is not None:
            self.on_round(record)
        return metrics

    # --- messages ------------------------------------------------------------------------

    def _pick(self, grid: Grid, server_round: int, stream: int) -> tuple[list[Node], list[Node]]:
        turns = self._turns if stream == TRAIN_STREAM else None
        nodes, picks = self.participation.pick(grid, self.cluster_map, server_round, stream, turns)
        if self.cluster_map.num_clusters != self.state.tiers.num_clusters:
            self.recluster(self.cluster_map)
        self._asked = {node.node_id: node for node in picks}
        return nodes, picks

    def _turns(self, nodes: Sequence[Node]) -> Sequence[int] | None:
        """Rank of each node for training, the lowest being asked first; for strategies with one."""
        return None

    def _messages(
        self, server_round: int, nodes: list[Node], config: ConfigRecord, kind: str
    ) -> list[Message]:
        messages = [self._message(server_round, node, config, kind) for node in nodes]
        self.outbox.close()
        return messages

    def _message(self, server_round: int, node: Node, config: ConfigRecord, kind: str) -> Message:
        return self.outbox.message(server_round, node, config, kind, self._sent)

    # --- state ---------------------------------------------------------------------------

    def recluster(self, cluster_map: ClusterMap, members: Mapping[int, int] | None = None) -> None:
        """Go on with other clusters.

        Parameters
        ----------
        cluster_map : ClusterMap
        members : mapping of client to new cluster, optional
            A new cluster starts at the n_k-weighted mean of its members' last values; without
            any, or without `keep_values`, it starts at the global policy.
        """
        self.cluster_map = cluster_map
        self.state.recluster(cluster_map.num_clusters, members)

    def state_dict(self) -> State:
        """Everything needed to continue identically: arrays, numbers, lists and dicts.

        `strategies.state` writes it to bytes.
        """
        state = self.state.state_dict()
        if isinstance(self.cluster_map, ReplyClusters):
            state["labels"] = list(self.cluster_map.labels)
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`'s value; `start` then begins with the round after it."""
        if isinstance(self.cluster_map, ReplyClusters):
            self.cluster_map.labels = [int(label) for label in state["labels"]]
        self.state.load_state_dict(state)

    # --- the run -------------------------------------------------------------------------

    def summary(self) -> None:
        """Log what was chosen."""
        state = self.state
        self.participation.summary()
        self.records.summary()
        log(INFO, "\t├──> edge rule: %s | cloud rule: %s", state.edge_rule, state.cloud_rule)
        log(INFO, "\t├──> local method: %s", self.method.name)
        log(INFO, "\t├──> clusters: %s", in_words(self.cluster_map))
        log(INFO, "\t└──> personalisation: %s", self.outbox.personalisation)

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
        first_round: int | None = None,
    ) -> Result:
        """Run the rounds `first_round` to `num_rounds`; parameters as in Flower's `Strategy`.

        Parameters
        ----------
        timeout : float
            Longest time a round waits for replies, in seconds.
        first_round : int, optional
            By default the round after the last one finished: 1, or later after
            `load_state_dict`, which also replaces `initial_arrays` by the policy of then.
        """
        first = self.state.rounds_done + 1 if first_round is None else first_round
        log(INFO, "Starting %s strategy:", type(self).__name__)
        log_strategy_start_info(num_rounds, initial_arrays, train_config, evaluate_config)
        self.summary()
        log(INFO, "")
        if first == 1 or not self.state.is_open:
            self.state.adopt(initial_arrays, self.cluster_map.num_clusters)
        arrays = self.arrays() if first > 1 else initial_arrays
        return run_rounds(
            self,
            grid,
            arrays,
            range(first, num_rounds + 1),
            timeout,
            ConfigRecord() if train_config is None else train_config,
            ConfigRecord() if evaluate_config is None else evaluate_config,
            evaluate_fn,
        )


def _name(update: Update) -> int:
    return update.client if update.client >= 0 else update.node_id
