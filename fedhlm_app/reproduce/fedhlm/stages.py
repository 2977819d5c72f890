"""Who decided the tokens of a run, in the paper's three groups and in all stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fedhlm_app.reproduce.fedhlm.inputs import Run
from fedhlm_app.reproduce.pieces import Cell, Measured
from fedhlm_app.results.stages import STAGE_WORDS
from fedhlm_app.results.summary import STAGES

GROUPS: Mapping[str, Sequence[str]] = {
    "local": ("local", "cache"),
    "P2P": ("peer", "edge"),
    "LLM": ("llm_accepted", "llm_resampled", "unresolved"),
}
"""The paper counts a device's own cache as local, and neighbouring clusters as peers."""


def totals(run: Run) -> dict[str, int]:
    """Tokens of a whole run by stage."""
    return {stage: sum(line["resolution"][stage] for line in run["rounds"]) for stage in STAGES}


def grouped(run: Run) -> dict[str, int]:
    """Tokens of a whole run in the paper's groups."""
    found = totals(run)
    return {name: sum(found[stage] for stage in stages) for name, stages in GROUPS.items()}


def group_cells(runs: Sequence[Run]) -> list[Cell]:
    """Local, P2P, LLM, all tokens, over seeds."""
    counts = [grouped(run) for run in runs]
    cells: list[Cell] = [Measured.of([one[name] for one in counts]) for name in GROUPS]
    return [*cells, Measured.of([sum(one.values()) for one in counts])]


def by_case(cases: Mapping[str, Sequence[Run]]) -> dict[str, list[tuple[str, float]]]:
    """Shares of tokens by stage and case, for stacked bars; no stage that never occurs."""
    shares: dict[str, list[tuple[str, float]]] = {}
    for stage, words in STAGE_WORDS.items():
        points = []
        for case, runs in cases.items():
            found = [totals(run) for run in runs]
            points.append((case, float(np.mean([one[stage] / sum(one.values()) for one in found]))))
        if any(share for _, share in points):
            shares[words] = points
    return shares
