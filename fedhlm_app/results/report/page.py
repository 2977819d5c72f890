"""The report's page, put together from the files of a run folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedhlm_app.results.report.charts import line_chart, share_bar, stacked_bars
from fedhlm_app.results.report.rows import allowed, privacy_words
from fedhlm_app.results.report.templates import fill
from fedhlm_app.results.report.verdict import threshold, verdict
from fedhlm_app.results.runs import REPORT, RunFolder, write_atomically
from fedhlm_app.results.stages import STAGE_WORDS
from fedhlm_app.results.summary import STAGES
from fedhlm_app.settings import rows
from fedhlm_app.settings.words import in_words

_MOST_NAMES = 100
"""Clients of a cluster that are listed."""

Lines = Sequence[Mapping[str, Any]]


def write_report(folder: RunFolder) -> Path:
    """Write `report.html` of a run, finished or not, and return its path.

    Parameters
    ----------
    folder : RunFolder
        A folder with at least `config.json`.
    """
    path = folder.path / REPORT
    write_atomically(
        path, render(folder.path.name, folder.config(), folder.metrics(), folder.summary())
    )
    return path


def render(
    name: str, config: Mapping[str, Any], metrics: Lines, summary: Mapping[str, Any] | None
) -> str:
    """Return the page as HTML that loads nothing from elsewhere.

    Parameters
    ----------
    name : str
        The run folder's name, the page's title.
    config : Mapping[str, Any]
        `config.json`.
    metrics : Lines
        The lines of `metrics.jsonl`; a figure that a line lacks is left out of its chart.
    summary : Mapping[str, Any] | None
        `summary.json`, None for a run that is under way or has failed.
    """
    settings = config["settings"]
    what = (
        f"{settings['clients']} clients in {settings['clusters']} clusters, "
        f"{len(metrics)} of {settings['rounds']} rounds, {settings['workload']} with "
        f"{settings['decoding']} decoding, {settings['policy']} policy, "
        f"{settings['learning']} learning"
    )
    return fill(
        "page",
        name=name,
        what=what,
        started=config["started"],
        error=(summary or {}).get("error"),
        finished=summary is not None,
        verdict="" if summary is None else verdict(summary),
        cards=[] if summary is None else _cards(summary),
        decided="" if summary is None else _decided(summary),
        charts=_charts(metrics),
        clusters=_clusters(summary),
        settings=_settings(settings),
        facts={**config.get("machine", {}), **config.get("versions", {})},
    )


def _cards(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Figures and their words; without a figure there is no card."""
    accuracy, traffic = summary["accuracy"], summary["bytes"]
    spent = summary.get("privacy") or {}
    tokens = summary["tokens"]
    return [
        (f"{tokens:,}", "tokens routed"),
        (f"{summary['trr']:.2%}", "decided without the LLM"),
        (f"{lost:.2%}" if (lost := summary.get("unresolved", 0)) else "", "unresolved: no LLM"),
        *_fidelity(summary),
        (threshold(summary["threshold"]["global"]), "global threshold"),
        (_share(accuracy["token"]), "token accuracy, held-out"),
        (_share(accuracy["label"]), "label accuracy, held-out"),
        (f"{traffic['uplink'] / tokens:.2f} B", "up per token"),
        (f"{traffic['downlink'] / tokens:.2f} B", "down per token"),
        (f"{summary['seconds']['total']:.1f} s", "wall clock"),
        (_number(spent.get("epsilon")), f"epsilon {privacy_words(spent)}" if spent else ""),
    ]


def _fidelity(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    if summary.get("measured_tokens") == 0:
        return [("unknown", "agreement, certificate: the LLM told of no token")]
    return [
        (f"{summary['llm_agreement']:.2%}", "agree with the LLM"),
        (f"{summary['certificate']:.4f}", f"certificate, {allowed(summary)}kept and wrong"),
    ]


def _decided(summary: Mapping[str, Any]) -> str:
    return share_bar({STAGE_WORDS[stage]: summary["resolution"][stage] for stage in STAGES})


def _charts(metrics: Lines) -> list[tuple[str, str, str]]:
    clusters = sorted(
        {key for line in metrics for key in (line.get("threshold") or {}).get("clusters", {})},
        key=lambda key: (len(key), key),
    )
    thresholds = {"global": _kept(metrics, "threshold", "global")} | {
        f"cluster {key}": _kept(metrics, "threshold", "clusters", key) for key in clusters
    }
    stages = {STAGE_WORDS[stage]: _amounts(metrics, "resolution", stage) for stage in STAGES}
    traffic = {
        words: _amounts(metrics, "bytes", key)
        for key, words in (("uplink", "up"), ("downlink", "down"), ("edge", "edge"))
    }
    quality = {
        "agreement with the LLM": _points(metrics, "llm_agreement"),
        "certificate": _points(metrics, "certificate"),
        "held-out token accuracy": _points(metrics, "evaluation", "accuracy", "token"),
        "held-out label accuracy": _points(metrics, "evaluation", "accuracy", "label"),
    }
    return [
        (
            "Threshold",
            "a draft of at most this uncertainty is kept; where there is none, nothing is",
            line_chart(thresholds),
        ),
        ("Who decided", "share of each round's tokens", stacked_bars(stages, shares=True)),
        ("Bytes", "lengths of the encoded messages", stacked_bars(traffic, unit="B")),
        ("Fidelity", "agreement, certificate, accuracy", line_chart(quality, percent=True)),
    ]


def _clusters(summary: Mapping[str, Any] | None) -> dict[str, str]:
    """Who is with whom, and how good that is; nothing for a run without these figures."""
    found = (summary or {}).get("clustering")
    if not found:
        return {}
    members: dict[int, list[str]] = {}
    for client, cluster in found["map"].items():
        members.setdefault(int(cluster), []).append(client)
    figures = {
        "method": found["method"],
        "purity against the data's labels": _share(found["purity"]),
        "adjusted Rand index against the true groups": _number(found["adjusted_rand_index"]),
        "bytes of profiles": f"{found['bytes']:,}" if found["bytes"] else "",
        "epsilon of the profiles' noise": _number(found["epsilon"]),
        "profiles refused": ", ".join(found.get("refused", {})),
        "clients without a profile": ", ".join(map(str, found.get("silent", []))),
    }
    return {name: value for name, value in figures.items() if value} | {
        f"cluster {cluster}": _shortened(members[cluster]) for cluster in sorted(members)
    }


def _shortened(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_MOST_NAMES])
    more = len(names) - _MOST_NAMES
    return f"{shown} and {more} more" if more > 0 else shown


def _settings(settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of the settings' table."""
    known = {row.name: row for row in rows()}
    lines = []
    for name, value in settings.items():
        row = known.get(name)
        shown = in_words(value)
        meaning = f"{row.description}{f' ({row.unit})' if row.unit else ''}" if row else ""
        changed = row is None or shown != row.default
        lines.append({"name": name, "value": shown, "meaning": meaning, "changed": changed})
    return lines


def _find(line: Mapping[str, Any], keys: Sequence[str]) -> float | None:
    value: Any = line
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return float(value) if isinstance(value, int | float) else None


def _points(metrics: Lines, *keys: str) -> list[tuple[float, float]]:
    found = ((float(line["round"]), _find(line, keys)) for line in metrics)
    return [(number, value) for number, value in found if value is not None]


def _kept(metrics: Lines, *keys: str) -> list[tuple[float, float]]:
    """Points of a threshold, without those below 0 that keep nothing."""
    return [(number, value) for number, value in _points(metrics, *keys) if value >= 0]


def _amounts(metrics: Lines, *keys: str) -> dict[int, float]:
    found = ((int(line["round"]), _find(line, keys)) for line in metrics)
    return {number: value for number, value in found if value is not None}


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.2%}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
