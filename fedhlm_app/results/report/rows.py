"""What a summary says, row by row: for the table on a terminal and the lines of a log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedhlm_app.results.report.verdict import lacking, meanwhile, threshold, verdict
from fedhlm_app.results.stages import STAGE_WORDS
from fedhlm_app.settings.words import in_short


def figures(summary: Mapping[str, Any]) -> list[tuple[str, str, str] | None]:
    """Return the rows of the table: what, figure, remark; None where a new part begins."""
    tokens = summary["tokens"]
    rows: list[tuple[str, str, str] | None] = [
        ("tokens", f"{tokens:,}", f"{summary['clients']} clients, {summary['rounds']} rounds")
    ]
    settings = summary.get("settings", {})
    tiers = {"cache": "cache-mode", "peer": "peer-mode", "edge": "inter-cluster"}
    on = {stage for stage, key in tiers.items() if settings.get(key, "off") not in ("off", False)}
    for stage, words in STAGE_WORDS.items():
        count = summary["resolution"][stage]
        # Tiers that are switched off would only be noise; where there are some, all are told.
        if count or stage in on or (on if stage == "unresolved" else stage not in tiers):
            rows.append((f"  {words}", f"{count:,}", f"{count / tokens:.2%}"))
        if stage == "cache" and (copies := summary.get("copies")):
            rows.append(("    of the same prompt", f"{copies:,}", "from when it came before"))
    accuracy = summary["accuracy"]
    rows += [
        None,
        ("transmission reduction", f"{summary['trr']:.2%}", "decided without the LLM"),
        *_fidelity(summary),
        # Generated text has no right answer to be held against.
        *(
            (f"accuracy, {what}s", f"{accuracy[what]:.2%}", "held-out")
            for what in ("token", "label")
            if accuracy[what] is not None
        ),
        None,
    ]
    for tier, hits in summary.get("false_hits", {}).items():
        low, high = hits["interval"]
        remark = f"of {hits['audited']:,} audited hits; 95 %: {low:.1%} to {high:.1%}"
        rows.insert(-1, (f"false hits, {tier}", f"{hits['rate']:.2%}", remark))
    rows += _thresholds(summary)
    if spent := summary.get("privacy"):
        rows.append(("privacy, epsilon", f"{spent['epsilon']:.3g}", privacy_words(spent)))
    traffic, seconds = summary["bytes"], summary["seconds"]
    rows += [
        None,
        ("bytes up", f"{traffic['uplink']:,}", f"{traffic['uplink'] / tokens:.2f} per token"),
        ("bytes down", f"{traffic['downlink']:,}", f"{traffic['downlink'] / tokens:.2f} per token"),
    ]
    if (llm := summary.get("exchanges", {})).get("messages"):
        waste = f"{llm['overshot']:,} of them in vain" if llm["streams"] else ""
        streams = f"{llm['streams']:,} of them streams" if llm["streams"] else ""
        rows += [
            ("messages to the LLM", f"{llm['messages']:,}", streams),
            ("tokens the LLM decoded", f"{llm['decoded']:,}", waste),
        ]
    if traffic["edge"]:
        rows.append(("bytes at the edge", f"{traffic['edge']:,}", ""))
    if (preset := summary.get("settings", {}).get("preset")) is not None:
        changed = in_short(summary.get("changed", {}))
        rows.append(("preset", preset, f"changed: {changed}" if changed else "nothing changed"))
    if sent := summary.get("hierarchy"):
        than = f"{abs(sent['saved']):.1%} {'more' if sent['saved'] < 0 else 'fewer'}"
        saved = f"{sent['aggregates']:,} aggregates; {than} than all updates"
        rows += [
            (
                "updates to the edge",
                f"{sent['device_edge']:,}",
                f"bytes of {sent['updates']:,} updates",
            ),
            ("  on to the cloud", f"{sent['edge_cloud']:,}", f"bytes of {saved}"),
        ]
    lost = {
        "refused": sum(summary.get("refused", {}).values()),
        "failed": summary.get("failed", 0),
        "not connected": summary.get("absent", 0),
    }
    if missed := sum(lost.values()):
        why = ", ".join(f"{words} {count:,}" for words, count in lost.items() if count)
        rows.append(("replies missing", f"{missed:,}", why))
    rows.append(
        (
            "seconds",
            f"{seconds['total']:.1f}",
            f"small model {seconds['slm']:.1f}, large {seconds['llm']:.1f}, "
            f"Flower {seconds['flower']:.1f}",
        )
    )
    return rows


def _thresholds(summary: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The global threshold, those of clusters that differ, and what certifying them lacks."""
    value, clusters = summary["threshold"]["global"], summary["threshold"]["clusters"]
    found = summary.get("guarantee")
    rows = [("threshold", threshold(value), "global" if value >= 0 else "keeps nothing")]
    if found is not None and found["certified"] < found["groups"]:
        share = f"{found['certified']} of {found['groups']}"
        rows += [("  certified", share, lacking(found)), ("", "", meanwhile(found))]
    for group, learned in ({} if found is None else found.get("learned", {})).items():
        whose = "" if summary["settings"]["personalisation"] == "global" else f"cluster {group}: "
        rows.append(("  learned", threshold(learned), f"{whose}by gradients, before certifying"))
    if any(abs(other - value) > 1e-9 for other in clusters.values()):
        shown = "  ".join(f"{key}: {threshold(v)}" for key, v in list(clusters.items())[:8])
        more = f"  and {len(clusters) - 8} more" if len(clusters) > 8 else ""
        rows.append(("  by cluster", "", shown + more))
    return rows


def _fidelity(summary: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Agreement and certificate, or risk alone, as far as the LLM told of any token."""
    if summary.get("measured_tokens") == 0:
        return [("agreement, certificate", "unknown", "the LLM told of no token")]
    risk = f"{summary['certificate']:.4f}"
    rows = [
        ("agreement with the LLM", f"{summary['llm_agreement']:.2%}", "same token in that context")
    ]
    if is_certified(summary):
        return [*rows, ("certificate", risk, f"{allowed(summary)}kept and wrong, mean of tokens")]
    return [*rows, ("kept and wrong", risk, f"{allowed(summary)}mean of tokens; not certified")]


def is_certified(summary: Mapping[str, Any]) -> bool:
    """Whether any threshold of the run has a certificate, so that its risk may be called one."""
    return bool((summary.get("guarantee") or {}).get("certified"))


def allowed(summary: Mapping[str, Any]) -> str:
    """The budget that the certificate stands beside; empty for a rule without."""
    found = summary.get("guarantee")
    return f"of {found['budget']:g} allowed: " if found else ""


def privacy_words(spent: Mapping[str, Any]) -> str:
    """What an epsilon is about, from the summary's ``privacy``."""
    return (
        f"at delta {spent['delta']:g}, per {spent['unit']}, {spent['releases']} releases; "
        f"{spent['mechanism']} noise on the {spent['where']}"
    )


def text_lines(summary: Mapping[str, Any]) -> list[str]:
    """The verdict, then the table as plain lines with figures aligned; empty between parts."""
    rows = figures(summary)
    names = max(len(row[0]) for row in rows if row)
    amounts = max(len(row[1]) for row in rows if row)
    return [verdict(summary)] + [
        f"{row[0]:<{names}}  {row[1]:>{amounts}}  {row[2]}".rstrip() if row else "" for row in rows
    ]
