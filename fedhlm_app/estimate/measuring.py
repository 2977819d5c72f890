"""From settings to an estimate: load the pair, record its texts, take its paces."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

import numpy as np

from clients.decoding.drafting import RouterConfig
from fedhlm_app.client.inference import sampling_of, uncertainty_of
from fedhlm_app.data.dataset import items_of
from fedhlm_app.data.prompts import prompts as prompts_of
from fedhlm_app.estimate.recording import decode_ms, record
from fedhlm_app.estimate.sums import Estimate
from fedhlm_app.estimate.terms import Terms, message_bytes
from fedhlm_app.models.context_length import longest_context
from fedhlm_app.models.load import load_llm, load_slm
from fedhlm_app.models.small import end_tokens
from fedhlm_app.models.sources import check_folder
from fedhlm_app.models.torch_names import torch_device, torch_dtype
from fedhlm_app.models.vocabulary import (
    check_context,
    check_same_tokenizer,
    load_tokenizer,
)
from fedhlm_app.settings import Settings

_TIMED_PROMPTS = 5


def measure(
    settings: Settings,
    prompts: int,
    terms: Terms,
    timed: Collection[str],
    listen: Callable[[str, int, int], None],
) -> Estimate:
    """Record texts of the settings' pair on the settings' dataset.

    Parameters
    ----------
    settings : Settings
        Pair, dataset, decoding, uncertainty, lengths of prompts and texts, and seed are used.
    prompts : int
        Texts, >= 2.
    terms : Terms
    timed : collection of str
        Paces of the terms, ``slm_ms`` or ``llm_ms``, that are measured instead.
    listen : callable
        Told of progress: what is going on, and how many of how many steps of it are done.

    Raises
    ------
    ValueError
        When models, tokenizer or texts cannot work together, or there are too few texts.
    """
    longest = longest_context(settings)
    for role, name in (("slm", settings.slm), ("llm", settings.llm)):
        check_folder(name, role)
        check_context(name, longest, role)
    check_same_tokenizer(settings.slm, settings.llm)
    items = items_of(settings)
    if len(items) < prompts:
        raise ValueError(f"prompts = {prompts}: the dataset has {len(items)} items")
    listen("loading the pair", 0, 1)
    slm = load_slm(settings.slm, torch_dtype(settings.dtype), torch_device(settings.device))
    llm = load_llm(
        settings.llm,
        torch_dtype(settings.llm_dtype),
        torch_device(settings.llm_device, "llm-device"),
    )
    rows = np.random.default_rng(settings.seed).permutation(len(items))[:prompts]
    tokenizer = load_tokenizer(settings.slm)
    chosen = prompts_of(items, tokenizer, rows, prompt_tokens=settings.prompt_tokens)
    texts = [prompt.tokens for prompt in chosen]
    tokens = settings.tokens_per_prompt
    config = RouterConfig(
        sampling_of(settings), uncertainty_of(settings), settings.seed + 1, 0, end_tokens(slm)
    )
    recorded = record(
        slm, llm, texts, tokens, config, lambda done, wanted: listen("recording", done, wanted)
    )
    for name, model in (("slm_ms", slm), ("llm_ms", llm)):
        if name in timed:
            listen(f"timing the {name[:3].upper()}", 0, 1)
            pace = decode_ms(model, texts[:_TIMED_PROMPTS], tokens, config)
            terms = replace(terms, **{name: pace})
    fitted, judged = recorded.halves()
    vocab = int(slm.config.get_text_config().vocab_size)
    sizes = message_bytes(vocab, settings.decoding, round(float(judged.prompts.mean())))
    return Estimate(fitted, judged, terms, sizes)
