"""`results.md`: every finished piece of every experiment of a folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedhlm_app.reproduce.pieces import Cell, Experiment, Measured, Options, Table, number

HEAD = """# Results

Made by `fedhlm reproduce`; nobody edits it. `±` is a 95 % interval of the mean over seeds. Numbers
are as measured: where a paper's cannot be, the sentence says why.
"""


def page(folder: Path, experiments: Mapping[str, Experiment[Any]]) -> str:
    """The page of a folder, in Markdown, with links to figures relative to it."""
    parts = [HEAD]
    for name, experiment in experiments.items():
        own = folder / name
        made = [piece for piece in experiment.pieces if (own / f"{piece.name}.json").is_file()]
        if not made:
            continue
        options = Options(**json.loads((own / "options.json").read_text("utf-8")))
        quick = " --quick" if options.quick else ""
        parts.append(f"## {experiment.title}\n")
        parts.append(f"`fedhlm reproduce {name}{quick}`: {experiment.setup(options)}\n")
        for piece in made:
            finding = json.loads((own / f"{piece.name}.json").read_text("utf-8"))
            parts.append(f"### {piece.title}\n\n{finding['words']}\n")
            if finding["table"] is not None:
                parts.append(_table(finding["table"]["columns"], finding["table"]["rows"]))
            if finding["figures"]:
                parts.append(f"![{piece.title}]({name}/{piece.name}.svg)\n")
    return "\n".join(parts)


def table_json(table: Table) -> dict[str, Any]:
    """A table as JSON has it: a measured cell is [mean, half]."""

    def plain(cell: Cell) -> Any:
        return [cell.mean, cell.half] if isinstance(cell, Measured) else cell

    return {
        "columns": list(table.columns),
        "rows": [[plain(cell) for cell in row] for row in table.rows],
        "sums": [[list(parts), whole] for parts, whole in table.sums],
    }


def table_of(found: Mapping[str, Any]) -> Table:
    """The table that `table_json` made this of; raises SumsError where it does not add up."""
    rows = [
        [Measured(*cell) if isinstance(cell, list) else cell for cell in row]
        for row in found["rows"]
    ]
    return Table(found["columns"], rows, [(parts, whole) for parts, whole in found["sums"]])


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    numeric = [
        all(number(_cell(row[i])) is not None or row[i] is None for row in rows)
        for i in range(len(columns))
    ]
    lines = [" | ".join(columns), " | ".join("--:" if right else "---" for right in numeric)]
    lines += [" | ".join(written(_cell(cell)) for cell in row) for row in rows]
    return "".join(f"| {line} |\n" for line in lines)


def _cell(found: Any) -> Cell:
    return Measured(*found) if isinstance(found, list) else found


def written(cell: Cell) -> str:
    """A cell as people read it: whole numbers with commas, others to three digits."""
    if isinstance(cell, Measured):
        mean = written(cell.mean)
        return f"{mean} ± {cell.half:,.2g}" if cell.half else mean
    if cell is None:
        return "-"
    if isinstance(cell, str):
        return cell
    if float(cell).is_integer():
        return f"{int(cell):,}"
    return f"{cell:,.0f}" if abs(cell) >= 1000 else f"{cell:.3g}"
