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

from collections.abc import Callable, Iterable, Mapping, Sequence
from logging import INFO
from typing import Any, Unpack

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from flwr.serverapp.strategy.strategy_utils import log_strategy_start_info
from flwr.supercore import log

from hlm.arrays import FloatArray
from hlm.state import State
from strategies.at_edge import AtEdge
from strategies.calibrated import Calibrating
from strategies.cluster_map import ClusterMap, OneCluster
from strategies.exchange import Exchange
from strategies.local_methods import FedAvgSteps, LocalMethod
from strategies.loop import run_rounds
from strategies.node_clusters import in_words
from strategies.options import Options, check_kinds, group, refuse_others
from strategies.outbox import Outbox, Start
from strategies.phases import Phase, Round
from strategies.record_options import RecordOptions
from strategies.records import Failure, RoundRecord
from strategies.sampling import Node, Participation
from strategies.server_state import ServerState
from strategies.tiers import TierRules
from strategies.training import Training
from strategies.turns import in_turn
from strategies.validation import Refusal, ReplyLimits, Update


class Hierarchical(Strategy):
    """Edge rule inside clusters (eq. 7), cloud rule over them (eq. 8).

    Parameters
    ----------
    cluster_map : ClusterMap, optional
        By default one cluster: a flat strategy.
    options
        The fields of these, each as a keyword: `TierRules` (edge and cloud rule), `Start` (what
        clients start from), `Participation` (who is asked, how long is waited), `ReplyLimits`
        (which replies are refused).
    method : LocalMethod, optional
        `FedProx`, `Scaffold`, `FedNova`; by default plain local steps.
    calibration : CalibrationOptions, optional
        Thresholds from sums, in place of averaged policies or after rounds with them. Its tier
        stands for `personalisation`.
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
    edges : EdgeServers, optional
        Who forms the means of clusters (eq. 7). Clients leave their updates there, and their
        replies have neither arrays nor sums. For weighted means of plain steps, without `privacy`
        and `keep_values`.

    Raises
    ------
    ValueError
        On an option outside its range, naming it.
    TypeError
        On a keyword that is none.
    """

    def __init__(self, cluster_map: ClusterMap | None = None, **options: Unpack[Options]) -> None:
        refuse_others(options, Options.__annotations__, named=["cluster_map"])
        check_kinds(options)
        start, calibration = group(Start, options), options.get("calibration")
        if calibration is not None:
            start = calibration.start(options.get("personalisation"))
        limits = group(ReplyLimits, options)
        self.method: LocalMethod = options.get("method") or FedAvgSteps()
        self.privacy = options.get("privacy")
        self.on_round = options.get("on_round")
        self.records = options.get("records") or RecordOptions()
        keep_values = options.get("keep_values", False) or start.own
        rules = group(TierRules, options)
        self.at_edge: AtEdge | None = None
        if (edges := options.get("edges")) is not None:
            if not self.method.adds_up or rules.edge_rule != "weighted-mean":
                raise ValueError(f"edges: allowed with weighted means only, not {self.method.name}")
            if keep_values or self.privacy is not None:
                raise ValueError("edges: allowed without keep_values, own starts and privacy")
            self.at_edge = AtEdge(edges)
        self.state = ServerState(self.method, rules, limits.bounds, keep_values)
        outbox = Outbox(self.state, start, limits, self.records)
        clusters = OneCluster() if cluster_map is None else cluster_map
        training = Training(outbox, self.privacy)
        phase: Phase = training
        self.calibration: Calibrating | None = None
        if calibration is not None:
            calibration.check_map(clusters)
            self.calibration = Calibrating(calibration, self.state, self.privacy is not None)
            phase = in_turn(training, self.calibration)
        self._exchange = Exchange(
            clusters, group(Participation, options), outbox, phase, self.at_edge
        )
        self.history: list[RoundRecord] = []

    # --- what the caller may look at -----------------------------------------------------

    @property
    def cluster_map(self) -> ClusterMap:
        """Which node is in which cluster."""
        return self._exchange.cluster_map

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
        """What each client goes by, by client index.

        Its last accepted value, as far as kept (`keep_values`), or what is in force for it.
        """
        return self._exchange.phase.client_values()

    @property
    def epsilon(self) -> float | None:
        """Privacy spent so far at `privacy.delta`; None without central privacy."""
        return None if self.privacy is None else self.privacy.epsilon(self.state.releases)

    def arrays(self) -> ArrayRecord:
        """Global policy as named arrays."""
        return self.state.arrays()

    def named(self, policy: FloatArray) -> dict[str, FloatArray]:
        """The arrays of any policy [d] by name, each flat: views."""
        layout = self.state.layout
        return {name: layout.part(policy, name) for name in layout.names}

    # --- rounds --------------------------------------------------------------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Choose clients and write each its own message."""
        return self._exchange.ask("train", server_round, arrays, config, grid)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask clients to evaluate what they would start from, every `evaluate_every` rounds."""
        return self._exchange.ask("evaluate", server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Refuse what is bad, then let the phase move the policies by the rest.

        Raises
        ------
        RoundFailed
            When no reply could be used (see `strategies.exchange.Exchange.sort`).
        """
        current = self._exchange.current
        if current is None:
            self.state.rounds_done = server_round
            return None, None
        updates, refused, failed = self._exchange.sort(current, replies)
        counted = self._absorb(current, updates, refused, failed).counted
        metrics = self.records.summed_up(updates, train=True)
        return (self.arrays() if counted else None), metrics

    def open_round(self, server_round: int, grid: Grid) -> Round:
        """Choose clients for training and say what their clusters are sent, without messages.

        With `told` and `take` it is a round of clients in this process, such as recorded ones.
        """
        return self._exchange.open("train", server_round, grid)

    def told(
        self, current: Round, node: Node
    ) -> tuple[FloatArray, dict[str, FloatArray], dict[str, Any]]:
        """What a message to a client would hold: its policy float64 [d], other arrays, config."""
        addition = self._exchange.phase.addition(current, node)
        sent = current.sent[node.cluster] if addition.policy is None else addition.policy
        return sent, *self._exchange.outbox.told(current, node, addition)

    def take(self, current: Round, updates: Sequence[Update]) -> RoundRecord:
        """End a round of `open_round` with what its clients learned."""
        kept, refused = self._exchange.phase.inspect(current, list(updates))
        return self._absorb(current, kept, refused, [])

    def _absorb(
        self,
        current: Round,
        updates: list[Update],
        refused: list[Refusal],
        failed: list[Failure],
    ) -> RoundRecord:
        """Let the phase move the policies by a round's accepted replies, and note the round."""
        good = [update for update in updates if update.node_id not in current.uncounted]
        counted = len(good) >= self._exchange.participation.min_clients
        heard = np.zeros(self.state.tiers.num_clusters, dtype=np.bool_)
        if counted:
            heard = self._exchange.phase.aggregate(current, good)
            for update in good:
                name = current.asked[update.node_id].name
                self.state.memory.remember(name, update, current.number)
        self.state.rounds_done = current.number
        record = RoundRecord(current.number, heard.tolist(), counted, epsilon=self.epsilon)
        record.add_training(current, updates, refused, failed)
        self.history.append(record)
        return record

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Sums and weighted means of the metrics; then the round is over.

        An evaluation of which no reply can be used leaves a warning in the log, and no figures.
        """
        metrics, current = None, self._exchange.current
        record = self.history[-1] if self.history else None
        if record is not None and record.round != server_round:
            record = None
        if current is not None:
            updates, refused, failed = self._exchange.sort(current, replies)
            metrics = self.records.summed_up(updates, train=False) if updates else None
            if record is not None:
                record.add_evaluation(updates, refused, failed)
        if self.on_round is not None and record is not None:
            self.on_round(record)
        return metrics

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
        self._exchange.recluster(cluster_map, members)

    def state_dict(self) -> State:
        """Everything needed to continue identically: arrays, numbers, lists and dicts.

        `hlm.state` writes it to bytes.
        """
        return {**self.state.state_dict(), **self._exchange.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`'s value; `start` then begins with the round after it."""
        self._exchange.load_state_dict(state)
        self.state.load_state_dict(state)

    # --- the run -------------------------------------------------------------------------

    def summary(self) -> None:
        """Log what was chosen."""
        rules = self.state.rules
        self._exchange.participation.summary()
        self.records.summary()
        log(INFO, "\t├──> edge rule: %s | cloud rule: %s", rules.edge_rule, rules.cloud_rule)
        log(INFO, "\t├──> local method: %s", self.method.name)
        log(INFO, "\t├──> clusters: %s", in_words(self.cluster_map))
        log(INFO, "\t└──> personalisation: %s", self._exchange.outbox.start.personalisation)

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """Run the rounds up to `num_rounds`; parameters as in Flower's `Strategy`.

        After `load_state_dict` it goes on with the round after the last one finished, from the
        policy of then instead of `initial_arrays`.

        Parameters
        ----------
        timeout : float
            Longest time a round waits for replies, in seconds.
        """
        first = self.state.rounds_done + 1
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
