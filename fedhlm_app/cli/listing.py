"""`fedhlm list`: the runs of a folder, the newest first."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fedhlm_app.cli.error_log import say
from fedhlm_app.cli.run import BAD_SETTINGS, COMPLETED
from fedhlm_app.results.at_work import is_at_work
from fedhlm_app.results.runs import RunFolder, runs_in

_NARROWEST = 72
_COLUMNS = ("run", "state", "rounds", "tokens", "kept", "and wrong", "age")


def show_runs(directory: Path, *, as_json: bool) -> int:
    """Print the runs in a directory, as a table or in JSON, and return the exit status."""
    found = runs_in(directory)
    if not found:
        errors = Console(stderr=True, highlight=False)
        say(errors, f"no run in {directory}: start one with `fedhlm run`, or name another folder")
        return BAD_SETTINGS
    runs = [{"run": str(one.path), **_told(one)} for one in reversed(found)]
    if as_json:
        print(json.dumps(runs, indent=2))
        return COMPLETED
    table = Table(box=None, padding=(0, 1, 0, 0))
    for name in _COLUMNS:
        left = name in ("run", "state")
        # A long name goes on below itself rather than over the figures.
        table.add_column(
            name, justify="left" if left else "right", no_wrap=name != "run", overflow="fold"
        )
    for run in runs:
        table.add_row(Path(run["run"]).name, run["state"], *_figures(run))
    # A narrow terminal wraps lines by itself; cut to fit, names would go and figures be wrong.
    console = Console()
    console.width = max(console.width, _NARROWEST)
    console.print(table)
    return COMPLETED


def _told(folder: RunFolder) -> dict[str, Any]:
    """What is known of a run; the state alone where its files cannot be read."""
    try:
        config, summary = folder.config(), folder.summary()
        done = folder.progress() or {
            "round": 0, "rounds": config["settings"]["rounds"], "counts": {},
        }  # fmt: skip
        counts = done["counts"]
        tokens = sum(counts.values())
        last: dict[str, Any] = summary or next(reversed(folder.metrics()), {})
        return {
            "state": "running" if is_at_work(folder.path) else _state(folder, summary),
            "started": datetime.fromisoformat(config["started"]).isoformat(),
            "round": int(done["round"]),
            "rounds": int(done["rounds"]),
            "tokens": tokens,
            "kept": counts["local"] / tokens if tokens else None,
            "kept_and_wrong": last.get("certificate"),
        }
    except (KeyError, TypeError, AttributeError, ValueError, OSError):
        return {"state": "unreadable"}


def _figures(run: dict[str, Any]) -> Iterable[str]:
    """The columns behind the state."""
    if run["state"] == "unreadable":
        return ()
    shares = ("" if run[key] is None else f"{run[key]:.1%}" for key in ("kept", "kept_and_wrong"))
    return (f"{run['round']}/{run['rounds']}", f"{run['tokens']:,}", *shares, _age(run["started"]))


def _state(folder: RunFolder, summary: dict[str, Any] | None) -> str:
    """Of a run that no process is at work on."""
    if folder.failure():
        return "failed"
    return "unfinished" if summary is None else "completed"


def _age(started: str) -> str:
    seconds = (datetime.now(UTC) - datetime.fromisoformat(started)).total_seconds()
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
