"""Figures 4 and 5, the gradient norm of eq. 11, and the trade-off of the learning rate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fedhlm_app.learning.gradients import step_size
from fedhlm_app.reproduce.fedhlm.inputs import Inputs, Run
from fedhlm_app.reproduce.pieces import Figure, Finding, Measured, Piece, Table

RULES = {"eq. 4-6 (paper)": "paper", "balanced": "balanced"}
RATES = (0.005, 0.02, 0.1, 0.5)


def _mean(runs: list[Run], value: Callable[[dict[str, Any]], float]) -> list[tuple[int, float]]:
    """A figure by round, mean over runs."""
    lines = [run["rounds"] for run in runs]
    return [
        (one[0]["round"], float(np.mean([value(line) for line in one])))
        for one in zip(*lines, strict=True)
    ]


def threshold(line: dict[str, Any]) -> float:
    """Global threshold after a round."""
    return float(line["threshold"]["global"])


def _loss(line: dict[str, Any]) -> float:
    return float(line["loss"] or 0.0)


def fig_4(inputs: Inputs) -> Finding:
    """Threshold, mean uncertainty and rejection by round."""
    panels, rows = [], []
    for words, rule in RULES.items():
        runs = [inputs.run(seed, learning=rule) for seed in inputs.seeds]
        series = {
            "threshold": _mean(runs, threshold),
            "mean uncertainty": _mean(runs, lambda line: float(line["mean_uncertainty"])),
            "mean beta (eq. 3)": _mean(runs, lambda line: float(line["mean_ratio_beta"])),
        }
        panels.append(Figure("lines", series, "round", words))
        last = [threshold(run["rounds"][-1]) for run in runs]
        rows.append((words, 0.5, Measured.of(last), 0.53 if rule == "paper" else None))
    words = (
        "Under eq. 4-6 the threshold only rises, whatever the models, because the gradient is "
        "negative everywhere; with steps .02 / (1 + r) it ends near the paper's .53. The "
        "balanced loss has an optimum and goes where wrong tokens cost as much as sending."
    )
    table = Table(("rule", "first threshold", "threshold at the end", "paper"), rows)
    return Finding(words, table, panels)


def fig_5(inputs: Inputs) -> Finding:
    """Loss by round."""
    series = {
        words: _mean([inputs.run(s, learning=rule) for s in inputs.seeds], _loss)
        for words, rule in RULES.items()
    }
    figure = Figure("lines", series, "round", "local loss before the step")
    return Finding(_fig_5_words(series), None, [figure])


def _fig_5_words(series: Mapping[str, Sequence[tuple[int, float]]]) -> str:
    ends = []
    for words, line in series.items():
        values = [loss for _, loss in line]
        first, last = float(np.mean(values[:5])), float(np.mean(values[-5:]))
        ends.append(f"{words} {first:.3f} and {last:.3f}")
    return (
        f"Mean of the first and of the last five rounds: {'; '.join(ends)}. Eq. 4 counts what is "
        "sent and says nothing of wrong tokens that were kept; its threshold rises too little to "
        "move it. The paper's Fig. 5 falls."
    )


def _norms(inputs: Inputs, seed: int, rule: str, **changes: Any) -> list[float]:
    """Size of the averaged gradient by round: how far the threshold went over the step size."""
    run, settings = (
        inputs.run(seed, learning=rule, **changes),
        inputs.settings(seed, learning=rule, **changes),
    )
    path = [settings.initial_threshold, *(threshold(line) for line in run["rounds"])]
    return [
        abs(path[number] - path[number - 1]) / step_size(settings, number)
        for number in range(1, len(path))
    ]


def eq_11(inputs: Inputs) -> Finding:
    """Gradient norm by round, and its running minimum at the end."""
    series, rows = {}, []
    for words, rule in RULES.items():
        norms = [_norms(inputs, seed, rule) for seed in inputs.seeds]
        series[words] = list(enumerate(np.mean(norms, axis=0).tolist(), 1))
        rows.append(
            (
                words,
                Measured.of([one[0] for one in norms]),
                Measured.of([one[-1] for one in norms]),
                Measured.of([min(one) for one in norms]),
            )
        )
    words = (
        "Eq. 11 promises a minimum that goes to 0. Eq. 4 has no stationary point inside (0, 1), "
        "so its norm stays away from 0 and only the falling step size brings the threshold to "
        "rest; the balanced loss has one, and its norm comes down to the noise of 600 tokens a "
        "round."
    )
    table = Table(("rule", "first round", "last round", "minimum"), rows)
    figure = Figure("lines", series, "round", "gradient norm")
    return Finding(words, table, [figure])


def rates(inputs: Inputs) -> Finding:
    """Speed and noise by learning rate."""
    series, rows = {}, []
    for rate in RATES:
        changes = {"learning_rate": rate, "learning_rate_decay": 0.1}
        runs = [inputs.run(seed, **changes) for seed in inputs.seeds]
        series[f"step {rate:g}"] = _mean(runs, threshold)
        paths = [[threshold(line) for line in run["rounds"]] for run in runs]
        rows.append(
            (
                rate,
                Measured.of([path[0] for path in paths]),
                Measured.of([path[-1] for path in paths]),
                Measured.of([float(np.std(np.diff(path[-10:]))) for path in paths]),
            )
        )
    words = (
        "As section IV-E says: larger steps arrive sooner and wander more from round to round, "
        "smaller ones are still on their way at the end."
    )
    columns = ("step", "threshold after round 1", "at the end", "sd of the last ten changes")
    figure = Figure("lines", series, "round", "threshold (balanced)")
    return Finding(words, Table(columns, rows), [figure])


FIG_4 = Piece("fig-4", "Fig. 4: threshold, mean uncertainty and rejection by round", fig_4)
FIG_5 = Piece("fig-5", "Fig. 5: loss by round", fig_5)
EQ_11 = Piece("eq-11", "Eq. 11: gradient norm by round", eq_11)
RATES_PIECE = Piece("learning-rate", "Trade-off of the learning rate (section IV-E)", rates)
