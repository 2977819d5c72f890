"""`fedhlm doctor`: what is wrong here, and what to do."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from fedhlm_app.cli.checkup import NOTE, OK, WRONG, Finding, checkup
from fedhlm_app.cli.error_log import ends_with
from fedhlm_app.cli.run import BAD_SETTINGS, COMPLETED, FAILED, collect

_STYLES = {OK: "green", NOTE: "yellow", WRONG: "bold red"}


def show_checkup(overrides: list[str], keys: Path | None, superlink: str, *, as_json: bool) -> int:
    """Print what was found, and return the exit status."""
    with ends_with(BAD_SETTINGS, ValueError, trace=True):
        settings = collect({}, overrides)
        if keys is not None and not keys.is_dir():
            raise ValueError(f"--keys {keys}: no folder; `fedhlm keys create {keys}` makes it")
    found = list(checkup(settings, keys, superlink))
    if as_json:
        print(json.dumps([asdict(one) for one in found], indent=1))
    else:
        Console(highlight=False).print(_table(found))
    return FAILED if any(one.state == WRONG for one in found) else COMPLETED


def _table(found: Iterable[Finding]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for _ in range(3):
        table.add_column(overflow="fold")
    for one in found:
        table.add_row(f"[{_STYLES[one.state]}]{one.state}[/]", one.what, one.said)
    return table
