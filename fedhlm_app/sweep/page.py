"""The page of a sweep: its cells side by side, and what a setting that was varied changes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from fedhlm_app.results.report.charts import line_chart
from fedhlm_app.results.report.curves import thinned
from fedhlm_app.results.report.side_by_side import Run, render_side_by_side
from fedhlm_app.results.runs import write_atomically
from fedhlm_app.sweep.runner import Outcome

PAGE = "sweep.html"

_CURVES = {
    "trr": ("Decided without the LLM", True),
    "certificate": ("Kept and wrong", True),
    "llm_agreement": ("Agreement with the LLM", True),
    "uplink_per_token": ("Bytes up per token", False),
}
"""Figures of a cell that are drawn over a setting: their title, and whether they are shares."""


def write_page(outcomes: Sequence[Outcome], folder: Path) -> Path:
    """Write `sweep.html` into the sweep's folder and return its path."""
    runs = [
        Run(
            _label(outcome.cell.varied),
            thinned(outcome.folder.metrics()) if outcome.folder is not None else (),
            None if outcome.folder is None or outcome.error else outcome.folder.summary(),
            outcome.cell.shown,
            f"failed: {outcome.error}",
        )
        for outcome in outcomes
    ]
    path = folder / PAGE
    write_atomically(path, render_side_by_side(f"Sweep {folder.name}", runs, _curves(outcomes)))
    return path


def _curves(outcomes: Sequence[Outcome]) -> list[tuple[str, str, Markup]]:
    """Charts over the first setting that took numbers, a line for each choice of the others."""
    shown = [outcome.cell.shown for outcome in outcomes]
    # Seeds have no order that would mean anything.
    keys = [key for key in shown[0] if key != "seed"]
    across = next((key for key in keys if _numeric([one.get(key) for one in shown])), None)
    if across is None:
        return []
    found = []
    for figure, (title, shares) in _CURVES.items():
        lines: dict[str, list[tuple[float, float]]] = {}
        for outcome in outcomes:
            row = outcome.row()
            if row[figure] is not None:
                others = {k: v for k, v in outcome.cell.varied.items() if k != across}
                place = (float(row[across]), float(row[figure]))
                lines.setdefault(_label(others) or "all cells", []).append(place)
        series = {name: sorted(line) for name, line in lines.items()}
        title = f"{title}, by {across}"
        found.append((title, "", line_chart(series, title=title, axis=across, percent=shares)))
    return found


def _numeric(values: Sequence[str | None]) -> bool:
    """Whether these are two numbers or more that differ."""
    try:
        return None not in values and len({float(value) for value in values if value}) > 1
    except ValueError:
        return False


def _label(varied: dict[str, str]) -> str:
    return " ".join(f"{key}={value}" for key, value in varied.items())
