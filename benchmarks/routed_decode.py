"""Routed decoding against one prompt at a time, assisted generation, and the ideal.

All sides make the same number of tokens for the same prompts with the same pair, in one process, on
the same number of threads. Each repeat runs every side once, one after the other; a figure is the
median over repeats, a ratio the median of the repeats' own ratios, so that a machine that is slow
for a while slows down both sides of it. Run:

    python -m benchmarks.routed_decode [--prompts 1 20 64] [--tokens 40] [--repeats 7] [--cpu]
        [--slm smollm2-small] [--llm smollm2] [--device cuda] [--dtype bfloat16]

Two sides take one prompt at a time, which is slow: with at least as many prompts as repeats, each
repeat gives them another part of the prompts and every prompt is measured just once. Their ratios
are over all prompts: the sum of their seconds against the median of the batched side.

*Ideal* is the batched SLM alone making all tokens, plus one batched LLM forward a step over just
the rows that are escalated in that step (one token each, on key-value caches of the right length),
both as Transformers runs them. It is a yardstick rather than a bound: it leaves out that the LLM
has to read the kept tokens, but it does not have the engine's packed weights either.
*Engine* compares the LLM engine with the bare model's batched forward on the same tokens.
*Overhead* is both sides' time on a pair of the same layers, heads and vocabulary whose matrices are
too thin to cost anything. The rest is products, which another processor does faster or slower:
*to_ideal_if_products_cost_half* is what the ratio would be where they take half the time.
*Memory* is that of a process of its own, which loads both models and routes the prompts: before the
models, with both, the most while they are loaded and the most of all; and keys and values of a
token, on the device and at the server, and of a session, which has room for the longest text here.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel

from benchmarks._memory import apart, key_value_bytes, peak_mib, resident_mib
from benchmarks._pair import add_pair_options, load_models, pair_settings
from benchmarks._report import write_report
from benchmarks._routed_sides import (
    CLOCK,
    PROMPT_TOKENS,
    Sides,
    assisted,
    llm_on_escalated,
    seconds,
)
from fedhlm_app.data.items import load_items
from fedhlm_app.data.prompts import prompts as make_prompts
from fedhlm_app.models.load import ModelPair
from hlm.arrays import FloatArray
from servers.backend import Feed
from servers.engine.engine import Engine


class PromptByPrompt:
    """Times of a side that takes one prompt at a time, spread over the repeats.

    Parameters
    ----------
    side : callable
        Decodes one prompt, given its number.
    prompts, repeats : int
        Their numbers, both >= 1.
    """

    def __init__(self, side: Callable[[int], object], prompts: int, repeats: int) -> None:
        self._side = side
        self._stride = repeats if prompts >= repeats else 1
        self._times: list[list[float]] = [[] for _ in range(prompts)]

    def run(self, repeat: int) -> None:
        """Decode the part of the prompts that falls to this repeat."""
        for number in range(repeat % self._stride, len(self._times), self._stride):
            self._times[number].append(seconds(partial(self._side, number)))

    @property
    def total(self) -> float:
        """Seconds for all prompts, each with its median time."""
        return sum(float(np.median(times)) for times in self._times)


@torch.inference_mode()
def engine_figures(llm: PreTrainedModel, rows: int, tokens: int, repeats: int) -> dict[str, float]:
    """Tokens per second of the engine and of the bare model's batched forward, decoding."""
    texts = np.random.default_rng(0).integers(8, 4096, (rows, PROMPT_TOKENS + tokens))
    read = torch.from_numpy(texts).to(llm.device)

    def bare() -> None:
        cache = DynamicCache(config=llm.config)
        llm(read[:, :PROMPT_TOKENS], past_key_values=cache, logits_to_keep=1)
        for at in range(PROMPT_TOKENS, PROMPT_TOKENS + tokens):
            llm(read[:, at : at + 1], past_key_values=cache)

    large = Engine(llm, max_sessions=rows, max_context=PROMPT_TOKENS + tokens)

    def engine() -> None:
        end = np.array([PROMPT_TOKENS])
        large.score([Feed(row, 0, texts[row, :PROMPT_TOKENS], end) for row in range(rows)])
        for at in range(PROMPT_TOKENS, PROMPT_TOKENS + tokens):
            end = np.array([at + 1])
            large.score([Feed(row, at, texts[row, at : at + 1], end) for row in range(rows)])

    times = np.array([(seconds(bare), seconds(engine)) for _ in range(repeats)])
    made = rows * tokens
    bare_s, engine_s = np.median(times, axis=0).tolist()
    return {
        "bare_tokens_per_second": made / bare_s,
        "engine_tokens_per_second": made / engine_s,
        "ratio": float(np.median(times[:, 0] / times[:, 1])),
    }


def thin(model: PreTrainedModel) -> PreTrainedModel:
    """A random model with the same layers, heads and vocabulary, and heads of 8 entries."""
    config = copy.deepcopy(model.config)
    config.head_dim = 8
    config.hidden_size = 8 * config.num_attention_heads
    config.intermediate_size = 2 * config.hidden_size
    torch.manual_seed(0)
    made: PreTrainedModel = type(model)(config).eval()
    return made.to(model.dtype).to(model.device)


def overhead_figures(real: Sides, times: FloatArray, repeats: int) -> dict[str, float]:
    """What of both sides is not products, and the ratio where products cost less."""
    thin_pair = Sides(thin(real.slm), thin(real.llm), real.prompts, real.tokens, real.share)
    thin_pair.times()  # warms up
    bare = np.median([thin_pair.times() for _ in range(repeats)], axis=0)
    whole = np.median(times, axis=0)
    half = (whole + bare) / 2
    steps = real.tokens / 1000
    return {
        "routed_ms_a_step": float(bare[0]) / steps,
        "ideal_ms_a_step": float(bare[1] + bare[2]) / steps,
        "routed_with_products_ms_a_step": float(whole[0]) / steps,
        "ideal_with_products_ms_a_step": float(whole[1] + whole[2]) / steps,
        "to_ideal_if_products_cost_half": float((half[1] + half[2]) / half[0]),
        "to_ideal_if_products_cost_nothing": float((bare[1] + bare[2]) / bare[0]),
    }


def sides_of(pair: ModelPair, count: int, options: argparse.Namespace) -> Sides:
    """The pair on so many beginnings of built-in texts."""
    items = load_items("builtin")
    rows = np.arange(count) % len(items)
    made = make_prompts(items, pair.tokenizer, rows, "generate", PROMPT_TOKENS)
    prompts = [prompt.tokens[:PROMPT_TOKENS] for prompt in made]
    return Sides(pair.slm, pair.llm, prompts, options.tokens, options.share)


def memory_figures(options: argparse.Namespace, count: int) -> dict[str, float]:
    """Memory of this process, a new one, while it loads the pair and routes so many prompts."""
    torch.set_num_threads(options.threads)
    before = resident_mib()
    pair = load_models(pair_settings(options))
    loaded, most_to_load = resident_mib(), peak_mib()
    sides_of(pair, count, options)
    found = {
        "before_models_mib": before,
        "with_both_models_mib": loaded,
        "most_while_loading_mib": most_to_load,
        "most_mib": peak_mib(),
    }
    if torch.cuda.is_initialized():
        found["most_gpu_mib"] = torch.cuda.max_memory_allocated() / 2**20
    slm, llm = key_value_bytes(pair.slm), key_value_bytes(pair.llm)
    session = llm * (PROMPT_TOKENS + 1 + options.tokens) / 2**20
    return found | {
        "slm_key_value_kib_a_token": slm / 2**10,
        "llm_key_value_kib_a_token": llm / 2**10,
        "llm_key_value_mib_a_session": session,
    }


def figures(pair: ModelPair, count: int, options: argparse.Namespace) -> dict[str, object]:
    """All sides for one number of prompts."""
    tokens, repeats = options.tokens, options.repeats
    sides = sides_of(pair, count, options)
    prompts, records = sides.prompts, sides.records
    llm_on_escalated(pair.llm, prompts, records.escalated)  # warms up
    assisted(pair.slm, pair.llm, prompts[0], tokens)

    alone = PromptByPrompt(lambda at: sides.route([prompts[at]]), count, repeats)
    assistant = PromptByPrompt(
        lambda at: assisted(pair.slm, pair.llm, prompts[at], tokens), count, repeats
    )
    times = np.empty((repeats, 3))  # lockstep, the ideal's two parts
    for repeat in range(repeats):
        times[repeat] = sides.times()
        alone.run(repeat)
        assistant.run(repeat)
    ideal = times[:, 1] + times[:, 2]
    to_ideal = ideal / times[:, 0]
    lockstep_s = float(np.median(times[:, 0]))
    total = count * tokens
    return {
        "tokens": tokens,
        "repeats": repeats,
        "times_each_prompt_was_measured_alone": repeats if count < repeats else 1,
        "escalated_share": float(records.escalated[records.present].mean()),
        "tokens_per_second": {
            "routed_lockstep": total / lockstep_s,
            "routed_one_at_a_time": total / alone.total,
            "assisted_generation": total / assistant.total,
            "ideal": total / float(np.median(ideal)),
        },
        "ratio": {
            "to_one_at_a_time": alone.total / lockstep_s,
            "to_assisted_generation": assistant.total / lockstep_s,
            "to_ideal": float(np.median(to_ideal)),
            "to_ideal_lowest": float(to_ideal.min()),
            "to_ideal_highest": float(to_ideal.max()),
        },
        "overhead": overhead_figures(sides, times, repeats),
        "engine": engine_figures(pair.llm, count, tokens, repeats),
    }


def main() -> None:
    """Measure, print and write benchmarks/out/routed_decode.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, nargs="+", default=[1, 20, 64])
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--share", type=float, default=0.25, help="share of tokens escalated")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cpu", action="store_true", help="processor time instead of wall time")
    parser.add_argument("--memory", action="store_true", help="measure memory alone")
    add_pair_options(parser)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.cpu:
        CLOCK[0] = time.process_time
    print(f"{options.threads} threads")
    pair = None if options.memory else load_models(pair_settings(options))
    found = []
    for count in options.prompts:
        one = {"prompts": count, "memory": apart(memory_figures, options, count)}
        if pair is not None:
            one |= figures(pair, count, options)
        print(json.dumps(one, indent=1), flush=True)
        found.append(one)
    print(write_report("routed_decode", {**vars(options), "runs": found}))


if __name__ == "__main__":
    main()
