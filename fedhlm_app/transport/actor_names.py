"""Names of a run's Ray actors, by which its clients find them."""

from __future__ import annotations

NAMESPACE = "fedhlm"
"""Ray namespace of all FedHLM actors."""


def llm_actor_name(run: int) -> str:
    """Name of the LLM actor of one Flower run."""
    return f"llm-{run}"


def edge_actor_name(run: int, cluster: int) -> str:
    """Name of the edge actor of one cluster of one Flower run."""
    return f"edge-{run}-{cluster}"
