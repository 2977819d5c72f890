"""`fedhlm trace` and `fedhlm replay`: read every token once, route it as often as wanted."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from fedhlm_app.cli.completing import file_option, set_option
from fedhlm_app.cli.error_log import ends_with
from fedhlm_app.cli.interrupting import INTERRUPTED
from fedhlm_app.cli.lazy import command_app
from fedhlm_app.cli.progress import steps
from fedhlm_app.cli.run import BAD_SETTINGS, collect, parse_overrides
from fedhlm_app.results.report.verdict import threshold
from fedhlm_app.results.runs import write_atomically
from fedhlm_app.settings.kept import check_kept

trace_app = command_app(name="trace")
replay_app = command_app(name="replay")


@trace_app.command()
def trace(
    out: Annotated[Path, file_option("Parquet file to write.")],
    dataset: Annotated[
        str | None, typer.Option(help="Texts: builtin, a hub name, or a file or folder of them.")
    ] = None,
    workload: Annotated[str, typer.Option(help="score or classify.")] = "score",
    overrides: Annotated[list[str] | None, set_option("Any setting, as slm and llm.")] = None,
) -> None:
    """Record once what both models say of every token of a dataset, for `fedhlm replay`.

    One row is one token: draft, the LLM's own token, the right one, uncertainties, probabilities,
    and a sketch of its context. Only for given texts and greedy drafts, which no routing changes.
    The file holds token ids, so it is as private as the texts.

    Example: `fedhlm trace --out news.parquet --dataset ./ag_news`
    """
    errors = Console(stderr=True, highlight=False)
    with ends_with(BAD_SETTINGS, ValueError, OSError, trace=True):
        settings = collect({"dataset": dataset, "workload": workload}, overrides or [])
        # PyTorch and Transformers take seconds to load, which a wrong setting need not await.
        from fedhlm_app.trace.recording import record

        try:
            with steps(errors) as listen:
                made = record(settings, lambda done, of: listen("reading texts", done, of))
            made.save(out)
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
    print(f"{out}: {len(made):,} tokens of {len(made.labels):,} texts")


@replay_app.command()
def replay(
    file: Annotated[Path, typer.Argument(help="What fedhlm trace wrote.")],
    clients: Annotated[int | None, typer.Option("--clients", "-n", help="As in run.")] = None,
    rounds: Annotated[int | None, typer.Option("--rounds", "-r", help="As in run.")] = None,
    clusters: Annotated[int | None, typer.Option(help="As in run.")] = None,
    json_file: Annotated[Path | None, file_option("Write all rounds as JSON.", "--json")] = None,
    overrides: Annotated[
        list[str] | None, set_option("Any setting of the run that is replayed.")
    ] = None,
) -> None:
    """Run rounds over a trace, without models: as the live run, but for bytes and seconds.

    Any policy but a router, any learning rule, strategy, personalisation and number of clients.
    Settings are those of the recording unless told otherwise; fewer `--clients` than it had
    clusters make fewer clusters.

    Example: `fedhlm replay news.parquet --clients 1000 --set learning=balanced`
    """
    errors = Console(stderr=True, highlight=False)
    with ends_with(BAD_SETTINGS, ValueError, OSError, trace=True):
        from fedhlm_app.trace.file import Trace
        from fedhlm_app.trace.replaying import Replay

        recorded = Trace.load(file)
        check_kept(recorded.settings, file)
        given = {"clients": clients, "rounds": rounds, "clusters": clusters}
        said = {**parse_overrides(overrides or []), **{k: v for k, v in given.items() if v}}
        settings = collect(given, overrides or [], base=_base(recorded.settings, said))
        begin = time.monotonic()
        try:
            with steps(errors) as listen:
                made = Replay(recorded, settings).run(lambda a, b: listen("rounds", a, b))
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
    if json_file is not None:
        write_atomically(json_file, json.dumps(made.rounds, indent=1) + "\n")
    Console().print(rounds_table(made.rounds))
    print(
        f"{settings.clients:,} clients, {settings.rounds} rounds, {time.monotonic() - begin:.1f} s"
    )


def _base(recorded: dict[str, Any], said: dict[str, Any]) -> dict[str, Any]:
    """Settings of the recording, without those that follow from what was said."""
    follow = {"preset", *said}
    if str(clients := said.get("clients", "")).isdigit() and int(clients) < recorded["clusters"]:
        follow.add("clusters")
    return {key: value for key, value in recorded.items() if key not in follow}


def rounds_table(lines: Sequence[Mapping[str, Any]]) -> Table:
    """Some of the rounds of a run, the first and the last among them."""
    table = Table(box=None, pad_edge=False)
    for heading in ("round", "threshold", "tokens", "stay", "agree", "kept and wrong", "right"):
        table.add_column(heading, justify="right")
    if any(line["threshold"]["global"] < 0 for line in lines):
        table.caption = "threshold none: no draft is kept, as none can be certified"
    last = len(lines)
    for line in lines:
        if last > 12 and line["round"] not in (1, last) and line["round"] % (last // 10):
            continue
        right = next((value for value in line["accuracy"].values() if value is not None), None)
        table.add_row(
            str(line["round"]),
            threshold(line["threshold"]["global"]),
            f"{line['tokens']:,}",
            f"{line['trr']:.1%}",
            f"{line['llm_agreement']:.1%}",
            f"{line['certificate']:.2%}",
            "-" if right is None else f"{right:.1%}",
        )
    return table
