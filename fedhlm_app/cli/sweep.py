"""`fedhlm sweep`: many runs over settings, one table."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from fedhlm_app.cli.blocks import print_blocks
from fedhlm_app.cli.completing import preset_option, set_option
from fedhlm_app.cli.error_log import ends_with, say
from fedhlm_app.cli.interrupting import INTERRUPTED, interruptible
from fedhlm_app.cli.lazy import command_app
from fedhlm_app.cli.run import (
    BAD_SETTINGS,
    COMPLETED,
    FAILED,
    parse_overrides,
    warn,
)
from fedhlm_app.models.trying import try_models
from fedhlm_app.results.report.verdict import threshold
from fedhlm_app.server import preflight
from fedhlm_app.settings import Settings, SettingsError, advice
from fedhlm_app.sweep.cells import Cell, cells_of
from fedhlm_app.sweep.page import write_page
from fedhlm_app.sweep.runner import FIGURES, Outcome, SweepBusyError, run_sweep

sweep_app = command_app()

_SHARES = ("trr", "unresolved", "llm_agreement", "token_accuracy", "label_accuracy")


@sweep_app.command()
def sweep(
    grid: Annotated[
        list[str] | None,
        typer.Option("--grid", "-g", metavar="KEY=A,B,...", help="An axis; several multiply."),
    ] = None,
    cell: Annotated[
        list[str] | None,
        typer.Option("--cell", metavar="'KEY=A KEY=B'", help="Settings that go together."),
    ] = None,
    jobs: Annotated[
        int, typer.Option("--jobs", "-j", min=0, help="Runs at a time; 0: one for four cores.")
    ] = 0,
    name: Annotated[str, typer.Option(help="Folder of the sweep, inside run-dir.")] = "sweep",
    clients: Annotated[int | None, typer.Option("--clients", "-n", help="As in run.")] = None,
    rounds: Annotated[int | None, typer.Option("--rounds", "-r", help="As in run.")] = None,
    preset: Annotated[str | None, preset_option()] = None,
    overrides: Annotated[list[str] | None, set_option("Any setting, for all cells.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON.")] = False,
) -> None:
    """Run a grid of settings and compare the results in one table.

    Examples
    --------
    - `fedhlm sweep --grid initial-threshold=0.3,0.5 --grid strategy=fedavg,scaffold`

    - `fedhlm sweep --cell "learning=paper" --cell "learning=balanced cost-transmit=0.3"`

    The same command again runs only what is not finished; a run that was cut off goes on from its
    checkpoint. `learning=auto` means one rule for all cells, and the table has a column for every
    setting in which cells differ. Exit status as of `fedhlm run`; 1 when any cell failed.
    """
    with ends_with(BAD_SETTINGS, ValueError, OSError, trace=True):
        base: dict[str, Any] = dict(parse_overrides(overrides or []))
        options = {"preset": preset, "clients": clients, "rounds": rounds}
        base |= {k: v for k, v in options.items() if v is not None}
        if not grid and not cell:
            raise SettingsError("nothing to vary: give --grid key=a,b or --cell 'key=a'")
        cells = cells_of(base, grid or [], cell or [])
        for one in cells:
            preflight.check(one.settings)
            try_models(one.settings)
        directory = Path(Settings.from_sources(base).run_dir) / _folder_name(name)
    errors = Console(stderr=True, highlight=False)
    _announce(errors, cells, directory)
    try:
        with interruptible(errors), ends_with(FAILED, SweepBusyError):
            outcomes = run_sweep(cells, directory, jobs, _reporter(errors, len(cells)))
    except KeyboardInterrupt:
        say(errors, "the same command goes on from here")
        raise typer.Exit(INTERRUPTED) from None
    errors.print(f"page: {write_page(outcomes, directory)}", markup=False, soft_wrap=True)
    rows = [outcome.row() for outcome in outcomes]
    if as_json:
        print(json.dumps(rows, indent=2))
    else:
        _print(Console(), rows, [c.shown for c in cells])
    failed = any(outcome.error for outcome in outcomes)
    raise typer.Exit(FAILED if failed else COMPLETED)


def _announce(errors: Console, cells: Sequence[Cell], directory: Path) -> None:
    """Say what will be run, and what of it makes no difference."""
    rules = {c.settings.learning for c in cells}
    rule = f", learning={rules.pop()} in all" if len(rules) == 1 else ""
    errors.print(f"{len(cells)} cells in {directory}{rule}", markup=False, soft_wrap=True)
    for found in {tuple(advice(c.settings)): c.settings for c in cells}.values():
        warn(errors, found)


def _reporter(errors: Console, cells: int) -> Callable[[Outcome, int], None]:
    """What prints a line for each cell that has ended."""

    def report(outcome: Outcome, ended: int) -> None:
        words = " ".join(f"{key}={value}" for key, value in outcome.cell.varied.items())
        state = outcome.error or (f"{outcome.seconds:.0f} s" if outcome.seconds else "was finished")
        errors.print(f"[{ended}/{cells}] {words}: {state}", markup=False, soft_wrap=True)

    return report


def _folder_name(name: str) -> str:
    if not name or name != Path(name).name or name.startswith("."):
        raise SettingsError(f"--name {name!r}: must be a plain folder name")
    return name


def _print(console: Console, rows: list[dict[str, Any]], shown: list[dict[str, str]]) -> None:
    keys = list(dict.fromkeys(key for entry in shown for key in entry))
    figures = [name for name in FIGURES if any(row[name] is not None for row in rows)]
    headings = [*keys, *(figure.replace("_", " ") for figure in figures)]
    cells = [
        [*(str(row.get(key, "")) for key in keys), *(_shown(name, row[name]) for name in figures)]
        for row in rows
    ]
    print_blocks(console, headings, cells, len(keys))


def _shown(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    if name == "threshold":
        return threshold(value)
    if name in _SHARES:
        return f"{value:.1%}"
    return f"{value:.1f}" if name == "seconds" else f"{value:.4g}"
