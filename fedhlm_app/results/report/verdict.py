"""What a run found, in one sentence, and what a threshold that keeps nothing still lacks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def verdict(summary: Mapping[str, Any]) -> str:
    """Return how many tokens the devices decided, and what is known of those that are wrong.

    A confidence is named where the rule has one; nothing is said to be guaranteed that is not.
    """
    stages = summary["resolution"]
    own = stages["local"] + stages["cache"]
    start = f"Of {summary['tokens']:,} tokens {own:,} were decided on their device; "
    found = summary.get("guarantee")
    if found is None:
        return start + _measured(summary) + "; nothing is certified"
    if not found["certified"]:
        return start + f"nothing is certified: {lacking(found)}"
    where = "under the certified threshold"
    if len(learned := found.get("learned", {})) == 1:
        shown = threshold(summary["threshold"]["global"])
        where = f"learned {threshold(learned['0'])}, certified {shown}:"
    if found["groups"] > 1:
        where = f"under {found['certified']} of {found['groups']} thresholds, which are certified,"
    return start + f"{where} {certified(found['budget'], found['sureness'])}" + _of_new(summary)


def _of_new(summary: Mapping[str, Any]) -> str:
    """What holds for prompts that nobody has seen, where those of the run came again."""
    held_out = summary.get("evaluation", {})
    if not summary.get("copies") or not held_out.get("tokens"):
        return ""
    return f"; of new prompts' tokens {percent(held_out['trr'])} were decided without the LLM"


def certified(budget: float, sureness: float | None) -> str:
    """What a certified threshold says of tokens, with this confidence or on average (None)."""
    how = "on average over runs" if sureness is None else f"with {percent(sureness)} confidence"
    return f"at most {percent(budget)} are kept and wrong, {how}"


def _measured(summary: Mapping[str, Any]) -> str:
    if summary.get("measured_tokens") == 0:
        return "how many are wrong is unknown"
    return f"{percent(summary['certificate'])} were kept and wrong where the LLM has read them"


def lacking(found: Mapping[str, Any]) -> str:
    """What is needed before anything can be certified, of a `guarantee` where nothing is yet."""
    # Those of the first round, in which everything is escalated, choose what is tried.
    prompts, least = found["prompts"], found["lacking"]
    judged = f"{prompts:,} prompts judged" if prompts else "no prompt judged yet"
    if least is None:
        return f"after {judged} the search has ended, too much of what was tried is wrong"
    rounds = f"{found['rounds']:,} round{'s' if found['rounds'] > 1 else ''}"
    words = f"{judged}, at least {least:,} more needed"
    if found["gathering"]:
        return f"{words} ({rounds} at these settings)"
    return f"{words}: raise calibration-rounds by {found['rounds']:,}"


def meanwhile(found: Mapping[str, Any]) -> str:
    """What devices without a certified threshold work with."""
    if found["trial"] < 0:
        return "until then nothing is kept"
    return f"until then {found['trial']:.4f} is tried"


def threshold(value: float) -> str:
    """A threshold in four digits; in words where it keeps nothing."""
    return f"{value:.4f}" if value >= 0 else "none"


def percent(share: float) -> str:
    """A share in per cent, with up to four digits."""
    return f"{100 * share:.4g} %"
