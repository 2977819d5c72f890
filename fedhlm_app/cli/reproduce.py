"""`fedhlm reproduce`: a paper's tables and figures, ours beside the paper's."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fedhlm_app.cli.completing import set_option
from fedhlm_app.cli.error_log import ends_with
from fedhlm_app.cli.interrupting import INTERRUPTED
from fedhlm_app.cli.lazy import command_app
from fedhlm_app.cli.run import BAD_SETTINGS, collect, parse_overrides

reproduce_app = command_app(no_args_is_help=True)

QUICK_SEEDS, SEEDS = 2, 5

_Data = Annotated[
    str, typer.Option(help="Texts with labels: builtin, a hub name, or a file or folder of them.")
]
_Quick = Annotated[bool, typer.Option("--quick", help="Small runs with two seeds: minutes.")]
_Out = Annotated[Path, typer.Option(metavar="FOLDER", help="Where results.md and figures go.")]
_Seeds = Annotated[
    int | None,
    typer.Option(min=1, help=f"Runs of everything; {SEEDS} by default, {QUICK_SEEDS} if quick."),
]
_Overrides = Annotated[list[str] | None, set_option("Settings of all runs, as slm.")]


@reproduce_app.callback()
def _group() -> None:
    """Make a paper's tables and figures, ours beside the paper's.

    A folder that is not finished is gone on with; one made with other options is refused.
    """


@reproduce_app.command()
def fedhlm(
    data: _Data = "builtin",
    quick: _Quick = False,
    out: _Out = Path("results"),
    seeds: _Seeds = None,
    overrides: _Overrides = None,
) -> None:
    """FedHLM (arXiv 2507.00082): 20 clients, 4 clusters, 30 rounds, 18,000 tokens a run.

    Examples, each a command of its own:

    - `fedhlm reproduce fedhlm --quick`: offline, in minutes

    - `fedhlm reproduce fedhlm --data ./ag_news --out ag-news`: all of it
    """
    run_experiment("fedhlm", data, quick, out, seeds, overrides or [])


@reproduce_app.command("cu-hlm")
def cu_hlm(
    data: _Data = "builtin",
    quick: _Quick = False,
    out: _Out = Path("results"),
    seeds: _Seeds = None,
    overrides: _Overrides = None,
) -> None:
    """CU-HLM (arXiv 2505.11788): U-HLM's line, k*, throughput over a Rayleigh channel.

    Examples, each a command of its own:

    - `fedhlm reproduce cu-hlm --quick`: offline, in minutes

    - `fedhlm reproduce cu-hlm --data ./ag_news --out ag-news`: all of it
    """
    run_experiment("cu-hlm", data, quick, out, seeds, overrides or [])


def run_experiment(
    name: str, data: str, quick: bool, out: Path, seeds: int | None, pairs: list[str]
) -> None:
    """Reproduce the experiment of a name, and say where the page is."""
    errors = Console(stderr=True, highlight=False)
    with ends_with(BAD_SETTINGS, ValueError, OSError, trace=True):
        if Path(data).exists():
            data = str(Path(data).resolve())
        collect({"dataset": data}, pairs)  # what is wrong is said before anything is loaded
        # Models and drawing take seconds to load, which a wrong setting need not await.
        from fedhlm_app.data.items import load_items
        from fedhlm_app.reproduce.experiments import EXPERIMENTS
        from fedhlm_app.reproduce.pieces import Options
        from fedhlm_app.reproduce.runner import reproduce

        given = seeds or (QUICK_SEEDS if quick else SEEDS)
        options = Options(data, quick, given, parse_overrides(pairs), len(load_items(data)))
        try:
            path = reproduce(
                EXPERIMENTS[name],
                options,
                out,
                EXPERIMENTS,
                lambda words: errors.print(words, markup=False, soft_wrap=True),
            )
        except KeyboardInterrupt:
            errors.print("stopped; the same command goes on")
            raise typer.Exit(INTERRUPTED) from None
    print(path)
