"""Parts of a run's page that are words and tables: cards, clients, clusters, settings, examples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from fedhlm_app.results.report.rows import allowed, is_certified, privacy_words
from fedhlm_app.results.report.scale import size
from fedhlm_app.results.report.verdict import threshold
from fedhlm_app.results.stages import STAGE_COLOURS, STAGE_WORDS
from fedhlm_app.settings import rows
from fedhlm_app.settings.words import in_words

MOST_CLIENTS = 2000
"""Clients that the table lists."""
_MOST_NAMES = 100
"""Clients of a cluster that are listed."""
_EXAMPLES = 6

Cell = tuple[float | str, str]
"""What a table sorts by, and what it shows."""


def cards(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
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
        *(
            (size(traffic[key]), f"{words}, {traffic[key] / tokens:.2f} B per token")
            for key, words in (("uplink", "up"), ("downlink", "down"))
        ),
        *_hierarchy(summary.get("hierarchy")),
        (f"{summary['seconds']['total']:.1f} s", "wall clock"),
        (_number(spent.get("epsilon")), f"epsilon {privacy_words(spent)}" if spent else ""),
    ]


def _hierarchy(found: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    if not found:
        return []
    than = f"{abs(found['saved']):.1%} {'more' if found['saved'] < 0 else 'fewer'}"
    return [
        (size(found["device_edge"]), f"updates to edge servers, {found['updates']:,} of them"),
        (size(found["edge_cloud"]), f"from there to the cloud, {than}"),
    ]


def _fidelity(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    if summary.get("measured_tokens") == 0:
        return [("unknown", "agreement, certificate: the LLM told of no token")]
    name = "certificate, " if is_certified(summary) else ""
    return [
        (f"{summary['llm_agreement']:.2%}", "agree with the LLM"),
        (f"{summary['certificate']:.4f}", f"{name}{allowed(summary)}kept and wrong"),
    ]


def clusters(summary: Mapping[str, Any] | None) -> dict[str, str]:
    """Who is with whom, and how good that is; nothing for a run that learned no clusters."""
    found = (summary or {}).get("clustering")
    if not found or found["method"] not in ("classifier", "profile"):
        return {}
    members: dict[int, list[str]] = {}
    for client, cluster in found["map"].items():
        members.setdefault(int(cluster), []).append(client)
    figures = {
        "method": found["method"],
        "purity against the data's labels": _share(found["purity"]),
        "adjusted Rand index against the true groups": _number(found["adjusted_rand_index"]),
        "bytes of profiles": size(found["bytes"]) if found["bytes"] else "",
        "epsilon of the profiles' noise": _number(found["epsilon"]),
        "profiles refused": ", ".join(found.get("refused", {})),
        "clients without a profile": ", ".join(map(str, found.get("silent", []))),
    }
    return {name: value for name, value in figures.items() if value} | {
        f"cluster {cluster}": _shortened(members[cluster]) for cluster in sorted(members)
    }


def clients(
    metrics: Sequence[Mapping[str, Any]], summary: Mapping[str, Any] | None
) -> tuple[list[tuple[str, str]], list[list[Cell]]]:
    """Headings, with what hides them on a phone, and a row for each client heard in any round."""
    sums: dict[str, Counter[str]] = {}
    cluster: dict[str, int] = {}
    for line in metrics:
        for client, found in line.get("by_client", {}).items():
            cluster[client] = found["cluster"]
            own = sums.setdefault(client, Counter())
            own.update(found["resolution"])
            own.update({key: found[key] for key in ("uplink", "downlink", "wrong", "known")})
        for kind in ("refused", "failed", "absent"):
            for client in map(str, line.get(kind, ())):
                sums.setdefault(client, Counter())["not counted"] += 1
    held_out = (summary or {}).get("coverage", {}).get("clients", {})
    heads, table = [], []
    for client in sorted(sums, key=lambda name: (len(name), name))[:MOST_CLIENTS]:
        own = sums[client]
        tokens = sum(own[stage] for stage in STAGE_WORDS)
        columns = {
            "client": _cell(int(client), client),
            "cluster": _cell(cluster.get(client), "{}"),
            "tokens": _cell(tokens, "{:,}"),
            "kept": _part(own["local"], tokens),
            "asked the LLM": _part(own["llm_accepted"] + own["llm_resampled"], tokens),
            "kept and wrong": _part(own["wrong"], own["known"]),
            **({"held-out": _cell(held_out.get(client), "{:.1%}")} if held_out else {}),
            "up": (own["uplink"], size(own["uplink"])),
            "down": (own["downlink"], size(own["downlink"])),
            "replies lost": _cell(own["not counted"], "{}"),
        }
        heads = list(columns)
        table.append(list(columns.values()))
    narrow = ("client", "tokens", "kept", "kept and wrong")
    return [(head, "" if head in narrow else "wide") for head in heads], table


def settings_rows(settings: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of the settings' tables: those that differ from their defaults, and the others."""
    known = {row.name: row for row in rows()}
    changed: list[dict[str, Any]] = []
    others: list[dict[str, Any]] = []
    for name, value in settings.items():
        row = known.get(name)
        shown = in_words(value)
        meaning = f"{row.description}{f' ({row.unit})' if row.unit else ''}" if row else ""
        differs = row is None or shown != row.default
        line = {"name": name, "value": shown, "meaning": meaning, "changed": differs}
        (changed if differs else others).append(line)
    return changed, others


def examples(log: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Texts to show, those by the most stages first; none where no text was stored.

    Parameters
    ----------
    log : sequence of mapping
        Rows of the token log of one round.
    """
    texts: list[list[Mapping[str, Any]]] = []
    for row in log:
        if row.get("text") is None:
            return []
        if not texts or row["position"] <= texts[-1][-1]["position"]:
            texts.append([])
        texts[-1].append(row)
    first = {text[0]["client"]: text for text in reversed(texts)}
    chosen = sorted(first.values(), key=lambda text: -len({row["stage"] for row in text}))
    return [
        {
            **{key: text[0][key] for key in ("round", "client", "prompt")},
            "before": text[0].get("before") or "",
            "tokens": [_token(row) for row in text],
        }
        for text in chosen[:_EXAMPLES]
    ]


def _token(row: Mapping[str, Any]) -> dict[str, str]:
    told = f"{row['uncertainty']:.2f}"
    beta = "" if row["beta"] is None else f", rejection probability {row['beta']:.2f}"
    return {
        "text": row["text"],
        "colour": STAGE_COLOURS[row["stage"]],
        "title": f"{STAGE_WORDS[row['stage']]}, uncertainty {told}{beta}",
        "told": told,
    }


def _shortened(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_MOST_NAMES])
    more = len(names) - _MOST_NAMES
    return f"{shown} and {more} more" if more > 0 else shown


def _cell(value: Any, form: str) -> Cell:
    return ("", "") if value is None else (value, form.format(value))


def _part(part: float, whole: float) -> Cell:
    return (part / whole, f"{part / whole:.1%}") if whole else ("", "")


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.2%}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
