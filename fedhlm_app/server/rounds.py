"""The rounds of a run: who takes part, which strategy, and what is written down."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
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
from fedhlm_app.learning.rules import certifies
from fedhlm_app.results.events import event_log
from fedhlm_app.results.report import write_report
from fedhlm_app.results.run_log import log_result, log_round
from fedhlm_app.results.runs import RunFolder
from fedhlm_app.results.summary import STAGES
from fedhlm_app.results.token_log import TokenLog
from fedhlm_app.results.unresolved import RunFailed, lost_words
from fedhlm_app.server import checkpoint, preflight
from fedhlm_app.server.account import Account
from fedhlm_app.server.clusters import Clusters
from fedhlm_app.server.roster import numbers
from fedhlm_app.server.strategy import build_of
from fedhlm_app.settings import Settings, advice
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
        self.account = Account(settings, self.strategy, self._clusters, self.progress)

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
        stats = {} if self.host is None else self.host.stats()
        summary = self.account.summary(self._seconds(), stats)
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

    def _finish_round(self, record: RoundRecord) -> None:
        """Write down one finished round, and look after the LLM."""
        line, sums = self.account.line(record), self.account.sums(record)
        if self._tokens is not None:
            self._tokens.end_round(record.round)
        self.folder.append_metrics(line)
        self._add_events(line)
        self._clusters.renew(record.round, self.strategy)
        self._tell_sizes()
        if learns_take_back(self.settings):
            counts = [float(sums.get(name, 0)) for name in RUN_COUNTS]
            # Of a round that counted nothing there is nothing to go by.
            self.progress.take_back = counts if any(counts) else self.progress.take_back
            self._tell_counts()
        if self.settings.checkpoint:
            self._save()
        self._write_progress(record.round)
        log_round(line, self.settings.rounds)
        if absent := line["absent"]:
            log(WARNING, "round %d: clients %s were not here", record.round, numbers(absent))
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
