"""Figures of rounds and evaluations, from sums over replies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fedhlm_app.results.summary import STAGES, transmission_reduction
from hlm.intervals import wilson_interval


def figures(sums: Mapping[str, Any]) -> dict[str, Any]:
    """What sums over replies say: shares, rates and bytes.

    Agreement and certificate are means over the tokens that the LLM has read; with measurement on
    these are all of them.
    """
    resolution = {stage: int(sums.get(stage.replace("_", "-"), 0)) for stage in STAGES}
    return {
        "tokens": int(sums.get("tokens", 0)),
        "resolution": resolution,
        "trr": transmission_reduction(resolution) if sum(resolution.values()) else 0.0,
        "unresolved": _share(sums, "unresolved", "tokens"),
        "llm_agreement": _share(sums, "agreement", "agreement-known"),
        "certificate": _share(sums, "kept-loss", "kept-loss-known"),
        "measured_tokens": int(sums.get("agreement-known", 0)),
        "mean_uncertainty": _share(sums, "uncertainty", "tokens"),
        "mean_ratio_beta": _share(sums, "ratio-beta", "ratio-beta-known"),
        "bytes": {
            "uplink": int(sums.get("bytes-uplink", 0)),
            "downlink": int(sums.get("bytes-downlink", 0)),
            "edge": int(sums.get("bytes-edge", 0)),
        },
        "exchanges": {
            "messages": int(sums.get("messages", 0)),
            "streams": int(sums.get("streams", 0)),
            "decoded": int(sums.get("llm-decoded", 0)),
            "overshot": int(sums.get("llm-overshot", 0)),
        },
        "audited": int(sums.get("audited", 0)),
        "read": int(sums.get("read", 0)),
        "false_hits": {tier: hits for tier in ("cache", "edge") if (hits := _hits(sums, tier))},
        "link_failures": int(sums.get("link-failures", 0)),
        "link_refused": int(sums.get("link-refused", 0)),
        "link_untrusted": int(sums.get("link-untrusted", 0)),
    }


def by_client(
    replies: Mapping[int, Mapping[str, Any]], clusters: Mapping[int, int]
) -> dict[str, dict[str, Any]]:
    """What each client's reply to a round says: stages that decided none are left out.

    `wrong` is a sum over the `known` tokens, those that the LLM has read.
    """
    found = {}
    for client, sums in sorted(replies.items()):
        counts = ((stage, int(sums.get(stage.replace("_", "-"), 0))) for stage in STAGES)
        found[str(client)] = {
            "cluster": clusters.get(client, 0),
            "resolution": {stage: count for stage, count in counts if count},
            "uplink": int(sums.get("bytes-uplink", 0)),
            "downlink": int(sums.get("bytes-downlink", 0)),
            "wrong": float(sums.get("kept-loss", 0.0)),
            "known": int(sums.get("kept-loss-known", 0)),
        }
    return found


def hierarchy(sums: Mapping[str, Any]) -> dict[str, Any]:
    """Bytes of updates where edge servers average them: from devices up, and on to the cloud.

    Without the edge every device's update would go to the cloud as it is, so what is saved there
    is what the edge servers did not pass on.
    """
    up, on = int(sums.get("bytes-update", 0)), int(sums.get("bytes-aggregate", 0))
    return {
        "updates": int(sums.get("updates", 0)),
        "aggregates": int(sums.get("aggregates", 0)),
        "device_edge": up,
        "edge_cloud": on,
        "saved": 1 - on / up if up else 0.0,
    }


def _hits(sums: Mapping[str, Any], tier: str) -> dict[str, Any]:
    """Audited hits of a tier: how many the LLM decided otherwise, with a 95 % interval."""
    checked, wrong = int(sums.get(f"{tier}-audited", 0)), int(sums.get(f"{tier}-false", 0))
    if not checked:
        return {}
    low, high = wilson_interval(wrong, checked)
    return {"audited": checked, "wrong": wrong, "rate": wrong / checked, "interval": [low, high]}


def accuracy(sums: Mapping[str, Any], workload: str) -> dict[str, float | None]:
    """Share of routed tokens that are right, by kind; None where there is no truth."""
    found: dict[str, float | None] = {"token": None, "label": None}
    if workload != "generate" and sums.get("answered"):
        found["label" if workload == "classify" else "token"] = _share(sums, "correct", "answered")
    return found


def coverage(
    replies: Mapping[int, Mapping[str, Any]], clusters: Mapping[int, int], alpha: float
) -> dict[str, Any]:
    """Risk on held-out prompts by client and cluster: share of tokens kept and wrong.

    Parameters
    ----------
    replies : mapping of client to metrics
        Of one federated evaluation.
    clusters : mapping of client to cluster
    alpha : float
        The budget a client's risk is held against.
    """
    risks: dict[int, float] = {}
    groups: dict[int, list[tuple[float, float]]] = {}
    for client, metrics in sorted(replies.items()):
        known = float(metrics.get("kept-loss-known", 0))
        if known <= 0:
            continue
        lost = float(metrics.get("kept-loss", 0.0))
        risks[client] = lost / known
        groups.setdefault(clusters.get(client, 0), []).append((lost, known))
    if not risks:
        return {}
    return {
        "alpha": alpha,
        "clients": {str(client): risk for client, risk in risks.items()},
        "clusters": {
            str(cluster): float(np.sum([a for a, _ in pairs]) / np.sum([b for _, b in pairs]))
            for cluster, pairs in sorted(groups.items())
        },
        "worst": max(risks.values()),
        "share_above": float(np.mean([risk > alpha for risk in risks.values()])),
    }


def _share(sums: Mapping[str, Any], part: str, whole: str) -> float:
    count = float(sums.get(whole, 0))
    # Rounding may carry a mean of ones past 1.
    return min(1.0, float(sums.get(part, 0.0)) / count) if count else 0.0
