"""`fedhlm estimate`: does hybrid decoding pay for this pair, link and these prices?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from fedhlm_app.cli.completing import set_option
from fedhlm_app.cli.error_log import ends_with
from fedhlm_app.cli.interrupting import INTERRUPTED
from fedhlm_app.cli.lazy import command_app
from fedhlm_app.cli.progress import steps
from fedhlm_app.cli.run import BAD_SETTINGS, collect
from fedhlm_app.results.runs import write_atomically
from fedhlm_app.settings import Settings

if TYPE_CHECKING:
    from fedhlm_app.estimate.sums import Estimate

estimate_app = command_app(name="estimate")

WIDTH = 80

_Price = Annotated[float, typer.Option(help="Of a million tokens, in any unit.")]


@estimate_app.command()
def estimate(
    prompts: Annotated[int, typer.Option(min=2, help="Texts to record.")] = 200,
    tokens: Annotated[int, typer.Option(min=1, help="Most tokens of each.")] = 60,
    dataset: Annotated[
        str | None, typer.Option(help="Texts: builtin, a hub name, or a file or folder of them.")
    ] = None,
    round_trip: Annotated[float, typer.Option(help="Of the link, in ms.")] = 30.0,
    rate: Annotated[float, typer.Option(help="Of the link, in Mbit/s.")] = 10.0,
    slm_ms: Annotated[
        float | None, typer.Option(help="Time of a draft; measured here by default.")
    ] = None,
    llm_ms: Annotated[
        float | None, typer.Option(help="Time of a token of the LLM; measured here by default.")
    ] = None,
    input_price: _Price = 0.0,
    cached_price: Annotated[
        float | None, typer.Option(help="Of a million read again; as --input-price by default.")
    ] = None,
    output_price: _Price = 0.0,
    request_price: Annotated[float, typer.Option(help="Of a request.")] = 0.0,
    hour_price: Annotated[
        float | None,
        typer.Option(
            help="What an hour of waiting is worth, to weigh it against the prices; without it "
            "time alone decides when a text is taken back."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Write estimate.json and estimate.html there."),
    ] = None,
    overrides: Annotated[list[str] | None, set_option("Any setting, such as slm or llm.")] = None,
) -> None:
    """Does it pay for me? What the LLM alone, the SLM alone and both together would take.

    The LLM continues prompts, the small model reads along, and both are timed unless told. From
    that follows, for 1, 2, 5 and 10 % of tokens that may be kept and wrong, what each way of
    decoding would take over the link: one token at a time, and spans of the LLM that the device
    takes back. Thresholds and rules are made on one half of the texts and judged on the other.

    Examples
    --------
    - `fedhlm estimate --round-trip 60 --rate 1`

    - `fedhlm estimate --set slm=./small --set llm=./large --dataset news.csv --llm-ms 25`

    - `fedhlm estimate --input-price .5 --cached-price .05 --output-price 1.5 --out estimate`

    Exit status: 2 when a setting, model or dataset cannot be used, 130 when interrupted.
    """
    given: dict[str, object] = {"dataset": dataset}
    given |= {"tokens-per-prompt": tokens, "tokens-per-round": tokens}
    paces = {"llm_ms": llm_ms, "slm_ms": slm_ms}
    errors = Console(stderr=True, highlight=False)
    with ends_with(BAD_SETTINGS, ValueError, OSError, trace=True):
        settings = collect(given, overrides or [])
        # PyTorch and Transformers take seconds to load, which a wrong setting need not await.
        from fedhlm_app.estimate.terms import Terms

        terms = Terms(
            **{name: 1.0 if pace is None else pace for name, pace in paces.items()},
            round_trip_ms=round_trip,
            rate=rate,
            input_price=input_price,
            cached_price=input_price if cached_price is None else cached_price,
            output_price=output_price,
            request_price=request_price,
            hour_price=hour_price,
        )
        from fedhlm_app.estimate.measuring import measure

        timed = [name for name, pace in paces.items() if pace is None]
        try:
            if out is not None:
                out.mkdir(parents=True, exist_ok=True)
            with steps(errors) as listen:
                made = measure(settings, prompts, terms, timed, listen)
            _show(made, settings, out)
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None


def _show(made: Estimate, settings: Settings, out: Path | None) -> None:
    from fedhlm_app.estimate.page import HEADINGS, MEANING, cells, render
    from fedhlm_app.estimate.sums import verdict

    ways = made.ways()
    words, terms = verdict(ways), made.terms
    texts = len(made.fitted.lengths) + len(made.judged.lengths)
    what = (
        f"{settings.slm} and {settings.llm} on {texts} texts of {settings.dataset}, up to "
        f"{settings.tokens_per_prompt} tokens each, {settings.decoding} decoding; a draft takes "
        f"{terms.slm_ms:.3g} ms, a token of the LLM {terms.llm_ms:.3g} ms; "
        f"{terms.round_trip_ms:g} ms round trip, {terms.rate:g} Mbit/s"
    )
    table = Table(box=box.SIMPLE, pad_edge=False, padding=0, title=what, title_justify="left")
    table.caption, table.caption_justify = MEANING, "left"
    for heading in HEADINGS:
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for row in cells(ways):
        table.add_row(*row)
    console = Console(width=WIDTH)
    console.print(table)
    console.print(words, highlight=False)
    if out is not None:
        result = {
            "what": what,
            "verdict": words,
            "terms": vars(terms),
            "message_bytes": made.sizes,
            "ways": ways,
            "settings": settings.to_run_config(),
        }
        text = json.dumps(result, indent=2, allow_nan=False) + "\n"
        write_atomically(out / "estimate.json", text)
        write_atomically(out / "estimate.html", render(made, ways, what, words))
        console.print(f"{out / 'estimate.html'}", markup=False, highlight=False, soft_wrap=True)
