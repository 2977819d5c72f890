"""`fedhlm compare`: every method on the same prompts with the same seed."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from fedhlm_app.cli.blocks import print_blocks
from fedhlm_app.cli.completing import file_option, set_option
from fedhlm_app.cli.error_log import keep_trace, say
from fedhlm_app.cli.interrupting import INTERRUPTED
from fedhlm_app.cli.lazy import command_app
from fedhlm_app.cli.progress import steps
from fedhlm_app.cli.run import BAD_SETTINGS, COMPLETED, collect, parse_overrides
from fedhlm_app.settings import Settings
from hlm.channels import Link

compare_app = command_app(name="compare")

STANDARD_OUTPUT = "-"


@compare_app.command()
def compare(
    methods: Annotated[
        str | None,
        typer.Option("--methods", "-m", help="Names with commas between them; all by default."),
    ] = None,
    prompts: Annotated[int, typer.Option(help="Prompts.")] = 32,
    tokens: Annotated[int, typer.Option(help="Most tokens for each prompt.")] = 24,
    share: Annotated[
        float, typer.Option(help="Share of tokens escalated where a method leaves it free, 0 to 1.")
    ] = 0.25,
    equal_share: Annotated[
        bool,
        typer.Option(
            "--equal-share", help="Hold U-HLM and CU-HLM to the share too, not to their own line."
        ),
    ] = False,
    prone: Annotated[
        bool, typer.Option("--risk-prone", help="Their risk-prone threshold, not the risk-averse.")
    ] = False,
    draft_tokens: Annotated[
        int, typer.Option(help="Drafts in one message of speculative decoding.")
    ] = 4,
    calibration_prompts: Annotated[
        int, typer.Option(help="Further prompts, for thresholds and lines only.")
    ] = 32,
    links: Annotated[
        list[str] | None,
        typer.Option(
            "--link",
            metavar="MBIT,MS",
            help="Rate and round trip to tell speeds of; may be repeated. By default 1,60, 10,30 "
            "and 100,5.",
        ),
    ] = None,
    llm_ms: Annotated[
        float,
        typer.Option(
            min=0.0,
            metavar="MS",
            help="Least time of a pass of the LLM: stands in for a larger one.",
        ),
    ] = 0.0,
    dataset: Annotated[
        str | None, typer.Option(help="Texts: builtin, a hub name, or a file or folder of them.")
    ] = None,
    workload: Annotated[
        str | None, typer.Option(help="generate, score or classify; generate by default.")
    ] = None,
    no_accuracy: Annotated[
        bool, typer.Option("--no-accuracy", help="Count no right next tokens and right labels.")
    ] = False,
    json_file: Annotated[str | None, file_option("Write JSON; - prints it.", "--json")] = None,
    csv_file: Annotated[str | None, file_option("Write CSV; - prints it.", "--csv")] = None,
    overrides: Annotated[list[str] | None, set_option("Any setting; may be repeated.")] = None,
) -> None:
    """Compare every method of deciding which tokens the large model sees, and how.

    Decoding is sampled unless `--set decoding=greedy`: greedy drafts need no distribution, so most
    methods would be alike. Prompts are decoded one at a time; every request pays its own round
    trip, and frames of a stream the LLM's pace. `fedhlm` takes texts back as the settings
    llm-pace, slm-pace and llm-round-trip say; --llm-ms sets the first, and the first --link the
    last.

    Examples
    --------
    - `fedhlm compare`

    - `fedhlm compare --methods hlm,cu-hlm,fedhlm --equal-share --share 0.1`

    - `fedhlm compare --methods llm,fedhlm-token,fedhlm --llm-ms 40 --link 1,60 --link 50,10`

    - `fedhlm compare --dataset news.csv --prompts 100 --json result.json`
    """
    given = {"dataset": dataset, "workload": workload}
    options: dict[str, Any] = {
        "prompts": prompts,
        "tokens": tokens,
        "share": share,
        "equal_share": equal_share,
        "risk_prone": prone,
        "draft_tokens": draft_tokens,
        "calibration_prompts": calibration_prompts,
        "accuracy": not no_accuracy,
        "llm_ms": llm_ms,
    }
    if links:
        options["links"] = links
    code = run_comparison(methods, options, given, overrides or [], json_file, csv_file)
    raise typer.Exit(code)


def run_comparison(
    methods: str | None,
    options: dict[str, Any],
    given: dict[str, str | None],
    pairs: list[str],
    json_file: str | None,
    csv_file: str | None,
) -> int:
    """Run the comparison and return the exit status.

    Parameters
    ----------
    methods : str or None
        Names with commas between them.
    options : dict
        Fields of `fedhlm_app.compare.Plan`.
    given : dict
        Settings that have an option of their own; None where it was not given.
    pairs : list of str
        Words of `--set`.
    json_file, csv_file : str or None
        Where to write; ``-`` is standard output, which then holds nothing else.
    """
    errors = Console(stderr=True, highlight=False)
    try:
        links = [_link(words) for words in options.pop("links", [])]
        if links:
            options["links"] = links
            given = {**given, "llm-round-trip": f"{1000 * links[0].round_trip_s:g}"}
        if options.get("llm_ms"):
            given = {**given, "llm-pace": f"{options['llm_ms']:g}"}
        settings = settings_of(given, pairs, int(options["tokens"]))
        results, words = _compare(errors, settings, methods, options)
    except (ValueError, OSError) as error:
        say(errors, str(error))
        keep_trace(error)
        return BAD_SETTINGS
    except KeyboardInterrupt:
        return INTERRUPTED
    from fedhlm_app.compare.tables import as_csv, as_json, result_rows

    for file, text in ((json_file, as_json(results)), (csv_file, as_csv(results))):
        if file == STANDARD_OUTPUT:
            print(text, end="")
        elif file is not None:
            Path(file).write_text(text, encoding="utf-8")
    if STANDARD_OUTPUT not in (json_file, csv_file):
        print_blocks(Console(), *result_rows(results), caption=words)
    return COMPLETED


def _link(words: str) -> Link:
    """A link of `--link`; raises ValueError naming it where it is none."""
    rate, comma, round_trip = words.partition(",")
    try:
        if not comma:
            raise ValueError("must be MBIT,MS")
        mbit, ms = float(rate), float(round_trip)
        return Link(f"{mbit:g} Mbit/s {ms:g} ms", 1e6 * mbit, ms / 1000)
    except ValueError as error:
        raise ValueError(f"--link {words!r}: {error}; for example --link 10,30") from None


def settings_of(given: dict[str, str | None], pairs: list[str], tokens: int) -> Settings:
    """The settings of a comparison, sampled unless told otherwise.

    Raises
    ------
    fedhlm_app.settings.SettingsError
        Naming what is wrong.
    """
    said = parse_overrides(pairs)
    quiet: dict[str, object] = dict(given)
    if "decoding" not in said and "FEDHLM_DECODING" not in os.environ:
        quiet["decoding"] = "sampled"
    for key in ("tokens-per-prompt", "tokens-per-round"):
        # The option counts; the settings check that such texts fit into the model's context.
        quiet[key] = tokens if key not in said else None
    return collect(quiet, pairs)


def _compare(
    errors: Console, settings: Settings, methods: str | None, options: dict[str, Any]
) -> tuple[list[dict[str, Any]], str]:
    # PyTorch and Transformers take seconds to load, which a wrong setting should not wait for.
    from fedhlm_app.compare import DEFAULT_METHODS, Comparison, Plan, chosen_methods

    names = DEFAULT_METHODS if methods is None else [name.strip() for name in methods.split(",")]
    plan = Plan(chosen_methods(names), workload=settings.workload, **options)
    comparison = Comparison.of(settings, plan)
    begin = time.monotonic()
    with steps(errors) as listen:
        results = comparison.run(listen)
    words = (
        f"{plan.prompts} prompts of {settings.dataset}, up to {plan.tokens} tokens each, one at a "
        f"time; {settings.decoding} decoding, seed {settings.seed}; "
        f"{time.monotonic() - begin:.0f} s"
    )
    return results, words
