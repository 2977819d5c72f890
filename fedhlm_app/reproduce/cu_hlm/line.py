"""Uncertainty against rejection: U-HLM's line, its thresholds, and what they skip."""

from __future__ import annotations

import numpy as np

from fedhlm_app.reproduce.cu_hlm.inputs import Inputs, Tokens
from fedhlm_app.reproduce.pieces import Cell, Figure, Finding, Measured, Piece, Table

BINS = 21
"""Values that the sweep of 20 temperatures can take."""


def made_line(inputs: Inputs) -> Finding:
    """Fit beta = a u + b to every seed's tokens."""
    lines = [tokens.line for tokens in inputs.tokens]
    correlation = Measured.of([_correlation(tokens) for tokens in inputs.tokens])
    by_value = [float(np.corrcoef(np.transpose(_means(one)))[0, 1]) for one in inputs.tokens]
    rows: list[tuple[Cell, ...]] = [
        ("tokens", sum(len(tokens.beta) for tokens in inputs.tokens), None),
        ("correlation of u and beta", correlation, "strong"),
        ("correlation of mean beta by u", Measured.of(by_value), None),
        ("slope a", Measured.of([line.slope for line in lines]), 0.815),
        ("intercept b", Measured.of([line.intercept for line in lines]), -0.066),
        ("P(y_d < x_d)", Measured.of([line.lower_share for line in lines]), None),
        ("risk-averse threshold -b/a", Measured.of([one.risk_averse for one in lines]), 0.081),
        ("risk-prone threshold", Measured.of([one.risk_prone for one in lines]), 0.43),
    ]
    averse = np.mean([line.risk_averse for line in lines])
    words = (
        f"Rejection {'rises' if correlation.mean > 0 else 'falls'} with uncertainty: r = "
        f"{correlation.mean:.2f} over tokens and {np.mean(by_value):.2f} over the means at each "
        f"value of u, where the abstract says strong without a number. The line crosses zero at "
        f"{averse:.2f}, TinyLlama's and Llama-2's at .08, and is its pair's own: a threshold has "
        "to be fitted and cannot be copied."
    )
    first = inputs.tokens[0]
    line = first.line
    ends = [(u, line.slope * u + line.intercept) for u in (0.0, 1.0)]
    panel = Figure(
        "points", {"mean of tokens": _means(first)}, "uncertainty u (sweep)", "rejection beta"
    )
    fitted = Figure(
        "lines",
        {"fitted here": ends, "published": [(0.0, -0.066), (1.0, 0.749)]},
        "uncertainty u (sweep)",
        "rejection beta",
    )
    return Finding(words, Table(("What", "Ours", "U-HLM"), rows), (panel, fitted))


def _correlation(tokens: Tokens) -> float:
    return float(np.corrcoef(tokens.uncertainty, tokens.beta)[0, 1])


def _means(tokens: Tokens) -> list[tuple[float, float]]:
    """Mean beta at each value of u."""
    place = np.rint(tokens.uncertainty * (BINS - 1)).astype(np.int64)
    return [
        (float(tokens.uncertainty[place == at].mean()), float(tokens.beta[place == at].mean()))
        for at in np.unique(place)
    ]


def made_skips(inputs: Inputs) -> Finding:
    """What both thresholds skip of the recorded tokens, and what that costs."""
    shares = {
        "risk-averse": [_skipped(one, one.line.risk_averse) for one in inputs.tokens],
        "risk-prone": [_skipped(one, one.line.risk_prone) for one in inputs.tokens],
        "everything": [_skipped(one, 1.0) for one in inputs.tokens],
    }
    cells = {
        name: [Measured.of(column) for column in zip(*by_seed, strict=True)]
        for name, by_seed in shares.items()
    }
    paper = {"risk-averse": "U-HLM .459", "risk-prone": "CU-HLM .748"}
    rows = [(name, *measured, paper.get(name)) for name, measured in cells.items()]
    averse, prone = cells["risk-averse"][0].mean, cells["risk-prone"][0].mean
    words = (
        f"Ours skip {averse:.1%} and {prone:.1%} of tokens; U-HLM's own figure is 45.93 % and "
        "CU-HLM's 74.8 %, of other models and texts, and which threshold CU-HLM's belongs to its "
        "abstract does not say. The cost is the rejection of what is skipped, over all tokens: on "
        "these texts it bounds how far the result is from the LLM's."
    )
    columns = (
        "Threshold",
        "Skipped",
        "Rejected if skipped, of all",
        "TV of skipped, of all",
        "Paper",
    )
    curve = inputs.tokens[0]
    order = np.argsort(curve.uncertainty, kind="stable")
    total = len(order)
    places = np.unique(np.linspace(0, total - 1, 50).astype(np.int64))
    lost = np.cumsum(curve.beta[order]) / total
    panel = Figure(
        "lines",
        {"skipped in order of u": [((at + 1) / total, float(lost[at])) for at in places.tolist()]},
        "share of tokens skipped",
        "rejected among them, of all",
    )
    return Finding(words, Table(columns, rows), (panel,))


def _skipped(tokens: Tokens, threshold: float) -> tuple[float, float, float]:
    skipped = tokens.uncertainty <= threshold
    return (
        float(skipped.mean()),
        float((skipped * tokens.beta).mean()),
        float((skipped * tokens.distance).mean()),
    )


LINE = Piece("line", "Uncertainty against rejection", made_line)
SKIPS = Piece("skips", "What the two thresholds skip", made_skips)
