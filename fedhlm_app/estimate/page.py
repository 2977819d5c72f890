"""An estimate as a table of words, and as one HTML page that needs no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedhlm_app.estimate.sums import LEAST_MS, MOST_MS, Estimate
from fedhlm_app.results.report.charts import line_chart
from fedhlm_app.results.report.templates import fill

HEADINGS = ("", "kept", "wrong", "at most", "tokens/s", "cost/M", "trips", "RTT <", "LLM >")
MEANING = (
    "kept: tokens that the SLM decides; wrong: kept and not what the LLM would write, at most with "
    "95 % confidence; cost/M: of a million tokens; trips: round trips a text; it pays where a "
    "round trip is below RTT ms, or a token of the LLM takes more than LLM ms"
)
"""What the headings say, for whoever reads the table."""

_TERMS = {
    "llm_ms": "a token of the LLM, ms",
    "slm_ms": "a draft of the SLM, ms",
    "round_trip_ms": "round trip, ms",
    "rate": "rate of the link, Mbit/s",
    "input_price": "price of a million tokens read",
    "cached_price": "price of a million tokens read again",
    "output_price": "price of a million tokens written",
    "request_price": "price of a request",
    "hour_price": "worth of an hour of waiting",
}

_CURVE_POINTS = 25


def cells(ways: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """The rows of the table, a heading for each risk among them."""
    found: list[tuple[str, ...]] = []
    risk, priced = None, any(way["cost_per_million"] for way in ways)
    for way in ways:
        if way.get("risk") != risk:
            risk = way["risk"]
            head = f"risk {risk:.0%}, u <= {way['threshold']:.4f}"
            found.append((head, *[""] * (len(HEADINGS) - 1)))
        speed = way["tokens_per_second"]
        found.append(
            (
                way["way"] if risk is None else f"  {way['way']}",
                f"{way['kept']:.1%}",
                f"{way['wrong']:.1%}",
                f"{way['at_most']:.1%}",
                "-" if speed is None else f"{speed:,.1f}",
                f"{way['cost_per_million']:.4g}" if priced else "-",
                f"{way['requests_per_text']:.1f}",
                _border(way, "round_trip_ms_below", MOST_MS),
                _border(way, "llm_ms_above", LEAST_MS),
            )
        )
    return found


def render(estimate: Estimate, ways: Sequence[Mapping[str, Any]], what: str, verdict: str) -> str:
    """The page.

    Parameters
    ----------
    estimate : Estimate
        Is asked for speeds at other round trips.
    ways : sequence of mapping
        As `Estimate.ways` returns them.
    what, verdict : str
        What was measured, and the sentence that sums it up.
    """
    furthest = max(100.0, 2 * estimate.terms.round_trip_ms)
    across = np.linspace(0.0, furthest, _CURVE_POINTS).tolist()
    lines = {"LLM alone": None} | {
        f"spans, risk {way['risk']:.0%}": way["threshold"] for way in ways if way["way"] == "spans"
    }
    chart = line_chart(
        {
            name: list(zip(across, estimate.speeds(threshold, across), strict=True))
            for name, threshold in lines.items()
        },
        title="Speed",
        axis="ms",
    )
    terms = {
        _TERMS[name]: "-" if value is None else f"{value:g}"
        for name, value in vars(estimate.terms).items()
    }
    return fill(
        "estimate",
        name="Does hybrid decoding pay?",
        what=what,
        verdict=verdict,
        headings=HEADINGS,
        meaning=MEANING,
        rows=cells(ways),
        chart=chart,
        terms=terms,
    )


def _border(way: Mapping[str, Any], key: str, everywhere: float) -> str:
    if key not in way:
        return ""
    value = way[key]
    if value is None:
        return "none"
    if value == everywhere:
        return "any"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
