"""`results.md`: every finished piece of every experiment of a folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedhlm_app.data.items import BUILTIN
from fedhlm_app.reproduce.pieces import Cell, Experiment, Measured, Options, Table, number

HEAD = """
Made by `fedhlm reproduce`; nobody edits it. `±` is a 95 % interval of the mean over seeds. Numbers
are as measured: where a paper's cannot be, the sentence says why.
"""


def page(folder: Path, experiments: Mapping[str, Experiment[Any]]) -> str:
    """The page of a folder, in Markdown: links lead to its figures and to pages in its folders."""
    parts, names = [HEAD], []
    for name, experiment in experiments.items():
        own = folder / name
        made = [piece for piece in experiment.pieces if (own / f"{piece.name}.json").is_file()]
        if not made:
            continue
        options = _options(own)
        names.append(options.dataset)
        data = "" if options.data == BUILTIN else f" --data {options.data}"
        quick = " --quick" if options.quick else ""
        parts.append(f"## {experiment.title}\n")
        parts.append(f"`fedhlm reproduce {name}{data}{quick}`: {experiment.setup(options)}\n")
        for piece in made:
            finding = json.loads((own / f"{piece.name}.json").read_text("utf-8"))
            parts.append(f"### {piece.title}\n\n{finding['words']}\n")
            if finding["table"] is not None:
                parts.append(_table(finding["table"]["columns"], finding["table"]["rows"]))
            if finding["figures"]:
                parts.append(f"![{piece.title}]({name}/{piece.name}.svg)\n")
    others = [
        f"[{_options(path).dataset}]({path.parent.name}/results.md)"
        for path in sorted({path.parent for path in folder.glob("*/*/options.json")})
    ]
    if others:
        parts.insert(1, f"The same on {', '.join(dict.fromkeys(others))}.\n")
    return f"# Results on {' and '.join(dict.fromkeys(names))}\n" + "\n".join(parts)


def _options(folder: Path) -> Options:
    """What an experiment's folder was made with."""
    return Options(**json.loads((folder / "options.json").read_text("utf-8")))


def table_json(table: Table) -> dict[str, Any]:
    """A table as JSON has it: a measured cell is [mean, half]."""

    def plain(cell: Cell) -> Any:
        return [cell.mean, cell.half] if isinstance(cell, Measured) else cell

    return {
        "columns": list(table.columns),
        "rows": [[plain(cell) for cell in row] for row in table.rows],
        "sums": [[list(parts), whole] for parts, whole in table.sums],
        "totals": list(table.totals),
    }


def table_of(found: Mapping[str, Any]) -> Table:
    """The table that `table_json` made this of; raises SumsError where it does not add up."""
    rows = [
        [Measured(*cell) if isinstance(cell, list) else cell for cell in row]
        for row in found["rows"]
    ]
    sums = [(parts, whole) for parts, whole in found["sums"]]
    return Table(found["columns"], rows, sums, found["totals"])


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
