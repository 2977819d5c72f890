"""A run in figures: what its rounds add up to, a line of metrics a round, and the summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from fedhlm_app.learning.rules import rule_of, sums_rule
from fedhlm_app.results.figures import accuracy, by_client, coverage, figures, hierarchy
from fedhlm_app.results.runs import versions
from fedhlm_app.results.unresolved import failure
from fedhlm_app.server.checkpoint import Progress
from fedhlm_app.server.cluster_report import clustering_figures
from fedhlm_app.server.clusters import Clusters
from fedhlm_app.server.guarantee import guarantee
from fedhlm_app.settings import Settings
from hlm.arrays import FloatArray
from hlm.privacy import gaussian_epsilon
from strategies.hierarchical import Hierarchical
from strategies.records import RoundRecord


class Account:
    """Adds up the rounds of one run.

    Parameters
    ----------
    settings : Settings
        Of the run.
    strategy : Hierarchical
        Whose rounds they are.
    clusters : Clusters
        Of its clients.
    progress : Progress
        What the rounds so far have come to; goes on here.
    """

    def __init__(
        self, settings: Settings, strategy: Hierarchical, clusters: Clusters, progress: Progress
    ) -> None:
        self.settings, self.strategy = settings, strategy
        self.clusters, self.progress = clusters, progress

    def sums(self, record: RoundRecord) -> dict[str, Any]:
        """Every metric of a round added up, what edge servers counted included."""
        at_edge = self.strategy.at_edge
        return {**record.sums, **({} if at_edge is None else at_edge.tally)}

    def line(self, record: RoundRecord) -> dict[str, Any]:
        """Add a finished round; its line of `metrics.jsonl`."""
        strategy, progress, sums = self.strategy, self.progress, self.sums(record)
        progress.totals.update({key: value for key, value in sums.items() if _is_number(value)})
        progress.refused.update(record.refused_by_reason)
        progress.failed += len(record.failed)
        progress.absent += len(self.clusters.roster.absent)
        progress.waited += record.seconds
        told = {client: one["threshold"] for client, one in record.replies.items()}
        thresholds = cast(dict[int, float], told if record.counted else {})
        progress.thresholds |= thresholds
        line: dict[str, Any] = {
            "round": record.round,
            "threshold": self._thresholds(thresholds),
            "policy": {n: a.tolist() for n, a in strategy.named(strategy.policy).items()},
            "weights": {str(client): weight for client, weight in record.weights.items()},
            "loss": record.means.get("loss-before"),
            "replies": len(record.weights),
            "counted": record.counted,
            "refused": {str(refusal.client): refusal.reason for refusal in record.refused},
            "failed": {str(failed.client): failed.reason for failed in record.failed},
            "absent": list(self.clusters.roster.absent),
            "seconds": record.seconds,
            **figures(sums),
            "by_client": by_client(record.replies, record.clients),
        }
        if strategy.at_edge is not None:
            line["hierarchy"] = hierarchy(sums)
        if evaluation := self._evaluation(record):
            progress.evaluation = {"round": record.round, **evaluation}
            line["evaluation"] = evaluation
        if (privacy := self._privacy()) is not None:
            line["epsilon"] = privacy["epsilon"]
        if strategy.calibration is not None:
            line["calibration"] = strategy.calibration.stage(record)
            line["guarantee"] = guarantee(self.settings, strategy.calibration, record.round)
        return line

    def summary(self, seconds: float, llm: Mapping[str, Any]) -> dict[str, Any]:
        """The run in figures, after the contract of `summary.json`.

        Parameters
        ----------
        seconds : float
            Wall clock of the run, its earlier lives included.
        llm : mapping
            What the LLM actor counted; empty where the LLM is served elsewhere.
        """
        settings, totals = self.settings, self.progress.totals
        total = figures(totals)
        evaluated = self.progress.evaluation
        right = evaluated.get("accuracy") or accuracy(totals, settings.workload)
        values = self.strategy.client_values
        in_force = {client: self._threshold(value) for client, value in values.items()}
        privacy = self._privacy()
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
                "llm": float(llm.get("seconds", totals["seconds-waited"])),
                "flower": max(0.0, seconds - self.progress.waited),
            },
            "audited": int(totals["audited"]),
            "false_hits": total["false_hits"],
            "copies": int(totals["cache-copies"]),
            "read": int(totals["read"]),
            "refused": dict(self.progress.refused),
            "failed": self.progress.failed,
            "absent": self.progress.absent,
            "epsilon": None if privacy is None else privacy["epsilon"],
            "privacy": privacy,
            "coverage": evaluated.get("coverage", {}),
            "evaluation": evaluated,
            "clustering": clustering_figures(self.clusters),
            "settings": settings.to_run_config(),
            "changed": settings.changed(),
            "versions": versions(),
        }

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
        assigned = dict(enumerate(self.clusters.assignment))
        return {
            **figures(sums),
            "accuracy": accuracy(sums, settings.workload),
            "coverage": coverage(record.evaluation_replies, assigned, settings.fidelity_budget),
        }

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


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, Sequence)
