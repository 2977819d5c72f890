"""Routed decoding against one prompt at a time, assisted generation, and the ideal.

All variants make the same number of tokens for the same prompts with the built-in pair, in one
process, on the same number of threads, interleaved, best of several repeats. Run:

    python -m benchmarks.routed_decode [--prompts 1 20 64] [--tokens 40] [--repeats 3]

*Ideal* is the batched SLM alone making all tokens, plus one batched LLM forward a step over just
the rows that are escalated in that step (one token each, on key-value caches of the right length).
*Engine* compares the LLM engine with the bare model's batched forward on the same tokens.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel

from benchmarks._report import write_report
from clients.policy import ThresholdPolicy
from clients.records import TextBatch, TokenRecords, Traffic
from clients.routing import Router, RouterConfig
from clients.slm import LockstepDecoder
from clients.uplink import LanguageModelUplink, UplinkConfig
from fedhlm_app.data.items import load_items
from fedhlm_app.data.prompts import prompts as make_prompts
from fedhlm_app.links import DirectLink
from fedhlm_app.pair.load import load_pair
from hlm.sampling import Sampling
from hlm.uncertainty import closed_form
from hlm.verification import VERIFIERS
from servers.engine import Engine, Feed
from servers.llm import LanguageModelService

PROMPT_TOKENS = 16
IntArray = np.ndarray[Any, np.dtype[np.int64]]


def routed(
    slm: PreTrainedModel,
    llm: PreTrainedModel,
    prompts: list[IntArray],
    tokens: int,
    threshold: float,
) -> tuple[TokenRecords, TextBatch]:
    """One routed decode of all prompts in lockstep."""
    engine = Engine(llm, max_sessions=len(prompts), max_context=PROMPT_TOKENS + 1 + tokens)
    verifier = VERIFIERS["greedy"]()
    vocab = int(slm.config.vocab_size)
    uplink = LanguageModelUplink(
        DirectLink(LanguageModelService(engine)), verifier, UplinkConfig(0, vocab, Sampling())
    )
    config = RouterConfig(
        Sampling(), lambda logits, draft, keys: closed_form(logits, draft, 1.0), 1, 0
    )
    router = Router(slm, config, ThresholdPolicy(threshold), verifier, [uplink])
    texts = TextBatch(prompts, np.arange(len(prompts)), room=tokens)
    return router.generate(texts, tokens, Traffic()), texts


def assisted(
    slm: PreTrainedModel, llm: PreTrainedModel, prompts: list[IntArray], tokens: int
) -> None:
    """Transformers' assisted generation, which takes one prompt at a time."""
    for prompt in prompts:
        llm.generate(
            torch.from_numpy(prompt)[None],
            assistant_model=slm,
            min_new_tokens=tokens,
            max_new_tokens=tokens,
            do_sample=False,
            pad_token_id=0,
        )


def slm_alone(slm: PreTrainedModel, prompts: list[IntArray], tokens: int) -> None:
    """The batched SLM making every token."""
    decoder = LockstepDecoder(slm, prompts)
    logits = decoder.start().logits
    for _ in range(tokens - 1):
        logits = decoder.step(logits.argmax(-1).numpy()).logits


@torch.inference_mode()
def llm_on_escalated(llm: PreTrainedModel, prompts: list[IntArray], escalated: IntArray) -> None:
    """Batched LLM forwards over just the escalated tokens, after reading the prompts."""
    read = torch.from_numpy(np.stack([prompt[:PROMPT_TOKENS] for prompt in prompts]))
    whole = DynamicCache(config=llm.config)
    llm(read, past_key_values=whole, logits_to_keep=1)
    layers = [(layer.keys, layer.values) for layer in whole.layers]
    for step in range(escalated.shape[1]):
        rows = np.flatnonzero(escalated[:, step])
        if not len(rows):
            continue
        cache = DynamicCache(config=llm.config)
        length = PROMPT_TOKENS + step
        for index, (keys, values) in enumerate(layers):
            shape = (len(rows), keys.shape[1], length, keys.shape[3])
            # Contents do not matter for the time; views cost nothing.
            cache.update(keys[:1, :, :1].expand(shape), values[:1, :, :1].expand(shape), index)
        llm(torch.zeros(len(rows), 1, dtype=torch.int64), past_key_values=cache)


def best(repeats: int, *variants: Callable[[], object]) -> list[float]:
    """Seconds of each variant, the best of interleaved repeats."""
    times = [[] for _ in variants]  # type: list[list[float]]
    for _ in range(repeats):
        for found, variant in zip(times, variants, strict=True):
            begin = time.perf_counter()
            variant()
            found.append(time.perf_counter() - begin)
    return [min(found) for found in times]


@torch.inference_mode()
def engine_figures(llm: PreTrainedModel, rows: int, tokens: int, repeats: int) -> dict[str, float]:
    """Tokens per second of the engine and of the bare model's batched forward, decoding."""
    texts = np.random.default_rng(0).integers(8, 4096, (rows, PROMPT_TOKENS + tokens))

    def bare() -> None:
        cache = DynamicCache(config=llm.config)
        llm(torch.from_numpy(texts[:, :PROMPT_TOKENS]), past_key_values=cache, logits_to_keep=1)
        for at in range(PROMPT_TOKENS, PROMPT_TOKENS + tokens):
            llm(torch.from_numpy(texts[:, at : at + 1]), past_key_values=cache)

    def engine() -> None:
        made = Engine(llm, max_sessions=rows, max_context=PROMPT_TOKENS + tokens)
        end = np.array([PROMPT_TOKENS])
        made.score([Feed(row, 0, texts[row, :PROMPT_TOKENS], end) for row in range(rows)])
        for at in range(PROMPT_TOKENS, PROMPT_TOKENS + tokens):
            end = np.array([at + 1])
            made.score([Feed(row, at, texts[row, at : at + 1], end) for row in range(rows)])

    bare_s, engine_s = best(repeats, bare, engine)
    made = rows * tokens
    return {
        "bare_tokens_per_second": made / bare_s,
        "engine_tokens_per_second": made / engine_s,
        "ratio": bare_s / engine_s,
    }


def figures(count: int, tokens: int, repeats: int, share: float) -> dict[str, object]:
    """All variants for one number of prompts."""
    pair = load_pair()
    items = load_items("builtin")
    rows = np.arange(count) % len(items)
    made = make_prompts(items, pair.tokenizer, rows, "generate", PROMPT_TOKENS)
    prompts = [prompt.tokens[:PROMPT_TOKENS] for prompt in made]
    # The threshold that escalates `share` of this text, found on the first decode.
    probe, _ = routed(pair.slm, pair.llm, prompts, tokens, 1.0)
    threshold = float(np.quantile(probe.uncertainty[probe.present], 1 - share))
    records, _ = routed(pair.slm, pair.llm, prompts, tokens, threshold)

    def alone() -> None:
        for prompt in prompts:
            routed(pair.slm, pair.llm, [prompt], tokens, threshold)

    lockstep_s, alone_s, assisted_s, slm_s, llm_s = best(
        repeats,
        lambda: routed(pair.slm, pair.llm, prompts, tokens, threshold),
        alone,
        lambda: assisted(pair.slm, pair.llm, prompts, tokens),
        lambda: slm_alone(pair.slm, prompts, tokens),
        lambda: llm_on_escalated(pair.llm, prompts, records.escalated),
    )
    total = count * tokens
    return {
        "prompts": count,
        "tokens": tokens,
        "escalated_share": float(records.escalated[records.present].mean()),
        "tokens_per_second": {
            "routed_lockstep": total / lockstep_s,
            "routed_one_at_a_time": total / alone_s,
            "assisted_generation": total / assisted_s,
            "ideal": total / (slm_s + llm_s),
        },
        "ratio": {
            "to_one_at_a_time": alone_s / lockstep_s,
            "to_assisted_generation": assisted_s / lockstep_s,
            "to_ideal": (slm_s + llm_s) / lockstep_s,
        },
        "engine": engine_figures(pair.llm, count, tokens, repeats),
    }


def main() -> None:
    """Measure, print and write benchmarks/out/routed_decode.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, nargs="+", default=[1, 20, 64])
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--share", type=float, default=0.25, help="share of tokens escalated")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = []
    for count in options.prompts:
        one = figures(count, options.tokens, options.repeats, options.share)
        print(one)
        found.append(one)
    print(write_report("routed_decode", {"threads": options.threads, "runs": found}))


if __name__ == "__main__":
    main()
