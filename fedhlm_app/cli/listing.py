"""`fedhlm list`: the runs of a folder, the newest first."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from fedhlm_app.cli.error_log import say
from fedhlm_app.cli.run import BAD_SETTINGS, COMPLETED
from fedhlm_app.results.runs import RUN_FOLDER_VARIABLE, RunFolder, runs_in

_COLUMNS = ("run", "state", "rounds", "tokens", "kept", "and wrong", "age")


def show_runs(directory: Path) -> int:
    """Print a table of the runs in a directory, and return the exit status."""
    found = runs_in(directory)
    if not found:
        errors = Console(stderr=True, highlight=False)
        say(errors, f"no run in {directory}: start one with `fedhlm run`, or name another folder")
        return BAD_SETTINGS
    table = Table(box=None, padding=(0, 1, 0, 0))
    for name in _COLUMNS:
        left = name in ("run", "state")
        # A long name goes on below itself rather than over the figures.
        table.add_column(
            name, justify="left" if left else "right", no_wrap=name != "run", overflow="fold"
        )
    running = _running()
    for folder in reversed(found):
        table.add_row(folder.path.name, *_row(folder, running))
    Console().print(table)
    return COMPLETED


def _row(folder: RunFolder, running: set[Path]) -> Iterable[str]:
    """The columns but the first; the state alone of a run whose files cannot be read."""
    try:
        config, summary = folder.config(), folder.summary()
        done = folder.progress() or {
            "round": 0, "rounds": config["settings"]["rounds"], "counts": {},
        }  # fmt: skip
        counts = done["counts"]
        tokens = sum(counts.values())
        last: dict[str, Any] = summary or next(reversed(folder.metrics()), {})
        risk = last.get("certificate")
        return (
            "running" if folder.path.resolve() in running else _state(folder, summary),
            f"{done['round']}/{done['rounds']}",
            f"{tokens:,}",
            f"{counts['local'] / tokens:.1%}" if tokens else "",
            "" if risk is None else f"{risk:.1%}",
            _age(config["started"]),
        )
    except (KeyError, TypeError, AttributeError, ValueError, OSError):
        return ("unreadable",)


def _state(folder: RunFolder, summary: dict[str, Any] | None) -> str:
    """Of a run that no process is at work on."""
    if folder.failure():
        return "failed"
    return "unfinished" if summary is None else "completed"


def _running() -> set[Path]:
    """Run folders that living processes of this user are at work on."""
    found = set()
    for process in psutil.process_iter():
        try:
            if folder := process.environ().get(RUN_FOLDER_VARIABLE):
                found.add(Path(folder).resolve())
        except (psutil.Error, OSError):
            continue  # somebody else's, or gone
    return found


def _age(started: str) -> str:
    seconds = (datetime.now(UTC) - datetime.fromisoformat(started)).total_seconds()
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
