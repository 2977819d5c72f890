"""The report's page, put together from the files of a run folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from fedhlm_app.report.charts import line_chart, share_bar, stacked_bars
from fedhlm_app.report.style import CSS
from fedhlm_app.runs import REPORT, RunFolder, write_atomically
from fedhlm_app.settings import rows
from fedhlm_app.summary import STAGES

_STAGE_WORDS = {
    "local": "kept on the device",
    "cache": "token cache",
    "peer": "peers",
    "edge": "neighbouring clusters",
    "llm_accepted": "LLM accepted",
    "llm_resampled": "LLM replaced",
    "unresolved": "LLM not reached",
}

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
    body = [
        f"<h1>{escape(name)}</h1>",
        f'<p class="dim">{escape(what)}; started {escape(str(config["started"]))}</p>',
        _unfinished() if summary is None else _error(summary) + _cards(summary) + _decided(summary),
        '<div class="grid2">',
        *(_section(title, note, chart) for title, note, chart in _charts(metrics)),
        "</div>",
        _clusters(summary),
        _settings_table(settings),
        _facts(config),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(name)}</title><style>{CSS}</style></head>\n"
        f"<body>{''.join(body)}</body></html>\n"
    )


def _error(summary: Mapping[str, Any]) -> str:
    error = summary.get("error")
    return f'<section class="failed">The run failed: {escape(error)}</section>' if error else ""


def _cards(summary: Mapping[str, Any]) -> str:
    accuracy, traffic = summary["accuracy"], summary["bytes"]
    spent = summary.get("privacy") or {}
    tokens = summary["tokens"]
    cards = [
        (f"{tokens:,}", "tokens routed"),
        (f"{summary['trr']:.2%}", "decided without the LLM"),
        (f"{lost:.2%}" if (lost := summary.get("unresolved", 0)) else "", "unresolved: no LLM"),
        *_fidelity(summary),
        (f"{summary['threshold']['global']:.4f}", "global threshold"),
        (_share(accuracy["token"]), "token accuracy, held-out"),
        (_share(accuracy["label"]), "label accuracy, held-out"),
        (f"{traffic['uplink'] / tokens:.2f} B", "up per token"),
        (f"{traffic['downlink'] / tokens:.2f} B", "down per token"),
        (f"{summary['seconds']['total']:.1f} s", "wall clock"),
        (_number(spent.get("epsilon")), _privacy_words(spent)),
    ]
    return (
        '<div class="cards">'
        + "".join(
            f'<div class="card"><b>{escape(figure)}</b><span>{escape(words)}</span></div>'
            for figure, words in cards
            if figure
        )
        + "</div>"
    )


def _fidelity(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    if summary.get("measured_tokens") == 0:
        return [("unknown", "agreement, certificate: the LLM told of no token")]
    return [
        (f"{summary['llm_agreement']:.2%}", "agree with the LLM"),
        (f"{summary['certificate']:.4f}", "certificate: kept and wrong"),
    ]


def _decided(summary: Mapping[str, Any]) -> str:
    amounts = {_STAGE_WORDS[stage]: summary["resolution"][stage] for stage in STAGES}
    return _section("Who decided the tokens", "all rounds together", share_bar(amounts))


def _charts(metrics: Lines) -> list[tuple[str, str, str]]:
    clusters = sorted(
        {key for line in metrics for key in (line.get("threshold") or {}).get("clusters", {})},
        key=lambda key: (len(key), key),
    )
    thresholds = {"global": _points(metrics, "threshold", "global")} | {
        f"cluster {key}": _points(metrics, "threshold", "clusters", key) for key in clusters
    }
    stages = {_STAGE_WORDS[stage]: _amounts(metrics, "resolution", stage) for stage in STAGES}
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
        ("Threshold", "a draft of at most this uncertainty is kept", line_chart(thresholds)),
        ("Who decided", "share of each round's tokens", stacked_bars(stages, shares=True)),
        ("Bytes", "lengths of the encoded messages", stacked_bars(traffic, unit="B")),
        ("Fidelity", "agreement, certificate, accuracy", line_chart(quality, percent=True)),
    ]


def _clusters(summary: Mapping[str, Any] | None) -> str:
    """Who is with whom, and how good that is; nothing for a run without these figures."""
    found = (summary or {}).get("clustering")
    if not found:
        return ""
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
    lines = {name: value for name, value in figures.items() if value} | {
        f"cluster {cluster}": _shortened(members[cluster]) for cluster in sorted(members)
    }
    cells = "".join(
        f'<tr><td>{escape(name)}</td><td class="value">{escape(value)}</td></tr>'
        for name, value in lines.items()
    )
    return _section("Clusters", "clients by their number", f"<table>{cells}</table>")


def _shortened(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_MOST_NAMES])
    more = len(names) - _MOST_NAMES
    return f"{shown} and {more} more" if more > 0 else shown


def _settings_table(settings: Mapping[str, Any]) -> str:
    known = {row.name: row for row in rows()}
    lines = []
    for name, value in settings.items():
        row = known.get(name)
        shown = str(value).lower() if isinstance(value, bool) else str(value)
        changed = row is None or shown != row.default
        meaning = f"{row.description}{f' ({row.unit})' if row.unit else ''}" if row else ""
        lines.append(
            f"<tr{' class=changed' if changed else ''}><td>{escape(name)}</td>"
            f'<td class="value">{escape(shown)}</td><td class="dim">{escape(meaning)}</td></tr>'
        )
    return (
        "<section><details open><summary>Settings (bold: not the default)</summary>"
        f"<table>{''.join(lines)}</table></details></section>"
    )


def _facts(config: Mapping[str, Any]) -> str:
    facts = {**config.get("machine", {}), **config.get("versions", {})}
    cells = "".join(
        f'<tr><td>{escape(str(name))}</td><td class="value">{escape(str(value))}</td></tr>'
        for name, value in facts.items()
    )
    return (
        "<section><details><summary>Machine and versions</summary>"
        f"<table>{cells}</table></details></section>"
    )


def _section(title: str, note: str, content: str) -> str:
    return f'<section><h2>{title}</h2><p class="dim">{note}</p>{content}</section>'


def _unfinished() -> str:
    return (
        '<section class="failed">This run has no summary: it is under way or has failed.</section>'
    )


def _find(line: Mapping[str, Any], keys: Sequence[str]) -> float | None:
    value: Any = line
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return float(value) if isinstance(value, int | float) else None


def _points(metrics: Lines, *keys: str) -> list[tuple[float, float]]:
    found = ((float(line["round"]), _find(line, keys)) for line in metrics)
    return [(number, value) for number, value in found if value is not None]


def _amounts(metrics: Lines, *keys: str) -> dict[int, float]:
    found = ((int(line["round"]), _find(line, keys)) for line in metrics)
    return {number: value for number, value in found if value is not None}


def _privacy_words(spent: Mapping[str, Any]) -> str:
    if not spent:
        return ""
    return (
        f"epsilon at delta {spent['delta']:g}, per {spent['unit']}: {spent['mechanism']} noise on "
        f"the {spent['where']}, {spent['releases']} releases"
    )


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.2%}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
