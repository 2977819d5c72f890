"""What a summary says, row by row: for the table on a terminal and the lines of a log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

STAGE_WORDS = {
    "local": "kept on the device",
    "cache": "from the device's cache",
    "peer": "from peers",
    "edge": "from neighbouring clusters",
    "llm_accepted": "LLM: draft accepted",
    "llm_resampled": "LLM: draft replaced",
    "unresolved": "LLM not reached",
}


def figures(summary: Mapping[str, Any]) -> list[tuple[str, str, str] | None]:
    """Return the rows of the table: what, figure, remark; None where a new part begins."""
    tokens = summary["tokens"]
    rows: list[tuple[str, str, str] | None] = [
        ("tokens", f"{tokens:,}", f"{summary['clients']} clients, {summary['rounds']} rounds")
    ]
    for stage, words in STAGE_WORDS.items():
        count = summary["resolution"][stage]
        # Tiers that are switched off would only be noise.
        if count or stage in ("local", "llm_accepted", "llm_resampled"):
            rows.append((f"  {words}", f"{count:,}", f"{count / tokens:.2%}"))
    accuracy, threshold = summary["accuracy"], summary["threshold"]["global"]
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
        ("threshold", f"{threshold:.4f}", "global" if threshold >= 0 else "below 0: keeps nothing"),
    ]
    for tier, hits in summary.get("false_hits", {}).items():
        low, high = hits["interval"]
        remark = f"of {hits['audited']:,} audited hits; 95 %: {low:.1%} to {high:.1%}"
        rows.insert(-2, (f"false hits, {tier}", f"{hits['rate']:.2%}", remark))
    clusters = summary["threshold"]["clusters"]
    if any(value != threshold for value in clusters.values()):
        shown = "  ".join(f"{key}: {value:.4f}" for key, value in list(clusters.items())[:8])
        more = f"  and {len(clusters) - 8} more" if len(clusters) > 8 else ""
        rows.append(("  by cluster", "", shown + more))
    if spent := summary.get("privacy"):
        rows.append(("privacy, epsilon", f"{spent['epsilon']:.3g}", privacy_words(spent)))
    traffic, seconds = summary["bytes"], summary["seconds"]
    rows += [
        None,
        ("bytes up", f"{traffic['uplink']:,}", f"{traffic['uplink'] / tokens:.2f} per token"),
        ("bytes down", f"{traffic['downlink']:,}", f"{traffic['downlink'] / tokens:.2f} per token"),
    ]
    if traffic["edge"]:
        rows.append(("bytes at the edge", f"{traffic['edge']:,}", ""))
    rows.append(
        (
            "seconds",
            f"{seconds['total']:.1f}",
            f"small model {seconds['slm']:.1f}, large {seconds['llm']:.1f}, "
            f"Flower {seconds['flower']:.1f}",
        )
    )
    return rows


def _fidelity(summary: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Agreement and certificate, as far as the LLM told of any token."""
    if summary.get("measured_tokens") == 0:
        return [("agreement, certificate", "unknown", "the LLM told of no token")]
    agreement, certificate = f"{summary['llm_agreement']:.2%}", f"{summary['certificate']:.4f}"
    return [
        ("agreement with the LLM", agreement, "same token in that context"),
        ("certificate", certificate, "mean risk a token: kept and wrong"),
    ]


def privacy_words(spent: Mapping[str, Any]) -> str:
    """What an epsilon is about, from the summary's ``privacy``."""
    return (
        f"at delta {spent['delta']:g}, per {spent['unit']}, {spent['releases']} releases; "
        f"{spent['mechanism']} noise on the {spent['where']}"
    )


def text_lines(summary: Mapping[str, Any]) -> list[str]:
    """Return the table as plain lines, figures aligned; empty where a new part begins."""
    rows = figures(summary)
    names = max(len(row[0]) for row in rows if row)
    amounts = max(len(row[1]) for row in rows if row)
    return [
        f"{row[0]:<{names}}  {row[1]:>{amounts}}  {row[2]}".rstrip() if row else "" for row in rows
    ]
