"""The golden runs: every learning rule, verifier, strategy, tier, workload and policy, each once.

Tiny runs of the built-in pair that share dimensions rather than multiply them: `covered` says what
they cover, and a test holds it against what the settings allow. Privacy is not among them: its
noise is drawn by the operating system, so no two runs are alike.
"""

from __future__ import annotations

from typing import Any

from fedhlm_app.settings import Settings
from tests.fedhlm_app.in_process import settings_of

Changes = dict[str, Any]

SAMPLED: Changes = {"decoding": "sampled"}
TIERS: Changes = {"opportunistic": False, "rounds": 3, "initial_threshold": 0.3}

RUNS: dict[str, Changes] = {
    # Learning rules on the way of the default, with the strategies.
    "paper": {"learning": "paper", "reduction": "sum", "token_log": True},
    "paper-local-fedprox": {
        "learning": "paper", "strategy": "fedprox", "local_steps": 3, "personalisation": "local",
    },
    "balanced-scaffold": {
        "learning": "balanced", "strategy": "scaffold", "local_steps": 3, "rounds": 3,
    },
    "balanced-fednova": {
        "learning": "balanced", "strategy": "fednova", "local_steps": 3,
        "personalisation": "shrunk", "fraction_train": 0.5, "evaluate_every": 2,
    },
    "primal-dual-score": {
        "learning": "primal-dual", "workload": "score", "audit_rate": 0.5, "free_feedback": False,
        "edge_rule": "fedmedian", "partition": "dirichlet",
        "learning_rate": 0.1, "learning_rate_decay": 0.1,
    },
    "linear-u-hlm": {
        "learning": "linear", "policy": "u-hlm", "workload": "score", "rounds": 1,
        "uncertainty": "temperature-sweep", "line_threshold": "risk-prone", **SAMPLED,
        "verification": "truncated", "uncertainty_samples": 5,
    },
    "certified-score": {
        "learning": "certified", "workload": "score", "fidelity_budget": 0.3,
        "calibration_rounds": 1, "tokens_per_round": 40, "evaluate_every": 2,
    },
    "certified-classify": {
        "learning": "certified-high-probability", "workload": "classify", "fidelity_budget": 0.5,
        "confidence": 0.3, "calibration_rounds": 1,
    },
    "certified-generate": {
        "learning": "certified-high-probability", "fidelity_budget": 0.4, "confidence": 0.3,
        "rounds": 3, "evaluate_every": 3, "personalisation": "cluster",
    },
    "certified-expected-generate": {
        "learning": "certified", "fidelity_budget": 0.4, "rounds": 3,
    },
    # Policies that are given rather than learned.
    "always": {"learning": "none", "policy": "always", "rounds": 1, "strategy": "fedprox"},
    "never": {"learning": "none", "policy": "never", "rounds": 1, "workload": "classify"},
    "random": {
        "learning": "none", "policy": "random", "rounds": 1, **SAMPLED, "verification": "coupled",
    },
    # A learned router, alone and under a guarantee.
    "router-balanced": {
        "policy": "router", "learning": "balanced", "rounds": 3, "router_rounds": 2,
        "router_steps": 2, "router_projection": 8, "router_hidden": 4, "router_optimizer": "adam",
    },
    "router-certified": {
        "policy": "router", "learning": "certified", "workload": "score", "rounds": 3,
        "router_rounds": 1, "router_steps": 2, "router_projection": 8, "calibration_rounds": 1,
        "fidelity_budget": 0.4,
    },
    # Verifiers of sampled drafts, and the measures of uncertainty.
    "full": {**SAMPLED, "verification": "full", "learning": "paper", "rounds": 1},
    "truncated-exact": {
        **SAMPLED, "verification": "truncated-exact", "learning": "paper", "rounds": 1,
        "truncation_k": 16, "uncertainty": "entropy",
    },
    "scalar": {
        **SAMPLED, "verification": "scalar", "learning": "balanced", "temperature": 0.8,
        "uncertainty": "disagreement", "uncertainty_samples": 5,
    },
    "coupled": {**SAMPLED, "verification": "coupled", "learning": "balanced", "top_p": 0.9},
    # Streams in place of single tokens.
    "span-greedy": {
        "escalation": "span", "learning": "certified-high-probability", "fidelity_budget": 0.4,
        "confidence": 0.3, "rounds": 3, "evaluate_every": 3, "tokens_per_prompt": 10,
    },
    "span-coupled": {
        **SAMPLED, "escalation": "span", "learning": "balanced", "initial_threshold": 0.7,
        "audit_rate": 0.3, "llm_round_trip": 20, "rounds": 3, "tokens_per_prompt": 10,
        "cache_mode": "context",
    },
    # The edge tier.
    "cache-context": {**TIERS, "cache_mode": "context", "learning": "balanced"},
    "cache-paper": {**TIERS, "cache_mode": "paper", "learning": "paper", "audit_rate": 0.3},
    "peers-context": {
        **TIERS, "peer_mode": "context", "learning": "balanced", "context_gate": 0.4,
        "reuse_gate": 0.6, "similarity": 0.2, "inter_cluster": True,
    },
    "peers-paper": {
        **TIERS, "peer_mode": "paper", "learning": "balanced", "similarity": 0.3,
        "inter_cluster": True, "opportunistic": True, "max_false_hits": 0.5, "audit_rate": 0.3,
    },
}  # fmt: skip

COMPARISONS = ("greedy", "sampled")
"""Decodings in which all methods of `fedhlm compare` are run, blocks of drafts among them."""


def settings(name: str) -> Settings:
    """The settings of one run."""
    return settings_of(**RUNS[name])


def covered(field: str) -> set[Any]:
    """Values that a setting takes in any of the runs, `auto` resolved."""
    found = [settings(name) for name in RUNS]
    if field == "verification":
        return {one.verifier for one in found}
    return {getattr(one, field) for one in found}
