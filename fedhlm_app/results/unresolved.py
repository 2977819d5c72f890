"""Tokens that the LLM should have decided and did not: what is said of them, and when a run fails.

An unresolved token is the small model's draft, unsure as it was. It was not saved: `trr` leaves it
out, and it counts as wrong wherever something is guaranteed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedhlm_app.settings import Settings


class RunFailed(RuntimeError):
    """The rounds are over, and what they did is not what was asked for; the message says why."""


def needs_llm(settings: Settings) -> bool:
    """Whether any token of a run can depend on the LLM.

    With `policy` = ``always`` and no audits all drafts are kept: the LLM is asked for the report
    alone.
    """
    return settings.policy != "always" or settings.audit_rate > 0


def lost_words(sums: Mapping[str, Any]) -> str:
    """Say how many tokens stayed unresolved, from summed metrics; empty when none did."""
    lost, tokens = int(sums.get("unresolved", 0)), int(sums.get("tokens", 0))
    if not lost:
        return ""
    failures = int(sums.get("link-failures", 0))
    refused = int(sums.get("link-refused", 0)) + int(sums.get("link-untrusted", 0))
    return (
        f"{lost:,} of {tokens:,} tokens stayed unresolved: the LLM did not decide them "
        f"({failures} failed requests"
        + (f", {refused} of them for a token or certificate)" if refused else ")")
    )


def failure(settings: Settings, sums: Mapping[str, Any]) -> str:
    """Say why a run has failed, from metrics summed over all rounds; empty when it has not.

    It has when the LLM was needed and never answered, or when a larger share of tokens than
    `max-unresolved` stayed unresolved. With `max-unresolved` = 1 a run never fails for this.
    """
    if settings.max_unresolved >= 1 or not needs_llm(settings):
        return ""
    answered = sums.get("bytes-downlink", 0) or sums.get("bytes-measured", 0)
    if sums.get("link-failures", 0) and not answered:
        return "the LLM never answered: " + (lost_words(sums) or "nothing is known of kept tokens")
    lost, tokens = int(sums.get("unresolved", 0)), int(sums.get("tokens", 0))
    if tokens and lost / tokens > settings.max_unresolved:
        return (
            f"{lost_words(sums)}, {lost / tokens:.1%} of them; "
            f"setting 'max-unresolved' = {settings.max_unresolved:g} allows no more"
        )
    return ""
