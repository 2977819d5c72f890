"""How long the texts of a run can get."""

from __future__ import annotations

from fedhlm_app.data.prompts import TEXT_TOKENS
from fedhlm_app.settings import Settings


def longest_context(settings: Settings) -> int:
    """Most tokens a text of the run can have: start token, prompt, topic, new tokens."""
    if settings.workload == "classify":
        return 1 + TEXT_TOKENS + 2 + 1
    return 1 + settings.prompt_tokens + settings.tokens_per_prompt
