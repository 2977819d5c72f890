"""From settings to an estimate: load the pair, record its texts, take its paces."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import replace

import numpy as np
from transformers import PreTrainedModel

from clients.decoding.drafting import RouterConfig
from clients.decoding.routing import Router
from clients.policy import FixedPolicy
from clients.resolvers.messages import UplinkConfig
from clients.resolvers.uplink import LanguageModelUplink
from fedhlm_app.client.inference import sampling_of, uncertainty_of
from fedhlm_app.data.chats import check_chats
from fedhlm_app.data.dataset import items_of
from fedhlm_app.data.prompts import prompts as prompts_of
from fedhlm_app.estimate.recording import alone, decode_ms, record
from fedhlm_app.estimate.sums import Estimate
from fedhlm_app.estimate.terms import Terms, message_bytes
from fedhlm_app.hosting.pairs import build_pair, check_pair
from fedhlm_app.models.context_length import longest_context
from fedhlm_app.models.load import load_llm, load_slm
from fedhlm_app.models.small import end_tokens
from fedhlm_app.models.sources import check_folder
from fedhlm_app.models.torch_names import torch_device, torch_dtype
from fedhlm_app.models.vocabulary import check_context, load_tokenizer, one_tokenizer
from fedhlm_app.settings import Settings
from fedhlm_app.transport.transports import DirectTransport
from hlm.verification import VERIFIERS
from servers.llm import LanguageModelService

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
    check_pair(settings)
    items = items_of(settings)
    if len(items) < prompts:
        raise ValueError(f"prompts = {prompts}: the dataset has {len(items)} items")
    listen("loading the pair", 0, 1)
    slm = load_slm(settings.slm, torch_dtype(settings.dtype), torch_device(settings.device))
    rows = np.random.default_rng(settings.seed).permutation(len(items))[:prompts]
    tokenizer = load_tokenizer(settings.slm)
    check_chats(items, settings, "generate")
    chosen = prompts_of(items, tokenizer, rows, prompt_tokens=settings.prompt_tokens)
    texts = [prompt.tokens for prompt in chosen]
    tokens = settings.tokens_per_prompt
    config = RouterConfig(
        sampling_of(settings), uncertainty_of(settings), settings.seed + 1, 0, end_tokens(slm)
    )
    writer, clock = _writer(settings, slm, config)
    recorded = record(
        slm, writer, texts, tokens, config, lambda done, wanted: listen("recording", done, wanted)
    )
    paces = {"slm_ms": (alone(slm, config), time.perf_counter), "llm_ms": (writer, clock)}
    for name, (router, ticks) in paces.items():
        if name in timed:
            listen(f"timing the {name[:3].upper()}", 0, 1)
            pace = decode_ms(router, texts[:_TIMED_PROMPTS], tokens, ticks)
            terms = replace(terms, **{name: pace})
    fitted, judged = recorded.halves()
    vocab = int(slm.config.get_text_config().vocab_size)
    sizes = message_bytes(vocab, settings.decoding, round(float(judged.prompts.mean())))
    return Estimate(fitted, judged, terms, sizes)


def _writer(
    settings: Settings, slm: PreTrainedModel, config: RouterConfig
) -> tuple[Router, Callable[[], float]]:
    """What writes the LLM's texts in tokens of the SLM, and a clock of the LLM's work at them."""
    if one_tokenizer(settings.slm, settings.llm):
        llm = load_llm(
            settings.llm,
            torch_dtype(settings.llm_dtype),
            torch_device(settings.llm_device, "llm-device"),
        )
        return alone(llm, config), time.perf_counter
    backend, verifier = build_pair(settings), VERIFIERS["greedy"]()
    common = UplinkConfig(0, backend.vocab, config.sampling, seed=0, feedback=False)
    uplink = LanguageModelUplink(DirectTransport(LanguageModelService(backend)), verifier, common)
    router = Router(slm, config, FixedPolicy(False), verifier, [uplink])
    return router, lambda: backend.stats.seconds
