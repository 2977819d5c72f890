"""`fedhlm tokens`: the token log of a run, row by row."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedhlm_app.cli.coloured import CONTROLS
from fedhlm_app.cli.error_log import ends_with
from fedhlm_app.cli.run import BAD_SETTINGS, COMPLETED
from fedhlm_app.results.runs import RunFolder, latest_run
from fedhlm_app.results.stages import STAGE_COLOURS, STAGE_WORDS
from fedhlm_app.results.summary import STAGES

if TYPE_CHECKING:
    import pyarrow as pa

_NUMBERS = ("round", "client", "cluster", "prompt", "position", "uncertainty", "beta")


def show_tokens(run: Path | None, equal: dict[str, Any], limit: int, form: str) -> int:
    """Print rows of a run's token log, and return the exit status.

    Parameters
    ----------
    run : Path or None
        Its folder; None: the newest one in ./runs.
    equal : dict
        Column and the value that rows are to have there.
    limit : int
        Rows of the table; 0: all.
    form : str
        ``table``, ``json`` (a line a token) or ``csv``; the latter two print all rows.
    """
    from fedhlm_app.results.token_log import read_log

    with ends_with(BAD_SETTINGS, OSError, ValueError, trace=True):
        if (stage := equal.get("stage")) is not None and stage not in STAGES:
            raise ValueError(f"--stage {stage!r}: must be one of {', '.join(STAGES)}")
        folder = latest_run(Path("runs")) if run is None else RunFolder.existing(run)
        if folder is None:
            raise ValueError("no run in ./runs yet: name a run folder")
        log = read_log(folder, **equal)
        if log is None:
            raise ValueError(
                f"{folder.path} has no token log: a run with --set token-log=true writes one, "
                "--set token-texts=true keeps texts in it too"
            )
    if form == "table":
        _print_table(log, limit)
    elif form == "json":
        for row in log.to_pylist():
            print(json.dumps(row))
    else:
        import pyarrow.csv

        pyarrow.csv.write_csv(_plain(log), sys.stdout.buffer)
    return COMPLETED


def _plain(log: pa.Table) -> pa.Table:
    import pyarrow as pa

    place = log.schema.get_field_index("stage")
    return log.set_column(place, "stage", log.column("stage").cast(pa.string()))


def _print_table(log: pa.Table, limit: int) -> None:
    console = Console()
    shown = log.slice(0, limit or len(log))
    texts = "text" in log.column_names and log.column("text").null_count < len(log)
    table = Table(box=None, padding=(0, 1, 0, 0))
    for name in _NUMBERS[:5]:
        table.add_column({"position": "pos", "prompt": "item"}.get(name, name), justify="right")
    table.add_column("decided", no_wrap=True)
    for name in _NUMBERS[5:]:
        table.add_column({"uncertainty": "unsure"}.get(name, name), justify="right")
    if texts:
        table.add_column("text", no_wrap=True, overflow="ellipsis")
    for row in shown.to_pylist():
        colour = STAGE_COLOURS[row["stage"]]
        beta = "" if row["beta"] is None else f"{row['beta']:.3f}"
        table.add_row(
            *(str(row[name]) for name in _NUMBERS[:5]),
            Text(STAGE_WORDS[row["stage"]], colour),
            f"{row['uncertainty']:.3f}",
            beta,
            *([Text(_one_line(row["text"] or ""), colour)] if texts else []),
        )
    console.print(table)
    for line in _account(log):
        console.print(line, highlight=False)
    if len(shown) < len(log):
        words = f"{len(log) - len(shown):,} more rows: --limit 0 shows all, --csv writes them"
        console.print(words, style="dim", highlight=False)
    if not texts and len(log):
        words = "no texts: a run with --set token-texts=true keeps them"
        console.print(words, style="dim", highlight=False)


def _one_line(text: str) -> str:
    return text.translate(CONTROLS).replace("\n", "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}")


def _account(log: pa.Table) -> list[str]:
    """How many tokens of which stage, and their mean uncertainty; a line each."""
    import pyarrow.compute as pc

    lines = [f"{len(log):,} tokens like that"]
    stages = log.column("stage").cast("string")
    for stage in STAGES:
        own = log.filter(pc.equal(stages, stage))
        if len(own):
            mean = pc.mean(own.column("uncertainty")).as_py()
            words = STAGE_WORDS[stage]
            lines.append(f"  {words:<26}{len(own):>10,}   mean uncertainty {mean:.3f}")
    return lines
