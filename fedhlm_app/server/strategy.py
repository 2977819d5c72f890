"""The strategy of a run, made from its settings."""

from __future__ import annotations

import secrets
from collections.abc import Callable

from fedhlm_app.client.take_back import RUN_COUNTS, learns_take_back
from fedhlm_app.learning.gradients import policy_bounds
from fedhlm_app.learning.rules import rule_of, sums_rule
from fedhlm_app.settings import Settings
from fedhlm_app.settings.hierarchy import averages_at_edge
from strategies.at_edge import EdgeServers
from strategies.cluster_map import ClusterMap
from strategies.factory import build_strategy
from strategies.hierarchical import Hierarchical
from strategies.options import StrategyOptions
from strategies.privacy import CentralPrivacy
from strategies.records import RoundRecord


def build_of(
    settings: Settings,
    clusters: ClusterMap,
    on_round: Callable[[RoundRecord], None],
    edges: EdgeServers | None = None,
) -> Hierarchical:
    """The strategy that the settings ask for, before its first round.

    Parameters
    ----------
    settings : Settings
        Of the run.
    clusters : ClusterMap
        Which client is in which cluster.
    on_round : callable
        Called with each finished round.
    edges : EdgeServers, optional
        Those of the run.
    """
    at_edge = averages_at_edge(settings)
    options: StrategyOptions = {
        "fraction_train": settings.fraction_train,
        "fraction_evaluate": settings.fraction_evaluate if settings.evaluate_every else 0.0,
        "evaluate_every": max(1, settings.evaluate_every),
        "min_clients": settings.min_clients,
        "node_wait_s": settings.round_timeout,
        "seed": settings.seed,
        "bounds": policy_bounds(settings),
        # An evaluation may route more tokens than a round, and reports them as its weight.
        "max_weight": float(
            max(
                settings.tokens_per_round,
                settings.evaluate_prompts * settings.tokens_per_prompt,
            )
        ),
        "on_round": on_round,
        "require_echo": True,
        # No device can have more drafts than it was asked for.
        "metric_ranges": dict.fromkeys(
            RUN_COUNTS if learns_take_back(settings) else (),
            (0.0, float(settings.tokens_per_round)),
        ),
        # Where clusters are learned anew, a new one starts from its members' last policies.
        "keep_values": not at_edge,
        "edges": edges if at_edge else None,
        "privacy": _central_privacy(settings),
        "proximal_mu": settings.proximal_mu,
        "server_learning_rate": settings.server_learning_rate,
        **(sums_rule(settings) or rule_of(settings)).strategy_options(),
    }
    return build_strategy(
        settings.strategy, settings.edge_rule, settings.cloud_rule, clusters, **options
    )


def _central_privacy(settings: Settings) -> CentralPrivacy | None:
    if settings.privacy != "central":
        return None
    # Whoever knows the seed of the noise can take it away: it is drawn, and kept nowhere.
    return CentralPrivacy(
        settings.privacy_clip,
        settings.privacy_noise,
        settings.privacy_delta,
        seed=secrets.randbits(63),
    )
