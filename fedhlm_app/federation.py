"""The rounds of a run: who takes part, which strategy, and what is written down."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from logging import INFO, WARNING
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.common.logger import log
from flwr.serverapp import Grid

from fedhlm_app.data.items import Items
from fedhlm_app.learning import initial_policy, policy_bounds
from fedhlm_app.report import write_report
from fedhlm_app.runs import RunFolder, versions
from fedhlm_app.serving import LanguageModelHost
from fedhlm_app.settings import Settings
from fedhlm_app.summary import STAGES, resolution_rate
from strategies.cluster_map import AssignedClusters, contiguous, round_robin
from strategies.factory import build_strategy
from strategies.hierarchical import Hierarchical
from strategies.records import RoundRecord

INTRODUCTION_SECONDS = 60.0
"""Longest wait for nodes to say which data partition they are."""


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
    """

    def __init__(
        self,
        settings: Settings,
        items: Items,
        folder: RunFolder,
        host: LanguageModelHost | None,
    ) -> None:
        self.settings = settings
        self.items = items
        self.folder = folder
        self.host = host
        self.totals: Counter[str] = Counter()
        self.evaluation: dict[str, Any] = {}
        self._began = time.monotonic()
        self._flower = 0.0
        self._clusters = AssignedClusters({}, self._assignment(), settings.clusters)
        self.strategy = self._strategy()

    def run(self, grid: Grid) -> None:
        """Introduce the nodes, run all rounds, write summary and report.

        Raises
        ------
        RoundFailed
            When a round had no usable reply.
        """
        settings = self.settings
        self._began = time.monotonic()
        self._introduce(grid)
        self.folder.write_progress(0, settings.rounds, {})
        self.strategy.start(
            grid,
            ArrayRecord({"policy": Array(initial_policy(settings))}),
            settings.rounds,
            timeout=settings.round_timeout,
            train_config=ConfigRecord(),
        )
        summary = self.summary()
        self.folder.write_summary(summary)
        write_report(self.folder)
        log(INFO, "Run folder: %s", self.folder.path)

    def _assignment(self) -> list[int]:
        settings = self.settings
        if settings.cluster_by == "by-partition":
            return contiguous(settings.clients, settings.clusters)
        if settings.cluster_by == "random":
            generator = np.random.default_rng([settings.seed, settings.clusters])
            shuffled = generator.permutation(round_robin(settings.clients, settings.clusters))
            return [int(cluster) for cluster in shuffled]
        return round_robin(settings.clients, settings.clusters)

    def _strategy(self) -> Hierarchical:
        settings = self.settings
        low, high = policy_bounds(settings)
        return build_strategy(
            settings.strategy,
            settings.edge_rule,
            "uniform" if settings.cloud_rule == "mean" else settings.cloud_rule,
            self._clusters,
            proximal_mu=settings.proximal_mu,
            server_learning_rate=settings.server_learning_rate,
            personalisation=settings.personalisation,
            shrink_weight=settings.shrinkage,
            fraction_train=settings.fraction_train,
            fraction_evaluate=settings.fraction_evaluate if settings.evaluate_every else 0.0,
            evaluate_every=max(1, settings.evaluate_every),
            min_clients=settings.min_clients,
            node_wait_s=settings.round_timeout,
            seed=settings.seed,
            bounds=(low, high),
            # An evaluation may route more tokens than a round, and reports them as its weight.
            max_weight=float(
                max(
                    settings.tokens_per_round,
                    settings.evaluate_prompts * settings.tokens_per_prompt,
                )
            ),
            on_round=self._finish_round,
        )

    def _introduce(self, grid: Grid) -> None:
        """Ask every connected node for its data partition; Flower's own node ids are random."""
        deadline = time.monotonic() + INTRODUCTION_SECONDS
        known: set[int] = set()
        while True:
            new = [node for node in grid.get_node_ids() if node not in known]
            left = deadline - time.monotonic()
            if new:
                messages = [
                    Message(RecordDict(), node, MessageType.QUERY, group_id="introduction")
                    for node in new
                ]
                for reply in grid.send_and_receive(messages, timeout=max(left, 1.0)):
                    node = reply.metadata.src_node_id
                    if reply.has_error():
                        log(WARNING, "node %s did not introduce itself: %s", node, reply.error)
                        continue
                    client = int(reply.content.metric_records["metrics"]["client"])  # type: ignore[arg-type]
                    self._clusters.register(node, client)
                    known.add(node)
            if len(known) >= self.settings.clients or left <= 0:
                break
            time.sleep(0.2)
        log(INFO, "%d of %d clients are here", len(known), self.settings.clients)

    def _finish_round(self, record: RoundRecord) -> None:
        """Write down one finished round, and look after the LLM."""
        sums: Mapping[str, Any] = record.sums
        self.totals.update({key: value for key, value in sums.items() if _is_number(value)})
        self._flower += record.seconds
        if record.evaluation_sums:
            self.evaluation = {"round": record.round, **figures(record.evaluation_sums)}
        line: dict[str, Any] = {
            "round": record.round,
            "threshold": {
                "global": float(record.policy[0]),
                "clusters": {str(i): float(value[0]) for i, value in enumerate(record.clusters)},
                "clients": {str(client): float(v[0]) for client, v in record.values.items()},
            },
            "policy": record.policy.tolist(),
            "weights": {str(client): weight for client, weight in record.weights.items()},
            "loss": record.means.get("loss-before"),
            "replies": len(record.values),
            "counted": record.counted,
            "refused": {str(refusal.client): refusal.reason for refusal in record.refused},
            "failed": {str(failure.client): failure.reason for failure in record.failed},
            "seconds": record.seconds,
            **figures(sums),
        }
        if record.evaluation_sums:
            line["evaluation"] = figures(record.evaluation_sums)
        self.folder.append_metrics(line)
        counts = {stage: int(self.totals[stage.replace("_", "-")]) for stage in STAGES}
        self.folder.write_progress(record.round, self.settings.rounds, counts)
        for refusal in record.refused:
            log(WARNING, "client %s refused: %s", refusal.client, refusal.reason)
        if self.host is not None:
            self.host.ensure()

    def summary(self) -> dict[str, Any]:
        """The run in figures, after the contract of `summary.json`."""
        settings, totals = self.settings, self.totals
        total = figures(totals)
        evaluated = self.evaluation
        accuracy = {"token": None, "label": None}
        if settings.workload != "generate":
            kind = "label" if settings.workload == "classify" else "token"
            accuracy[kind] = evaluated.get("accuracy", total["accuracy"])
        policy, clusters = self.strategy.policy, self.strategy.cluster_policies
        stats = {} if self.host is None else self.host.stats()
        seconds = time.monotonic() - self._began
        return {
            "tokens": int(totals["tokens"]),
            "resolution": total["resolution"],
            "trr": total["trr"],
            "llm_agreement": total["llm_agreement"],
            "accuracy": accuracy,
            "certificate": total["certificate"],
            "bytes": total["bytes"],
            "threshold": {
                "global": float(policy[0]),
                "clusters": {str(i): float(value[0]) for i, value in enumerate(clusters)},
                "clients": {
                    str(client): float(value[0])
                    for client, value in self.strategy.client_values.items()
                },
            },
            "rounds": len(self.strategy.history),
            "clients": settings.clients,
            "clusters": settings.clusters,
            "seconds": {
                "total": seconds,
                "slm": float(totals["seconds-slm"]),
                "llm": float(stats.get("seconds", totals["seconds-waited"])),
                "flower": max(0.0, seconds - self._flower),
            },
            "audited": int(totals["audited"]),
            "refused": dict(
                sum((Counter(r.refused_by_reason) for r in self.strategy.history), Counter())
            ),
            "failed": sum(len(record.failed) for record in self.strategy.history),
            "evaluation": evaluated,
            "settings": settings.to_run_config(),
            "versions": versions(),
        }


def figures(sums: Mapping[str, Any]) -> dict[str, Any]:
    """What sums over replies say: shares, rates and bytes.

    Agreement and certificate are means over the tokens that the LLM has read; with measurement on
    these are all of them.
    """
    resolution = {stage: int(sums.get(stage.replace("_", "-"), 0)) for stage in STAGES}
    return {
        "tokens": int(sums.get("tokens", 0)),
        "resolution": resolution,
        "trr": resolution_rate(resolution) if sum(resolution.values()) else 0.0,
        "llm_agreement": _share(sums, "agreement", "agreement-known"),
        "certificate": _share(sums, "kept-loss", "kept-loss-known"),
        "measured_tokens": int(sums.get("agreement-known", 0)),
        "mean_uncertainty": _share(sums, "uncertainty", "tokens"),
        "mean_ratio_beta": _share(sums, "ratio-beta", "ratio-beta-known"),
        "accuracy": _share(sums, "correct", "answered") if sums.get("answered") else None,
        "bytes": {
            "uplink": int(sums.get("bytes-uplink", 0)),
            "downlink": int(sums.get("bytes-downlink", 0)),
            "edge": int(sums.get("bytes-edge", 0)),
        },
        "link_failures": int(sums.get("link-failures", 0)),
    }


def _share(sums: Mapping[str, Any], part: str, whole: str) -> float:
    count = float(sums.get(whole, 0))
    # Rounding may carry a mean of ones past 1.
    return min(1.0, float(sums.get(part, 0.0)) / count) if count else 0.0


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, Sequence)
