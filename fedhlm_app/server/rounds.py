"""The rounds of a run: who takes part, which strategy, and what is written down."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from logging import INFO, WARNING
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord
from flwr.common.logger import log
from flwr.serverapp import Grid

from fedhlm_app.client.take_back import RUN_COUNTS, learns_take_back
from fedhlm_app.client.token_columns import LoggingGrid
from fedhlm_app.data.items import Items
from fedhlm_app.learning.gradients import initial_policy
from fedhlm_app.learning.rules import certifies, rule_of, sums_rule
from fedhlm_app.results.events import event_log
from fedhlm_app.results.figures import accuracy, by_client, coverage, figures, hierarchy
from fedhlm_app.results.report import write_report
from fedhlm_app.results.run_log import log_result, log_round
from fedhlm_app.results.runs import RunFolder, versions
from fedhlm_app.results.summary import STAGES
from fedhlm_app.results.token_log import TokenLog
from fedhlm_app.results.unresolved import RunFailed, failure, lost_words
from fedhlm_app.server import checkpoint, preflight
from fedhlm_app.server.cluster_report import clustering_figures
from fedhlm_app.server.clusters import Clusters
from fedhlm_app.server.guarantee import guarantee
from fedhlm_app.server.strategy import build_of
from fedhlm_app.settings import Settings, advice
from hlm.arrays import FloatArray
from hlm.privacy import gaussian_epsilon
from strategies.records import RoundRecord

if TYPE_CHECKING:
    from fedhlm_app.hosting.edge import EdgeHost
    from fedhlm_app.hosting.llm import LanguageModelHost
    from fedhlm_app.server.served_edges import ServedEdges


class Federation:
    """Runs the rounds of one run.

    Parameters
    ----------
    settings : Settings
        Of the run.
    items : Items
        The dataset.
    folder : RunFolder
        Where the run is written down.
    host : LanguageModelHost or None
        The LLM actor; None where the LLM is served elsewhere.
    edges : EdgeHost, ServedEdges or None
        The edge servers; None without peers.
    """

    def __init__(
        self,
        settings: Settings,
        items: Items,
        folder: RunFolder,
        host: LanguageModelHost | None,
        edges: EdgeHost | ServedEdges | None = None,
    ) -> None:
        self.settings = settings
        self.items = items
        self.folder = folder
        self.host = host
        self.edges = edges
        self.progress = checkpoint.Progress()
        self._began = time.monotonic()
        self._clusters = Clusters(settings)
        self._told = ConfigRecord()
        self._tokens: TokenLog | None = None
        self._add_events: Callable[[Any], None]
        self.strategy = build_of(settings, self._clusters.map, self._finish_round, edges)
        if settings.resume:
            self._resume()

    def run(self, grid: Grid) -> None:
        """Introduce the nodes, run all rounds, write summary and report.

        Raises
        ------
        RoundFailed
            When a round had no usable reply.
        RunFailed
            When the LLM never answered, or too many tokens stayed unresolved; the folder is
            complete, and `error` in its summary says why.
        """
        settings = self.settings
        self._began = time.monotonic()
        for line in advice(settings):
            log(WARNING, line)
        self._clusters.introduce(grid, self.strategy)
        self._tell_sizes()
        self._tell_counts()
        if self.edges is not None:
            self.edges.ensure(self._cluster_of_clients())
        if self.host is not None:
            told = self.host.wait()
            preflight.require_model(settings, told)
            log(INFO, "The LLM is read this way: %s", told["reading"])
        if settings.resume:
            self.folder.go_on(settings, self.strategy.rounds_done)
            log(INFO, "Going on after round %d", self.strategy.rounds_done)
        self._write_progress(self.strategy.rounds_done)
        with (
            self._token_log(self._clusters.watch(grid)) as listening,
            event_log(
                self.folder, self.strategy.rounds_done, settings.trackers
            ) as self._add_events,
        ):
            self.strategy.start(
                listening,
                ArrayRecord({n: Array(a) for n, a in initial_policy(settings).items()}),
                settings.rounds,
                timeout=settings.round_timeout,
                train_config=self._told,
                evaluate_config=self._told,
            )
        summary = self.summary()
        self.folder.write_summary(summary)
        write_report(self.folder)
        log_result(summary, self.folder.path)
        if summary["error"]:
            raise RunFailed(summary["error"])

    def _cluster_of_clients(self) -> list[int]:
        """Cluster of each client, by its index."""
        return list(self._clusters.assignment)

    def _tell_sizes(self) -> None:
        """With an edge tier, tell every client whether there are peers to ask."""
        if self.edges is not None:
            sizes = np.bincount(self._cluster_of_clients(), minlength=self.settings.clusters)
            self._told["cluster-sizes"] = sizes.tolist()

    def _tell_counts(self) -> None:
        """Tell every client how drafts of the last round followed each other."""
        if self.progress.take_back:
            self._told["take-back"] = self.progress.take_back

    @contextmanager
    def _token_log(self, grid: Grid) -> Iterator[Grid]:
        """The grid, one that writes tokens down on their way where the settings want it."""
        if not self.settings.token_log:
            yield grid
            return
        with TokenLog(self.folder, self.strategy.rounds_done) as self._tokens:
            yield cast(Grid, LoggingGrid(grid, self._tokens))

    def _resume(self) -> None:
        """Take up the folder's checkpoint; the folder itself is not touched yet."""
        state, clusters, self.progress = checkpoint.load(self.folder.path)
        self._clusters.load_state_dict(clusters, self.strategy)
        self.strategy.load_state_dict(state)

    @property
    def epsilon(self) -> float | None:
        """Privacy spent so far at `privacy-delta` by a client in every round; None without."""
        spent = self._privacy()
        return None if spent is None else float(spent["epsilon"])

    def _privacy(self) -> dict[str, Any] | None:
        """Mechanism, unit, releases and what they cost; None where nothing has noise."""
        settings, strategy = self.settings, self.strategy
        rule = rule_of(settings)
        if settings.privacy == "none" or not rule.learns:
            return None
        releases = strategy.rounds_done if settings.privacy == "local" else strategy.state.releases
        if settings.privacy == "local" and strategy.calibration is not None:
            trained = settings.router_rounds if settings.policy == "router" else 0
            releases = strategy.state.releases + min(strategy.rounds_done, trained)
        covers = [rule.covers]
        if sums_rule(settings) is not None and settings.policy == "router":
            covers.append("router")
        return {
            "mechanism": "Gaussian",
            "where": {"local": "device", "central": "server"}[settings.privacy],
            "unit": "client",
            "covers": covers,
            "noise": settings.privacy_noise,
            "releases": releases,
            "epsilon": gaussian_epsilon(settings.privacy_noise, releases, settings.privacy_delta),
            "delta": settings.privacy_delta,
        }

    def _finish_round(self, record: RoundRecord) -> None:
        """Write down one finished round, and look after the LLM."""
        at_edge, progress = self.strategy.at_edge, self.progress
        sums: dict[str, Any] = {**record.sums, **({} if at_edge is None else at_edge.tally)}
        progress.totals.update({key: value for key, value in sums.items() if _is_number(value)})
        progress.refused.update(record.refused_by_reason)
        progress.failed += len(record.failed)
        progress.waited += record.seconds
        told = {client: one["threshold"] for client, one in record.replies.items()}
        thresholds = cast(dict[int, float], told if record.counted else {})
        progress.thresholds |= thresholds
        evaluation = self._evaluation(record)
        if evaluation:
            progress.evaluation = {"round": record.round, **evaluation}
        strategy = self.strategy
        line: dict[str, Any] = {
            "round": record.round,
            "threshold": self._thresholds(thresholds),
            "policy": {n: a.tolist() for n, a in strategy.named(strategy.policy).items()},
            "weights": {str(client): weight for client, weight in record.weights.items()},
            "loss": record.means.get("loss-before"),
            "replies": len(record.weights),
            "counted": record.counted,
            "refused": {str(refusal.client): refusal.reason for refusal in record.refused},
            "failed": {str(failure.client): failure.reason for failure in record.failed},
            "seconds": record.seconds,
            **figures(sums),
            "by_client": by_client(record.replies, record.clients),
        }
        if at_edge is not None:
            line["hierarchy"] = hierarchy(sums)
        if evaluation:
            line["evaluation"] = evaluation
        if self.epsilon is not None:
            line["epsilon"] = self.epsilon
        if self.strategy.calibration is not None:
            line["calibration"] = self.strategy.calibration.stage(record)
            line["guarantee"] = guarantee(self.settings, self.strategy.calibration, record.round)
        if self._tokens is not None:
            self._tokens.end_round(record.round)
        self.folder.append_metrics(line)
        self._add_events(line)
        self._clusters.renew(record.round, self.strategy)
        self._tell_sizes()
        if learns_take_back(self.settings):
            counts = [float(sums.get(name, 0)) for name in RUN_COUNTS]
            # Of a round that counted nothing there is nothing to go by.
            progress.take_back = counts if any(counts) else progress.take_back
            self._tell_counts()
        if self.settings.checkpoint:
            self._save()
        self._write_progress(record.round)
        log_round(line, self.settings.rounds)
        for refusal in record.refused:
            log(WARNING, "client %s refused: %s", refusal.client, refusal.reason)
        if lost := lost_words(sums):
            log(WARNING, "round %d: %s", record.round, lost)
        if self.host is not None:
            self.host.ensure()
        if self.edges is not None:
            if not certifies(self.settings, record.round):
                self.edges.publish()
            self.edges.ensure(self._cluster_of_clients())

    def _thresholds(self, clients: Mapping[int, float]) -> dict[str, Any]:
        """Thresholds of all tiers, with those of clients."""
        clusters = enumerate(self.strategy.cluster_policies)
        return {
            "global": self._threshold(self.strategy.policy),
            "clusters": {str(cluster): self._threshold(value) for cluster, value in clusters},
            "clients": {str(client): value for client, value in sorted(clients.items())},
        }

    def _threshold(self, policy: FloatArray) -> float:
        return float(self.strategy.named(policy)["threshold"][0])

    def _evaluation(self, record: RoundRecord) -> dict[str, Any]:
        """Figures of the round's federated evaluation; empty when it had none."""
        sums = record.evaluation_sums
        if not sums.get("tokens"):
            # Devices that learn from what they serve hold no texts out.
            return {}
        settings = self.settings
        assigned = dict(enumerate(self._clusters.assignment))
        return {
            **figures(sums),
            "accuracy": accuracy(sums, settings.workload),
            "coverage": coverage(record.evaluation_replies, assigned, settings.fidelity_budget),
        }

    def _save(self) -> None:
        progress = replace(self.progress, seconds=self._seconds())
        state = self.strategy.state_dict()
        checkpoint.save(self.folder.path, state, self._clusters.state_dict(), progress)

    def _write_progress(self, done: int) -> None:
        totals = self.progress.totals
        counts = {stage: int(totals[stage.replace("_", "-")]) for stage in STAGES}
        self.folder.write_progress(done, self.settings.rounds, counts)

    def _seconds(self) -> float:
        """Wall clock of the run, its earlier lives included."""
        return self.progress.seconds + time.monotonic() - self._began

    def summary(self) -> dict[str, Any]:
        """The run in figures, after the contract of `summary.json`."""
        settings, totals = self.settings, self.progress.totals
        total = figures(totals)
        evaluated = self.progress.evaluation
        right = evaluated.get("accuracy") or accuracy(totals, settings.workload)
        values = self.strategy.client_values
        in_force = {client: self._threshold(value) for client, value in values.items()}
        stats = {} if self.host is None else self.host.stats()
        seconds = self._seconds()
        return {
            "tokens": int(totals["tokens"]),
            "resolution": total["resolution"],
            "trr": total["trr"],
            "unresolved": total["unresolved"],
            "error": failure(settings, totals),
            "llm_agreement": total["llm_agreement"],
            "accuracy": right,
            "certificate": total["certificate"],
            "measured_tokens": total["measured_tokens"],
            "guarantee": guarantee(settings, self.strategy.calibration, self.strategy.rounds_done),
            "bytes": total["bytes"],
            "exchanges": total["exchanges"],
            "hierarchy": None if self.strategy.at_edge is None else hierarchy(totals),
            "threshold": self._thresholds({**self.progress.thresholds, **in_force}),
            "rounds": self.strategy.rounds_done,
            "clients": settings.clients,
            "clusters": settings.clusters,
            "seconds": {
                "total": seconds,
                "slm": float(totals["seconds-slm"]),
                "llm": float(stats.get("seconds", totals["seconds-waited"])),
                "flower": max(0.0, seconds - self.progress.waited),
            },
            "audited": int(totals["audited"]),
            "false_hits": total["false_hits"],
            "copies": int(totals["cache-copies"]),
            "read": int(totals["read"]),
            "refused": dict(self.progress.refused),
            "failed": self.progress.failed,
            "epsilon": self.epsilon,
            "privacy": self._privacy(),
            "coverage": evaluated.get("coverage", {}),
            "evaluation": evaluated,
            "clustering": clustering_figures(self._clusters),
            "settings": settings.to_run_config(),
            "changed": settings.changed(),
            "versions": versions(),
        }


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, Sequence)
