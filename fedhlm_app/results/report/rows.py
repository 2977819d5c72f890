"""What a summary says, row by row: for the table on a terminal and the lines of a log."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fedhlm_app.results.report.verdict import lacking, meanwhile, threshold, verdict
from fedhlm_app.results.stages import STAGE_WORDS
from fedhlm_app.settings.words import in_short

Row = tuple[str, str, str]
"""What, figure, remark."""


def figures(summary: Mapping[str, Any]) -> list[Row | None]:
    """Return the rows of the table; None where a new part begins."""
    accuracy, privacy = summary["accuracy"], summary.get("privacy")
    return [
        *_stages(summary),
        None,
        ("transmission reduction", f"{summary['trr']:.2%}", "decided without the LLM"),
        *_fidelity(summary),
        # Generated text has no right answer to be held against.
        *(
            (f"accuracy, {what}s", f"{accuracy[what]:.2%}", "held-out")
            for what in ("token", "label")
            if accuracy[what] is not None
        ),
        *_false_hits(summary),
        None,
        *_thresholds(summary),
        *([_privacy(privacy)] if privacy else []),
        None,
        *_traffic(summary),
        *_course(summary),
    ]


def _stages(summary: Mapping[str, Any]) -> Iterator[Row]:
    """Who decided how many tokens."""
    tokens, settings = summary["tokens"], summary.get("settings", {})
    yield "tokens", f"{tokens:,}", f"{summary['clients']} clients, {summary['rounds']} rounds"
    tiers = {"cache": "cache-mode", "peer": "peer-mode", "edge": "inter-cluster"}
    on = {stage for stage, key in tiers.items() if settings.get(key, "off") not in ("off", False)}
    for stage, words in STAGE_WORDS.items():
        count = summary["resolution"][stage]
        # Tiers that are switched off would only be noise; where there are some, all are told.
        if count or stage in on or (on if stage == "unresolved" else stage not in tiers):
            yield f"  {words}", f"{count:,}", f"{count / tokens:.2%}"
        if stage == "cache" and (copies := summary.get("copies")):
            yield "    of the same prompt", f"{copies:,}", "from when it came before"


def _false_hits(summary: Mapping[str, Any]) -> Iterator[Row]:
    for tier, hits in summary.get("false_hits", {}).items():
        low, high = hits["interval"]
        remark = f"of {hits['audited']:,} audited hits; 95 %: {low:.1%} to {high:.1%}"
        yield f"false hits, {tier}", f"{hits['rate']:.2%}", remark


def _traffic(summary: Mapping[str, Any]) -> Iterator[Row]:
    """Bytes and messages of routing, to the LLM and at the edge."""
    tokens, traffic = summary["tokens"], summary["bytes"]
    for words, way in (("up", "uplink"), ("down", "downlink")):
        yield f"bytes {words}", f"{traffic[way]:,}", f"{traffic[way] / tokens:.2f} per token"
    if (llm := summary.get("exchanges", {})).get("messages"):
        waste = f"{llm['overshot']:,} of them in vain" if llm["streams"] else ""
        streams = f"{llm['streams']:,} of them streams" if llm["streams"] else ""
        yield "messages to the LLM", f"{llm['messages']:,}", streams
        yield "tokens the LLM decoded", f"{llm['decoded']:,}", waste
    if traffic["edge"]:
        yield "bytes at the edge", f"{traffic['edge']:,}", ""


def _course(summary: Mapping[str, Any]) -> Iterator[Row]:
    """What the run started from, its updates, whose replies are missing, and its time."""
    if (preset := summary.get("settings", {}).get("preset")) is not None:
        changed = in_short(summary.get("changed", {}))
        yield "preset", preset, f"changed: {changed}" if changed else "nothing changed"
    if sent := summary.get("hierarchy"):
        than = f"{abs(sent['saved']):.1%} {'more' if sent['saved'] < 0 else 'fewer'}"
        saved = f"{sent['aggregates']:,} aggregates; {than} than all updates"
        updates = f"bytes of {sent['updates']:,} updates"
        yield "updates to the edge", f"{sent['device_edge']:,}", updates
        yield "  on to the cloud", f"{sent['edge_cloud']:,}", f"bytes of {saved}"
    lost = {
        "refused": sum(summary.get("refused", {}).values()),
        "failed": summary.get("failed", 0),
        "not connected": summary.get("absent", 0),
    }
    if missed := sum(lost.values()):
        why = ", ".join(f"{words} {count:,}" for words, count in lost.items() if count)
        yield "replies missing", f"{missed:,}", why
    total, slm, llm, rest = (summary["seconds"][part] for part in ("total", "slm", "llm", "flower"))
    yield "seconds", f"{total:.1f}", f"{total - rest:.1f} in rounds, {rest:.1f} around them"
    # Devices and LLM compute at the same time: these do not add up to the rounds.
    yield "  in models", f"{slm + llm:.1f}", f"small {slm:.1f}, large {llm:.1f}; side by side"


def _thresholds(summary: Mapping[str, Any]) -> list[Row]:
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


def _fidelity(summary: Mapping[str, Any]) -> list[Row]:
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


def _privacy(spent: Mapping[str, Any]) -> Row:
    return "privacy, epsilon", f"{spent['epsilon']:.3g}", privacy_words(spent)


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
