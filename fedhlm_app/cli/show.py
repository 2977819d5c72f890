"""Commands that only show something: settings, a report, the environment."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from fedhlm_app.cli.error_log import ends_with, say
from fedhlm_app.cli.run import BAD_SETTINGS, COMPLETED


def show_settings(word: str, *, everything: bool, markdown: bool, toml: bool) -> int:
    """Print settings and return the exit status: a table, Markdown, or the block of pyproject.toml.

    The table has those with `word` in their name, their values' names or their meaning; without a
    word the usual ones, below the presets, or `everything`.
    """
    from fedhlm_app.settings import markdown_table, rows, toml_block
    from fedhlm_app.settings.errors import unknown_setting
    from fedhlm_app.settings.table import USUAL

    if markdown or toml:
        print(markdown_table() if markdown else toml_block(), end="")
        return COMPLETED
    sought = word.lower()
    known = rows()
    found = [r for r in known if sought in f"{r.name} {r.allowed} {r.description}".lower()]
    if not (word or everything):
        found = [r for r in known if r.name in USUAL]
        show_presets(briefly=True)
    if not found:
        words = unknown_setting(word, (row.name for row in known))
        say(Console(stderr=True, highlight=False), words)
        return BAD_SETTINGS
    console = Console()
    table = Table(box=box.SIMPLE, pad_edge=False)
    for heading, style in (("setting", "bold cyan"), ("default", ""), ("meaning", "")):
        table.add_column(heading, style=style, overflow="fold")
    group = ""
    for row in found:
        if row.group != group:
            group = row.group
            table.add_section()
            table.add_row(f"[bold white]{group}[/]", "", "")
        limits = "; ".join(part for part in (row.unit, row.allowed) if part and part != "text")
        meaning = f"{row.description} [dim]({limits})[/]" if limits else row.description
        table.add_row(row.name, row.default or '""', meaning)
    console.print(table)
    if not (word or everything):
        more = len(known) - len(found)
        console.print(f"{more} more: fedhlm settings --all, or fedhlm settings WORD to search them")
    return COMPLETED


def show_presets(*, briefly: bool = False) -> None:
    """Print every preset: its name, what it is and, unless briefly, what it sets."""
    from fedhlm_app.presets import DEFAULT, PRESETS
    from fedhlm_app.settings.words import in_short

    console = Console()
    table = Table(box=box.SIMPLE, pad_edge=False)
    table.add_column("preset", style="bold cyan", no_wrap=True)
    table.add_column("what it is", overflow="fold", ratio=2)
    if not briefly:
        table.add_column("sets", style="dim", overflow="fold", ratio=3)
    for name, preset in PRESETS.items():
        words = f"{preset.words} (the default of a run)" if name == DEFAULT else preset.words
        sets = [] if briefly else [in_short(preset.settings) or "nothing"]
        table.add_row(name, words, *sets)
    console.print(table)


def show_report(run_folder: Path | None) -> int:
    """Write the report of a run, show its table, and return the exit status."""
    from fedhlm_app.cli.result import show_result
    from fedhlm_app.results.report import write_report
    from fedhlm_app.results.runs import RunFolder, latest_run

    # A folder that may not be written to, or a file in it that is cut short.
    with ends_with(BAD_SETTINGS, OSError, ValueError, trace=True):
        found = latest_run(Path("runs")) if run_folder is None else RunFolder.existing(run_folder)
        if found is None:
            raise ValueError(
                "no run in ./runs yet: name a run folder, or start one with `fedhlm run`"
            )
        path = write_report(found)
    if (summary := found.summary()) is not None:
        show_result(Console(), summary, found.path)
    print(path)
    return COMPLETED


def show_side_by_side(run_folders: Sequence[Path], output: Path) -> int:
    """Write the page of several runs, print its path, and return the exit status."""
    from fedhlm_app.results.report.side_by_side import render_side_by_side, runs_of
    from fedhlm_app.results.runs import RunFolder, write_atomically

    with ends_with(BAD_SETTINGS, OSError, ValueError, trace=True):
        if not output.parent.is_dir():
            raise ValueError(f"--output '{output}': there is no folder '{output.parent}'")
        runs = runs_of([RunFolder.existing(path) for path in dict.fromkeys(run_folders)])
        write_atomically(output, render_side_by_side("Runs side by side", runs))
    print(output)
    return COMPLETED


def show_environment() -> None:
    """Print what a bug report needs, as plain lines."""
    import platform

    import psutil

    from fedhlm_app.results.runs import cores, versions

    memory = psutil.virtual_memory()
    lines = {
        "system": platform.platform(),
        "cores": f"{cores()} usable of {os.cpu_count()}",
        "memory": f"{memory.available / 2**30:.1f} GiB free of {memory.total / 2**30:.1f}",
        "accelerator": _accelerator(),
        **versions(),
        "variables": ", ".join(
            sorted(name for name in os.environ if name.startswith(("FEDHLM_", "FLWR_", "RAY_")))
        )
        or "none",
    }
    width = max(map(len, lines))
    for name, value in lines.items():
        print(f"{name:<{width}}  {value}")


def _accelerator() -> str:
    import torch

    cuda = torch.cuda
    if cuda.is_available():
        return ", ".join(cuda.get_device_name(index) for index in range(cuda.device_count()))

    return "mps" if torch.backends.mps.is_available() else "none"
