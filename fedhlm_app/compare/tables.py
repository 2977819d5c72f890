"""The result as a table, as CSV and as JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

Result = Mapping[str, Any]


def as_json(results: Sequence[Result]) -> str:
    """Return the results as a JSON list."""
    return json.dumps(list(results), indent=2, allow_nan=False) + "\n"


def as_csv(results: Sequence[Result]) -> str:
    """Return one line a method; nested figures become ``accuracy.token`` and the like."""
    flat = [_flat(result) for result in results]
    file = io.StringIO()
    writer = csv.DictWriter(file, list(flat[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return file.getvalue()


def _flat(result: Result) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in result.items():
        if isinstance(value, Mapping):
            found.update({f"{key}.{inner}": figure for inner, figure in value.items()})
        else:
            found[key] = value
    return found


def result_table(results: Sequence[Result], caption: str) -> Table:
    """Return the table that ends the command.

    Parameters
    ----------
    results : sequence of mapping
        As `Comparison.run` returns them.
    caption : str
        Stands below it.
    """
    table = Table(box=box.SIMPLE, pad_edge=False, caption=caption, caption_justify="left")
    table.add_column("method", style="bold", no_wrap=True)
    table.add_column("exact")
    links = list(results[0]["tokens_per_second"])
    for heading in (
        "to the\nLLM",
        "agrees\nwith it",
        "kept and\nwrong",
        "right\ntoken",
        "right\nlabel",
        "bytes up\na token",
        "bytes\ndown",
        "trips\na text",
        "LLM\nwrites",
        *(f"tokens/s\n{_broken(link)}" for link in links),
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for result in results:
        accuracy, size = result["accuracy"], result["bytes_per_token"]
        table.add_row(
            result["method"],
            "yes" if result["exact"] else "no",
            _share(result["sent_to_llm"] / result["tokens"]),
            _share(result["llm_agreement"]),
            _share(result["certificate"]),
            _share(accuracy["token"]),
            _share(accuracy["label"]),
            f"{size['uplink']:,.1f}",
            f"{size['downlink']:,.1f}",
            f"{result['round_trips'] / result['texts']:.1f}",
            _share(result["llm_decoded"][links[0]] / result["tokens"]),
            *(f"{result['tokens_per_second'][link]:.1f}" for link in links),
        )
    return table


def _broken(link: str) -> str:
    """A link's name on two lines: rate, then round trip."""
    words = link.split()
    return " ".join(words[:2]) + "\n" + " ".join(words[2:]) if len(words) == 4 else link


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
