"""Wide tables on a narrow terminal: as many blocks below each other as it takes."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table


def print_blocks(
    console: Console,
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    names: int = 1,
    caption: str = "",
) -> None:
    """Print a table whole, in blocks of columns that are no wider than the console.

    Parameters
    ----------
    console : Console
    headings : sequence of str
        Broken at line ends, or where there are none at any space.
    rows : sequence of sequence of str
        One cell for each heading; cells are never broken.
    names : int
        First columns that every block repeats. Where these take more than half of the width, rows
        are numbered, and the numbers are repeated instead.
    caption : str
        Stands below the last block.
    """
    if sum(_widths(headings[:names], rows)) > console.width // 2:
        headings = ["", *headings]
        rows = [[str(number), *row] for number, row in enumerate(rows, 1)]
        names = 1
    widths = _widths(headings, rows)
    start = sum(widths[:names])
    parts: list[list[int]] = [[]]
    for column in range(names, len(headings)):
        taken = start + sum(widths[other] for other in parts[-1])
        if parts[-1] and taken + widths[column] > console.width:
            parts.append([])
        parts[-1].append(column)
    for part in parts:
        table = Table(box=None, padding=(0, 2, 0, 0))
        for column in (*range(names), *part):
            left = column < names or not any(_is_figure(row[column]) for row in rows)
            table.add_column(
                headings[column],
                justify="left" if left else "right",
                style="bold" if column < names else "",
                width=widths[column] - 2,
            )
        for row in rows:
            table.add_row(*(row[column] for column in (*range(names), *part)))
        console.print(table)
        console.print()
    if caption:
        console.print(caption, style="dim", highlight=False)


def _widths(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    """What each column needs, its gap of two included."""
    cells = (max((len(row[i]) for row in rows), default=0) for i in range(len(headings)))
    words = (
        max(map(len, heading.split("\n" if "\n" in heading else None) or [""]))
        for heading in headings
    )
    return [max(pair) + 2 for pair in zip(cells, words, strict=True)]


def _is_figure(cell: str) -> bool:
    return cell[:1].isdigit() or cell[:1] == "-"
