"""The commands themselves, with their options and help."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from fedhlm_app.cli.completing import preset_option, set_option
from fedhlm_app.cli.lazy import LazyGroup, command_app
from fedhlm_app.foreign import foreign_packages
from fedhlm_app.presets import DEFAULT


class _Commands(LazyGroup):
    LAZY = {  # noqa: RUF012
        "generate": (
            "fedhlm_app.cli.generate:generate_app",
            "Continue a prompt here and now, each token coloured by who decided it.",
        ),
        "compare": ("fedhlm_app.cli.compare:compare_app", "Compare all methods on like prompts."),
        "estimate": (
            "fedhlm_app.cli.estimate:estimate_app",
            "Does it pay for me? Speed and cost over my link, at my prices.",
        ),
        "sweep": (
            "fedhlm_app.cli.sweep:sweep_app",
            "Run a grid of settings and compare the results in one table.",
        ),
        "trace": (
            "fedhlm_app.cli.trace:trace_app",
            "Record what both models say of every token, for replay.",
        ),
        "replay": ("fedhlm_app.cli.trace:replay_app", "Run rounds over a trace, without models."),
        "reproduce": (
            "fedhlm_app.cli.reproduce:reproduce_app",
            "Make the papers' tables and figures, ours beside theirs.",
        ),
        "pipeline": (
            "fedhlm_app.cli.pipeline:pipeline_app",
            "Run as a Kubeflow pipeline, or write one for a cluster.",
        ),
        "pair": (
            "fedhlm_app.pair.cli:pair_app",
            "Train, distil, evaluate, pack and export a model pair.",
        ),
        "serve": (
            "fedhlm_app.cli.serve:serve_app",
            "Serve the large model to devices, or a device's text to programs.",
        ),
        "keys": (
            "fedhlm_app.cli.keys:keys_app",
            "Make certificates for servers and keys for devices, and take them back.",
        ),
    }


app = command_app(
    name="fedhlm",
    cls=_Commands,
    no_args_is_help=True,
    # A shell completes the command `fedhlm`, and cannot where Python was told to run the module.
    add_completion=Path(sys.argv[0]).stem == "fedhlm",
    help=(
        "Federated hybrid language models: devices keep the tokens they are sure of, a large "
        "model decides the rest, and together they learn where sure begins.\n\n"
        "**Start here:** `fedhlm run` runs 20 devices for 30 rounds, offline, on the built-in "
        "models and texts. `fedhlm settings` shows what can be changed."
    ),
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib import metadata

        print(f"fedhlm {metadata.version('fedhlm')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    pass


@app.command()
def run(
    clients: Annotated[
        int | None, typer.Option("--clients", "-n", help="Simulated devices; 20 by default.")
    ] = None,
    rounds: Annotated[
        int | None, typer.Option("--rounds", "-r", help="Federated rounds; 30 by default.")
    ] = None,
    clusters: Annotated[
        int | None, typer.Option(help="Edge clusters; 4 by default, or one per client if fewer.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Part of the run folder's name.")] = None,
    preset: Annotated[str | None, preset_option(DEFAULT)] = None,
    overrides: Annotated[list[str] | None, set_option("Any setting; may be repeated.")] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Run folder to continue from its last checkpoint.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the summary as JSON instead of a table.")
    ] = False,
) -> None:
    """Run a federated job and show its result.

    Examples, each a command of its own:

    - `fedhlm run`: the main job, offline

    - `fedhlm run --clients 2 --rounds 3`: a small one

    - `fedhlm run --preset paper`: the letter of the paper; `fedhlm presets` lists them all

    - `fedhlm run --set decoding=sampled --set verification=scalar`

    - `fedhlm run --set dataset=news.csv --set slm=./small --set llm=./large`: your own

    - `FEDHLM_SEED=7 fedhlm run --json`: settings from the environment too, result as JSON

    `fedhlm settings --all` lists every key of `--set`.

    A run that is resumed keeps its settings. May change: `rounds`, `workers`, `token-log`,
    `token-texts`, `trackers`, `checkpoint`, `device`, `llm-backend`, `llm-device`, `llm-address`,
    `llm-ca-file`, `llm-token-file`, `llm-timeout`, `llm-sessions`, `llm-context`,
    `llm-batch-wait-ms`, `reproducible`, `round-timeout`, `min-clients`, `max-unresolved`,
    `evaluate-every`, `evaluate-prompts`, `fraction-evaluate`. Anything else is refused before the
    folder is touched; a run with no round left just shows its result.

    Exit status: 0 when the run completed, 1 when it failed (its LLM never answering, or more
    tokens left unresolved than `max-unresolved`, among the causes), 2 when a setting is wrong
    (nothing is started then; the trace is in ~/.cache/fedhlm/last-error.log), 130 when it was
    interrupted.
    """
    from fedhlm_app.cli.run import run_job

    given: dict[str, object] = {
        "clients": clients,
        "rounds": rounds,
        "clusters": clusters,
        "name": name,
        "preset": preset,
        "resume": None if resume is None else str(resume),
    }
    raise typer.Exit(run_job(given, overrides or [], as_json=as_json))


@app.command(name="list")
def list_runs(
    folder: Annotated[Path, typer.Argument(help="Folder of run folders.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print a list in JSON.")] = False,
) -> None:
    """List the runs of a folder, the newest first: state, size, shares kept, and kept and wrong."""
    from fedhlm_app.cli.listing import show_runs

    raise typer.Exit(show_runs(folder, as_json=as_json))


@app.command()
def settings(
    word: Annotated[
        str, typer.Argument(help="Show only settings with this in name or meaning.")
    ] = "",
    everything: Annotated[bool, typer.Option("--all", "-a", help="Also the rare ones.")] = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the table of all in Markdown.")
    ] = False,
    toml: Annotated[
        bool, typer.Option("--toml", help="Print pyproject.toml's run-config block.")
    ] = False,
) -> None:
    """Show presets and usual settings with default, unit, range and meaning; --all: every setting.

    A setting is given as `--set key=value`, as `--run-config "key=value"` to `flwr run`, or as
    FEDHLM_KEY in the environment, the first two before the third, and all three before what a
    preset says (`fedhlm presets`).
    """
    from fedhlm_app.cli.show import show_settings

    raise typer.Exit(show_settings(word, everything=everything, markdown=markdown, toml=toml))


@app.command()
def presets() -> None:
    """List the presets: named settings to start from, for `--preset` or `preset=` in run-config."""
    from fedhlm_app.cli.show import show_presets

    show_presets()


@app.command()
def report(
    run_folders: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[RUN]...", help="Run folders; the newest one in ./runs by default."
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Where the page of several runs is written.")
    ] = Path("side-by-side.html"),
) -> None:
    """Write a run's report.html and show its result table; several runs: one page side by side."""
    from fedhlm_app.cli.show import show_report, show_side_by_side

    if run_folders is not None and len(run_folders) > 1:
        raise typer.Exit(show_side_by_side(run_folders, output))
    raise typer.Exit(show_report(run_folders[0] if run_folders else None))


@app.command()
def tokens(
    run: Annotated[
        Path | None,
        typer.Argument(metavar="[RUN]", help="Run folder; the newest in ./runs by default."),
    ] = None,
    round_: Annotated[
        int | None, typer.Option("--round", "-r", help="Of this round alone.")
    ] = None,
    client: Annotated[
        int | None, typer.Option("--client", "-c", help="Of this client alone.")
    ] = None,
    stage: Annotated[
        str | None, typer.Option("--stage", "-s", help="Decided there alone: local, cache, ...")
    ] = None,
    limit: Annotated[int, typer.Option(min=0, help="Most rows of the table; 0: all.")] = 40,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print every row as a line of JSON.")
    ] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print every row as CSV.")] = False,
) -> None:
    """Show a run's token log: who decided each token, its uncertainty, its rejection probability.

    A run with `--set token-log=true` has one; with `--set token-texts=true` it has texts in it.
    """
    from fedhlm_app.cli.tokens import show_tokens

    given = {"round": round_, "client": client, "stage": stage}
    equal = {name: value for name, value in given.items() if value is not None}
    form = "json" if as_json else "csv" if as_csv else "table"
    raise typer.Exit(show_tokens(run, equal, limit, form))


@app.command()
def env() -> None:
    """Print versions and machine, ready to paste into a bug report."""
    from fedhlm_app.cli.show import show_environment

    show_environment()


@app.command()
def doctor(
    overrides: Annotated[
        list[str] | None, set_option("Settings of what is to work, as llm-address.")
    ] = None,
    keys: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Look at certificates and keys in here.")
    ] = None,
    superlink: Annotated[
        str, typer.Option(metavar="URL", help="Ask this SuperLink, as https://10.0.0.6:8100.")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print a list in JSON.")] = False,
) -> None:
    """Look for what is wrong here, and say what to do: models, servers, certificates, disk, ports.

    - `fedhlm doctor`

    - `fedhlm doctor -s llm-address=https://10.0.0.5:8471 -s llm-ca-file=ca.pem`

    - `fedhlm doctor --keys keys --superlink https://10.0.0.6:8100`

    Exit status: 0, 1 when something is wrong, 2 when a setting is.
    """
    from fedhlm_app.cli.doctor import show_checkup

    raise typer.Exit(show_checkup(overrides or [], keys, superlink, as_json=as_json))


def main() -> None:
    """Run the command line."""
    # Figures and tables hold characters that a C locale could not print.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    if "_FEDHLM_COMPLETE" not in os.environ:  # a shell that completes a word shows nothing else
        for line in foreign_packages():
            typer.secho(f"fedhlm: {line}", fg="yellow", err=True)
    try:
        app()
    except ModuleNotFoundError as error:  # on a device that has what `serve device` needs alone
        from fedhlm_app.cli.error_log import keep_trace

        keep_trace(error)
        words = f"this command needs {error.name}, which is not installed; `pip install fedhlm`"
        typer.secho(f"fedhlm: {words} brings it", fg="red", err=True)
        sys.exit(1)
