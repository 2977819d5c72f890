"""Everything that can be refused before a model is loaded or a round begins."""

from __future__ import annotations

from fedhlm_app import resuming
from fedhlm_app.data.items import Items
from fedhlm_app.data.partitions import partition
from fedhlm_app.data.prompts import TEXT_TOKENS
from fedhlm_app.dataset import items_of
from fedhlm_app.pair.vocabulary import (
    check_context,
    check_same_tokenizer,
    label_tokens,
    load_tokenizer,
)
from fedhlm_app.settings import Settings


def longest_context(settings: Settings) -> int:
    """Most tokens a text of the run can have: start token, prompt, topic, new tokens."""
    if settings.workload == "classify":
        return 1 + TEXT_TOKENS + 2 + 1
    return 1 + settings.prompt_tokens + settings.tokens_per_prompt


def check(settings: Settings) -> Items:
    """Check data, tokenizers and context lengths; loads no weights.

    Returns
    -------
    Items
        The dataset, which is in memory now.

    Raises
    ------
    ValueError
        Naming the setting, its value and what is allowed (`DataError`, `PairError`,
        `SettingsError`).
    """
    settings.check_paths()
    if settings.resume:
        resuming.check(settings)
    items = items_of(settings)
    partition(items, settings.clients, settings.partition, settings.dirichlet_alpha, settings.seed)
    check_same_tokenizer(settings.slm, settings.llm)
    longest = longest_context(settings)
    check_context(settings.slm, longest, "slm")
    check_context(settings.llm, longest, "llm")
    if settings.workload == "classify":
        label_tokens(load_tokenizer(settings.llm), items.label_names)
    return items
