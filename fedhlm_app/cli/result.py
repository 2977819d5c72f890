"""The result of a run, on a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from fedhlm_app.results.report.rows import figures
from fedhlm_app.results.report.verdict import verdict


def show_result(console: Console, summary: Mapping[str, Any], folder: Path) -> None:
    """Print what ends a run: the verdict, the table of `summary.json`, and the run folder."""
    table = Table(box=box.SIMPLE, show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    # A word that is too long, such as a setting's, goes on below itself.
    table.add_column(style="dim", overflow="fold")
    for row in figures(summary):
        if row is None:
            table.add_section()
        else:
            table.add_row(*row)
    console.print(f"{verdict(summary)}.", style="bold", highlight=False)
    console.print(table)
    console.print(f"run folder: {folder}", style="dim", markup=False, soft_wrap=True)
