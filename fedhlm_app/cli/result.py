"""The result table of a run, on a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table

from fedhlm_app.results.report.rows import figures


def result_table(summary: Mapping[str, Any], folder: str) -> Table:
    """Return the table that ends a run.

    Parameters
    ----------
    summary : Mapping[str, Any]
        `summary.json`.
    folder : str
        Path of the run folder, shown as the caption.
    """
    table = Table(box=box.SIMPLE, show_header=False, title="Result", title_justify="left")
    table.caption = f"run folder: {folder}"
    table.caption_justify = "left"
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column(style="dim")
    for row in figures(summary):
        if row is None:
            table.add_section()
        else:
            table.add_row(*row)
    return table
