"""Beyond: the headline as a guarantee, and whether it holds on these texts."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedhlm_app.learning.rules import certifier
from fedhlm_app.learning.rules.certified import CURVE, GRID
from fedhlm_app.reproduce.fedhlm.inputs import Inputs, Run
from fedhlm_app.reproduce.pieces import Cell, Finding, Measured, Piece, Table
from fedhlm_app.settings import Settings
from fedhlm_app.trace.file import Trace
from hlm.arrays import FloatArray
from hlm.risk import RiskSums

RUNS = 1000
_SUMS: dict[str, Any] = {"learning": "certified-high-probability"}


def _learned(inputs: Inputs) -> dict[str, Any]:
    """Learn for two fifths of the rounds, as preset ``fedhlm`` does, then certify."""
    return {"learning": "primal-dual", "learn_rounds": max(1, inputs.settings().rounds * 2 // 5)}


def risks(trace: Trace, settings: Settings) -> FloatArray:
    """Risk of every text at every threshold of the grid, float64 [items, grid]."""
    begin, counts = trace.places(
        np.arange(len(trace.labels)), settings.prompt_tokens, settings.tokens_per_prompt
    )
    text = np.repeat(np.arange(len(begin)), counts)
    row = np.repeat(begin - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())
    cells = np.zeros((len(begin), len(GRID) + 1))
    at = np.searchsorted(GRID, trace.uncertainty[settings.uncertainty][row])
    np.add.at(cells, (text, at), ~trace.agrees[row] / counts[text])
    return np.asarray(cells[:, :-1].cumsum(axis=1))


def violations(inputs: Inputs) -> tuple[int, float]:
    """Of `RUNS` simulated runs those that certify too much, and the budget that they had.

    Texts are drawn from all that were recorded, so the true risk of every threshold is known. The
    budget lies a hair below that of one threshold, and what was learned at or above it.
    """
    settings = inputs.settings(**_learned(inputs))
    curves = risks(inputs.trace(), settings)
    true = curves.mean(axis=0)
    edge = int(np.argmin(np.abs(true - settings.fidelity_budget)))
    budget = float(true[edge]) * (1 - 1e-6)
    rule = certifier(inputs.settings(**_learned(inputs), fidelity_budget=budget))
    assert rule is not None
    rng, found = np.random.default_rng(0), 0
    for learned in rng.uniform(GRID[edge], 1.0, RUNS):
        chain = rule.calibration()
        chain.begin(0, float(learned))
        while chain.active(0):
            drawn = curves[rng.integers(len(curves), size=(settings.clients, rule.prompts))]
            sums = [RiskSums(risk, float(rule.prompts)).as_vector() for risk in drawn.sum(axis=1)]
            told = {client: {CURVE: sent.astype(np.float64)} for client, sent in enumerate(sums)}
            chain.absorb(0, told, told)
        found += int(chain.result(0) >= GRID[edge])
    return found, budget


def _served(run: Run, key: str) -> float:
    """Mean over the last third of the rounds, in which what was certified serves."""
    lines = run["rounds"][-max(1, len(run["rounds"]) // 3) :]
    values = [line[key] for line in lines]
    if key == "accuracy":  # of labels or of tokens, whichever there are
        values = [next(one for one in value.values() if one is not None) for value in values]
    return float(np.average(values, weights=[line["tokens"] for line in lines]))


def guarantee(inputs: Inputs) -> Finding:
    """What is certified, what it keeps, and how often it breaks its promise."""
    rows: list[tuple[Cell, ...]] = []
    kept = []
    for workload, words in (("score", "next tokens"), ("classify", "labels")):
        for name, how in (("sums alone", _SUMS), ("learned, then certified", _learned(inputs))):
            runs = [inputs.run(seed, workload=workload, **how) for seed in inputs.seeds]
            rounds = how.get("learn_rounds", 0)
            learned = [run["rounds"][rounds - 1]["threshold"]["global"] for run in runs]
            shares = Measured.of([100 * _served(run, "trr") for run in runs])
            kept.append(shares.mean)
            rows.append(
                (
                    f"{words}, {name}",
                    Measured.of(learned) if rounds else None,
                    Measured.of([run["rounds"][-1]["threshold"]["global"] for run in runs]),
                    shares,
                    Measured.of([100 * _served(run, "certificate") for run in runs]),
                    Measured.of([100 * _served(run, "accuracy") for run in runs]),
                )
            )
    found, budget = violations(inputs)
    pairs = zip(kept[::2], kept[1::2], strict=True)
    ratios = [f"{both / alone:.2f}" if alone else "no share" for alone, both in pairs]
    words = (
        f"Of {RUNS:,} simulated runs on these texts, whose budget of {budget:.2%} lies a hair "
        f"below the true risk of what was learned, {found / RUNS:.1%} certified it; promised are 5 "
        f"% at most. Learning first keeps {ratios[0]} of the next tokens that sums alone keep, and "
        f"{ratios[1]} of the labels. Of labels at 5 % certified risk, {kept[3]:.1f} % never left."
    )
    columns = ("what", "learned", "certified", "never left %", "kept and wrong %", "right %")
    return Finding(words, Table(columns, rows))


GUARANTEE = Piece(
    "guarantee", "Beyond: at most 5 % kept and wrong, with 95 % confidence", guarantee
)
