"""Thresholds of single clients and clusters, and the risk that each of them ends up with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hlm.risk.control import conformal_threshold
from hlm.risk.curves import Floats, risk_at

__all__ = ["Coverage", "Tier", "coverage", "personal_thresholds"]

Tier = Literal["global", "cluster", "local", "shrunk"]


def personal_thresholds(
    sums: Floats,
    prompts: Floats,
    grid: Floats,
    alpha: float,
    *,
    tier: Tier,
    clusters: NDArray[np.int64] | None = None,
    bound: float = 1.0,
    pseudo_prompts: float = 50.0,
) -> Floats:
    """Conformal threshold of every client, at one of four levels of sharing.

    * ``global``: one threshold from the pooled curve; guaranteed for the mixture of clients.
    * ``cluster``: one per cluster; guaranteed for the mixture of each cluster.
    * ``local``: one per client; guaranteed for that client, but nothing is kept below
      ``bound / alpha - 1`` prompts.
    * ``shrunk``: the client's curve plus ``pseudo_prompts`` prompts of its cluster's mean risk:
      near the cluster for a client with few prompts, near ``local`` for one with many. It lowers
      the worst client's risk against ``cluster`` but carries no finite-sample guarantee.

    Parameters
    ----------
    sums : float64 [C, G]
        Each client's ``sum_i R_i(grid[g])``.
    prompts : float64 [C]
        Each client's number of prompts.
    grid : float64 [G]
        Ascending thresholds.
    alpha : float
        Largest expected risk, in (0, 1).
    tier : {"global", "cluster", "local", "shrunk"}
        Level of sharing.
    clusters : int64 [C], optional
        Cluster of each client; one cluster of all by default.
    bound : float
        Largest possible risk of one prompt.
    pseudo_prompts : float
        Weight of the cluster in ``shrunk``, >= 0.

    Returns
    -------
    float64 [C]
    """
    curves, counts, group = _clients(sums, prompts, clusters)
    if tier not in ("global", "cluster", "local", "shrunk"):
        raise ValueError(f"tier must be global, cluster, local or shrunk, got {tier!r}")
    if pseudo_prompts < 0:
        raise ValueError(f"pseudo_prompts must not be negative, got {pseudo_prompts}")
    if tier == "global":
        group = np.zeros_like(group)
    cluster_sums, cluster_prompts = _by_cluster(curves, counts, group)
    if tier in ("global", "cluster"):
        shared = np.array(
            [
                conformal_threshold(curve, count, grid, alpha, bound)
                for curve, count in zip(cluster_sums, cluster_prompts, strict=True)
            ]
        )
        return shared[group]
    if tier == "shrunk":
        mean = cluster_sums / np.maximum(cluster_prompts, 1.0)[:, None]
        extra = np.where(cluster_prompts > 0, pseudo_prompts, 0.0)
        curves = curves + (extra[:, None] * mean)[group]
        counts = counts + extra[group]
    return np.array(
        [
            conformal_threshold(curve, count, grid, alpha, bound)
            for curve, count in zip(curves, counts, strict=True)
        ]
    )


@dataclass(frozen=True)
class Coverage:
    """Risk that thresholds lead to, by client and by cluster.

    Attributes
    ----------
    clients : float64 [C]
        Mean risk of each client's prompts; NaN for a client without prompts.
    clusters : float64 [M]
        Mean risk of each cluster's prompts; NaN without prompts.
    pooled : float
        Mean risk over all prompts; NaN without prompts.
    share_above : float
        Share of the clients with prompts whose risk exceeds alpha.
    worst : float
        Largest client risk; NaN without prompts.
    """

    clients: Floats
    clusters: Floats
    pooled: float
    share_above: float
    worst: float


def coverage(
    thresholds: Floats,
    sums: Floats,
    prompts: Floats,
    grid: Floats,
    alpha: float,
    clusters: NDArray[np.int64] | None = None,
) -> Coverage:
    """Risk per client and cluster of ``thresholds`` float64 [C] on (held-out) risk curves.

    ``sums`` float64 [C, G], ``prompts`` float64 [C] and ``clusters`` int64 [C] are as in
    :func:`personal_thresholds`.
    """
    curves, counts, group = _clients(sums, prompts, clusters)
    chosen = np.asarray(thresholds, dtype=np.float64)
    if chosen.shape != counts.shape:
        raise ValueError(f"thresholds must have shape {counts.shape}, got {chosen.shape}")
    total = risk_at(curves, grid, chosen)
    cluster_total, cluster_prompts = _by_cluster(total[:, None], counts, group)
    clients = _ratio(total, counts)
    present = clients[counts > 0]
    return Coverage(
        clients=clients,
        clusters=_ratio(cluster_total[:, 0], cluster_prompts),
        pooled=float(total.sum() / counts.sum()) if counts.sum() > 0 else float("nan"),
        share_above=float((present > alpha).mean()) if len(present) else 0.0,
        worst=float(present.max()) if len(present) else float("nan"),
    )


def _by_cluster(curves: Floats, counts: Floats, group: NDArray[np.int64]) -> tuple[Floats, Floats]:
    total = np.zeros((int(group.max(initial=-1)) + 1, curves.shape[1]))
    np.add.at(total, group, curves)
    prompts = np.zeros(len(total))
    np.add.at(prompts, group, counts)
    return total, prompts


def _ratio(total: Floats, counts: Floats) -> Floats:
    return np.where(counts > 0, total / np.where(counts > 0, counts, 1.0), np.nan)


def _clients(
    sums: Floats, prompts: Floats, clusters: NDArray[np.int64] | None
) -> tuple[Floats, Floats, NDArray[np.int64]]:
    curves = np.asarray(sums, dtype=np.float64)
    counts = np.asarray(prompts, dtype=np.float64)
    group = np.zeros(len(counts), np.int64) if clusters is None else np.asarray(clusters, np.int64)
    if curves.ndim != 2 or counts.shape != curves.shape[:1] or group.shape != counts.shape:
        raise ValueError(
            f"sums {curves.shape}, prompts {counts.shape} and clusters {group.shape} disagree"
        )
    if (group < 0).any():
        raise ValueError("clusters must not be negative")
    return curves, counts, group
