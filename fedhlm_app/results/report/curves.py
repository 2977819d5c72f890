"""What the charts of a run are drawn from: figures of its rounds, as they stand in a run folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from markupsafe import Markup

from fedhlm_app.results.report.charts import line_chart, share_bars, stacked_bars
from fedhlm_app.results.stages import STAGE_WORDS
from fedhlm_app.results.summary import STAGES

MOST_ROUNDS = 400
"""Rounds that a chart shows; of more, evenly many are left out."""

MOST_CLUSTERS = 40
"""Clusters that the page draws, the first ones."""

Lines = Sequence[Mapping[str, Any]]
Points = list[tuple[float, float]]


def thinned(metrics: Lines) -> Lines:
    """Every n-th line, so that at most `MOST_ROUNDS` are left, the last one among them."""
    step = -(-len(metrics) // MOST_ROUNDS)
    return metrics[::-1][::step][::-1] if step > 1 else metrics


def charts_of(metrics: Lines) -> list[tuple[str, str, Markup]]:
    """Title, note and drawing of each chart; a figure that a line lacks is left out of it."""
    stages = {STAGE_WORDS[stage]: _amounts(metrics, "resolution", stage) for stage in STAGES}
    traffic = {
        words: _amounts(metrics, "bytes", key)
        for key, words in (("uplink", "up"), ("downlink", "down"), ("edge", "edge"))
    }
    quality = {
        "agreement with the LLM": points(metrics, "llm_agreement"),
        "held-out token accuracy": points(metrics, "evaluation", "accuracy", "token"),
        "held-out label accuracy": points(metrics, "evaluation", "accuracy", "label"),
    }
    return [
        _threshold(metrics),
        _risk(metrics),
        (
            "Who decided, by round",
            "share of each round's tokens",
            stacked_bars(stages, title="Who decided, by round", shares=True),
        ),
        (
            "Bytes",
            "lengths of the encoded messages of each round",
            stacked_bars(traffic, title="Bytes"),
        ),
        (
            "Agreement and accuracy",
            "the same token as the LLM in that context; right answers where the data has them",
            line_chart(quality, title="Agreement and accuracy", percent=True),
        ),
    ]


def decided(resolutions: Mapping[str, Mapping[str, int]], title: str) -> Markup:
    """A bar of shares for each label, from tokens by stage."""
    return share_bars(
        {
            label: {words: found.get(stage, 0) for stage, words in STAGE_WORDS.items()}
            for label, found in resolutions.items()
        },
        title=title,
    )


def by_cluster(metrics: Lines) -> dict[str, Counter[str]]:
    """Tokens by stage of each cluster over all rounds; a client counts where it was last."""
    clusters: dict[str, int] = {}
    counts: dict[str, Counter[str]] = {}
    for line in metrics:
        for client, found in line.get("by_client", {}).items():
            clusters[client] = found["cluster"]
            counts.setdefault(client, Counter()).update(found["resolution"])
    sums: dict[int, Counter[str]] = {}
    for client, count in counts.items():
        sums.setdefault(clusters[client], Counter()).update(count)
    return {f"cluster {cluster}": sums[cluster] for cluster in sorted(sums)[:MOST_CLUSTERS]}


def points(metrics: Lines, *keys: str) -> Points:
    """Rounds and their values of a figure, where they have it."""
    found = ((float(line["round"]), _find(line, keys)) for line in metrics)
    return [(number, value) for number, value in found if value is not None]


def thresholds(metrics: Lines, *keys: str) -> Points:
    """Points of a threshold, without those below 0 that keep nothing."""
    return [(number, value) for number, value in points(metrics, "threshold", *keys) if value >= 0]


def risks(metrics: Lines) -> Points:
    """Share of tokens kept and wrong, where the LLM told of any."""
    return points([line for line in metrics if line.get("measured_tokens", 1)], "certificate")


def _threshold(metrics: Lines) -> tuple[str, str, Markup]:
    clusters = sorted(
        {key for line in metrics for key in (line.get("threshold") or {}).get("clusters", {})},
        key=lambda key: (len(key), key),
    )
    shared = thresholds(metrics, "global")
    series = {"global": shared} | {
        f"cluster {key}": own
        for key in clusters
        if (own := thresholds(metrics, "clusters", key)) != shared
    }
    open_rounds = [line for line in metrics if _uncertified(line)]
    series["on trial"] = [
        (number, value) for number, value in points(open_rounds, "guarantee", "trial") if value >= 0
    ]
    note = "a draft of at most this uncertainty is kept; where there is no line, nothing is"
    return (
        "Threshold",
        note,
        line_chart(
            series,
            title="Threshold",
            bands=_stretches(metrics),
            band_words="not certified",
        ),
    )


def _risk(metrics: Lines) -> tuple[str, str, Markup]:
    found = [line["guarantee"] for line in metrics if line.get("guarantee")]
    budget = (found[-1]["budget"], "budget") if found else None
    series = {
        "kept and wrong": risks(metrics),
        "held-out texts": points(metrics, "evaluation", "certificate"),
    }
    note = "share of all tokens that were kept and are not what the LLM would have written"
    return (
        "Risk",
        note if budget else f"{note}; this rule holds it to no budget",
        line_chart(series, title="Risk", percent=True, level=budget),
    )


def _uncertified(line: Mapping[str, Any]) -> bool:
    found = line.get("guarantee") or {"certified": 0, "groups": 0}
    return bool(found["certified"] < found["groups"])


def _stretches(metrics: Lines) -> list[tuple[float, float]]:
    """Rounds that follow each other with something uncertified: (from, to), half a round wider."""
    found = []
    for open_, group in groupby(metrics, _uncertified):
        rounds = [line["round"] for line in group]
        if open_:
            found.append((rounds[0] - 0.5, rounds[-1] + 0.5))
    return found


def _find(line: Mapping[str, Any], keys: Sequence[str]) -> float | None:
    value: Any = line
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return float(value) if isinstance(value, int | float) else None


def _amounts(metrics: Lines, *keys: str) -> dict[int, float]:
    found = ((int(line["round"]), _find(line, keys)) for line in metrics)
    return {number: value for number, value in found if value is not None}
