"""The result as a table, as CSV and as JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

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


def result_rows(results: Sequence[Result]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of the table that ends the command, as `Comparison.run` returns results."""
    links = list(results[0]["tokens_per_second"])
    headings = [
        "method", "exact", "to the LLM", "agrees with it", "kept and wrong", "right token",
        "right label", "bytes up a token", "bytes down", "trips a text", "LLM writes",
        *("tokens/s\n" + link.replace("bit/s ", "bit/s\n") for link in links),
    ]  # fmt: skip
    rows = []
    for result in results:
        accuracy, size = result["accuracy"], result["bytes_per_token"]
        rows.append(
            [
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
            ]
        )
    return headings, rows


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
