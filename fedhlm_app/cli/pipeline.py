"""`fedhlm pipeline`: a run as a Kubeflow pipeline."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fedhlm_app.cli.completing import file_option, folder_option, set_option
from fedhlm_app.cli.error_log import ends_with
from fedhlm_app.cli.interrupting import INTERRUPTED
from fedhlm_app.cli.lazy import command_app
from fedhlm_app.cli.run import BAD_SETTINGS, FAILED, collect
from fedhlm_app.cli.trace import rounds_table
from fedhlm_app.presets import DEFAULT
from fedhlm_app.results.runs import write_atomically
from fedhlm_app.settings import Settings

pipeline_app = command_app(no_args_is_help=True)

_Clients = Annotated[int | None, typer.Option("--clients", "-n", help="As in run.")]
_Rounds = Annotated[int | None, typer.Option("--rounds", "-r", help="As in run.")]
_Set = Annotated[list[str] | None, set_option("Any setting.")]


@pipeline_app.callback()
def _group() -> None:
    """Run FedHLM as a Kubeflow pipeline: five steps a round, with files between them.

    Drafting, routing, the LLM, validation, aggregation. Starts from preset `fedhlm`, as
    `fedhlm run` does; given texts (`-s workload=score`, `classify`) take `-s preset=certified`.
    """


@contextmanager
def _ready(clients: int | None, rounds: int | None, pairs: list[str]) -> Iterator[Settings]:
    """Settings that a pipeline can run, with kfp there."""
    with ends_with(BAD_SETTINGS, ValueError, OSError, trace=True):
        if importlib.util.find_spec("kfp") is None:
            raise ValueError("kfp is not installed; `pip install 'fedhlm[pipeline]'` brings it")
        given = {"clients": clients, "rounds": rounds}
        settings = collect(given, pairs, preset=DEFAULT)
        # Models take seconds to load, which a wrong setting need not await.
        from fedhlm_app.trace.rounds import Rounds

        Rounds(settings, generating=True)
        yield settings


@pipeline_app.command("compile")
def compile_(
    out: Annotated[Path, typer.Option(metavar="FILE", help="YAML file to write.")] = Path(
        "fedhlm.yaml"
    ),
    image: Annotated[
        str, typer.Option(help="Container image of the steps: has fedhlm[pipeline].")
    ] = "fedhlm:latest",
    clients: _Clients = None,
    rounds: _Rounds = None,
    overrides: _Set = None,
) -> None:
    """Write the pipeline as YAML, to be uploaded to Kubeflow.

    Example: `fedhlm pipeline compile --rounds 5 --image registry.example/fedhlm:1`
    """
    with _ready(clients, rounds, overrides or []) as settings:
        if out.suffix not in (".yaml", ".yml") or not out.absolute().parent.is_dir():
            raise ValueError(f"--out {out}: must be a .yaml file in a folder that is there")
        from fedhlm_app.pipeline.components import write

        write(settings, image, out)
    print(f"{out}: {settings.rounds} rounds of 5 steps")


@pipeline_app.command()
def run(
    out: Annotated[Path, folder_option("Where files of steps go.")] = Path("pipeline"),
    json_file: Annotated[Path | None, file_option("Write all rounds as JSON.", "--json")] = None,
    clients: _Clients = None,
    rounds: _Rounds = None,
    overrides: _Set = None,
) -> None:
    """Run the pipeline on this machine, each step a process, and show its rounds.

    Ends with what `fedhlm run` with these settings ends with. A step takes seconds to start.

    Example: `fedhlm pipeline run --clients 4 --rounds 2`
    """
    with _ready(clients, rounds, overrides or []) as settings:
        from fedhlm_app.hosting.pairs import check_one_tokenizer
        from fedhlm_app.pipeline import components

        check_one_tokenizer(settings, "a pipeline")
    try:
        with ends_with(FAILED, RuntimeError, trace=True):
            lines = components.run(settings, out)
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    if json_file is not None:
        write_atomically(json_file, json.dumps(lines, indent=1) + "\n")
    Console().print(rounds_table(lines))
    print(f"files of all steps: {out}")
