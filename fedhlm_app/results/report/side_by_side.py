"""Runs beside each other on one page: `fedhlm report A B` and the page of a sweep."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from fedhlm_app.results.report import curves
from fedhlm_app.results.report.charts import line_chart
from fedhlm_app.results.report.sections import Cell
from fedhlm_app.results.report.templates import fill
from fedhlm_app.results.report.verdict import threshold, verdict
from fedhlm_app.results.runs import RunFolder

_MOST_LINES = 12
"""Runs that a chart draws; a table holds all of them."""
_PLACE = ("name", "run-dir", "resume")


@dataclass(frozen=True)
class Run:
    """One of the runs.

    Attributes
    ----------
    label : str
        Short name, in legends.
    metrics : sequence of mapping
    summary : mapping or None
    settings : mapping
        What the table says of it, beside its figures.
    state : str
        What stands for figures where there is no summary.
    """

    label: str
    metrics: Sequence[Mapping[str, Any]] = ()
    summary: Mapping[str, Any] | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    state: str = ""


def runs_of(folders: Sequence[RunFolder]) -> list[Run]:
    """Runs by the name of their folder, with the settings in which any two of them differ."""
    given = [folder.config()["settings"] for folder in folders]
    keys = [key for one in given for key in one if key not in _PLACE]
    differing = [
        key
        for key in dict.fromkeys(keys)
        if any(one.get(key) != given[0].get(key) for one in given)
    ]
    names = [folder.path.name for folder in folders]
    return [
        Run(
            name if names.count(name) == 1 else str(folder.path),
            curves.thinned(folder.metrics()),
            folder.summary(),
            {key: str(one.get(key, "")) for key in differing},
            f"failed: {error}" if (error := folder.failure()) else "not finished",
        )
        for name, folder, one in zip(names, folders, given, strict=True)
    ]


def render_side_by_side(
    title: str, runs: Sequence[Run], more: Sequence[tuple[str, str, Markup]] = ()
) -> str:
    """The page as HTML that loads nothing from elsewhere.

    Parameters
    ----------
    title : str
    runs : sequence of Run
        At least one.
    more : sequence of (str, str, Markup)
        Further charts, before those by round.
    """
    drawn = runs[:_MOST_LINES]
    left_out = f"; the first {_MOST_LINES} of {len(runs)} runs" if len(runs) > len(drawn) else ""
    budgets = {budget for run in runs if (budget := _budget(run)) is not None}
    charts = [
        (
            "Threshold",
            "where there is no line, nothing is kept" + left_out,
            line_chart(
                {r.label: curves.thresholds(r.metrics, "global") for r in drawn}, title="Threshold"
            ),
        ),
        (
            "Decided without the LLM",
            "share of each round's tokens" + left_out,
            line_chart(
                {r.label: curves.points(r.metrics, "trr") for r in drawn},
                title="Decided without the LLM",
                percent=True,
            ),
        ),
        (
            "Risk",
            "share of tokens kept that are not what the LLM would have written" + left_out,
            line_chart(
                {r.label: curves.risks(r.metrics) for r in drawn},
                title="Risk",
                percent=True,
                level=(budgets.pop(), "budget") if len(budgets) == 1 else None,
            ),
        ),
        (
            "Bytes up per token",
            "of each round" + left_out,
            line_chart({r.label: _bytes_up(r) for r in drawn}, title="Bytes up per token"),
        ),
    ]
    headings, rows = _table(runs)
    finished = {run.label: run.summary for run in runs if run.summary is not None}
    return fill(
        "side-by-side",
        name=title,
        what=f"{len(runs)} runs",
        headings=headings,
        rows=rows,
        decided=curves.decided(
            {name: summary["resolution"] for name, summary in finished.items()}, "Who decided"
        )
        if finished
        else "",
        charts=[*more, *charts],
        verdicts={
            run.label: run.state if run.summary is None else f"{verdict(run.summary)}."
            for run in runs
        },
    )


def _table(runs: Sequence[Run]) -> tuple[list[tuple[str, str]], list[list[Cell]]]:
    """Headings and rows: figures, then settings."""
    keys = list(dict.fromkeys(key for run in runs for key in run.settings))
    heads = ["run", "state", *_FIGURES, *keys]
    rows = []
    for run in runs:
        told: list[Cell] = [(run.settings.get(key, ""),) * 2 for key in keys]
        found = run.summary
        figures = [("", "") if found is None else _figure(found, name) for name in _FIGURES]
        done = found is not None and not found.get("error")
        state = "completed" if done else run.state.partition(":")[0]  # why stands below
        rows.append([(run.label, run.label), (state, state), *figures, *told])
    return [(head, "") for head in heads], rows


_FIGURES: dict[str, tuple[Callable[[Mapping[str, Any]], Any], str]] = {
    "tokens": (lambda s: s["tokens"], "{:,}"),
    "kept": (lambda s: s["resolution"]["local"] / s["tokens"], "{:.2%}"),
    "without the LLM": (lambda s: s["trr"], "{:.2%}"),
    "agreement": (lambda s: s["llm_agreement"], "{:.2%}"),
    "kept and wrong": (lambda s: s["certificate"], "{:.2%}"),
    "budget": (lambda s: (s.get("guarantee") or {}).get("budget"), "{:.2%}"),
    "threshold": (lambda s: s["threshold"]["global"], ""),
    "B up a token": (lambda s: s["bytes"]["uplink"] / s["tokens"], "{:.2f}"),
    "B down a token": (lambda s: s["bytes"]["downlink"] / s["tokens"], "{:.2f}"),
    "seconds": (lambda s: s["seconds"]["total"], "{:.1f}"),
}


def _figure(summary: Mapping[str, Any], name: str) -> Cell:
    read, form = _FIGURES[name]
    value = read(summary)
    if value is None:
        return "", ""
    return value, form.format(value) if form else threshold(value)


def _budget(run: Run) -> float | None:
    found = (run.summary or {}).get("guarantee")
    return found["budget"] if found else None


def _bytes_up(run: Run) -> curves.Points:
    return [
        (line["round"], line["bytes"]["uplink"] / line["tokens"])
        for line in run.metrics
        if line.get("tokens")
    ]
