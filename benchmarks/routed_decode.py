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
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel

from benchmarks._pair import add_pair_options, load_models, pair_settings
from benchmarks._report import write_report
from clients.decoding.drafting import RouterConfig
from clients.decoding.routing import Router
from clients.decoding.slm import LockstepDecoder
from clients.policy import ThresholdPolicy
from clients.records import TextBatch, TokenRecords, Traffic
from clients.resolvers.messages import UplinkConfig
from clients.resolvers.uplink import LanguageModelUplink
from fedhlm_app.data.items import load_items
from fedhlm_app.data.prompts import prompts as make_prompts
from fedhlm_app.models.load import ModelPair
from fedhlm_app.transport.transports import DirectTransport
from hlm.arrays import BoolArray, FloatArray, IntArray
from hlm.sampling import Sampling
from hlm.uncertainty import closed_form
from hlm.verification import VERIFIERS
from servers.backend import Feed
from servers.engine.engine import Engine
from servers.llm import LanguageModelService

PROMPT_TOKENS = 16


def server(llm: PreTrainedModel, prompts: int, tokens: int) -> LanguageModelService:
    """The LLM's server, which runs before the first device asks."""
    return LanguageModelService(
        Engine(llm, max_sessions=prompts, max_context=PROMPT_TOKENS + 1 + tokens)
    )


def routed(
    slm: PreTrainedModel,
    service: LanguageModelService,
    prompts: list[IntArray],
    tokens: int,
    threshold: float,
) -> TokenRecords:
    """One routed decode of all prompts in lockstep; the server gets them whole every time."""
    verifier = VERIFIERS["greedy"]()
    vocab = int(slm.config.vocab_size)
    uplink = LanguageModelUplink(
        DirectTransport(service), verifier, UplinkConfig(0, vocab, Sampling())
    )
    config = RouterConfig(
        Sampling(), lambda logits, draft, keys: closed_form(logits, draft, 1.0), 1, 0
    )
    router = Router(slm, config, ThresholdPolicy(threshold), verifier, [uplink])
    texts = TextBatch(prompts, np.arange(len(prompts)), room=tokens)
    return router.generate(texts, tokens, Traffic())


def assisted(slm: PreTrainedModel, llm: PreTrainedModel, prompt: IntArray, tokens: int) -> None:
    """Transformers' assisted generation, which takes one prompt at a time."""
    llm.generate(
        torch.from_numpy(prompt)[None].to(llm.device),
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
        logits = decoder.step(logits.argmax(-1).numpy(force=True)).logits


@torch.inference_mode()
def llm_on_escalated(llm: PreTrainedModel, prompts: list[IntArray], escalated: BoolArray) -> None:
    """Batched LLM forwards over just the escalated tokens, after reading the prompts."""
    read = torch.from_numpy(np.stack([prompt[:PROMPT_TOKENS] for prompt in prompts]))
    read = read.to(llm.device)
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
        llm(read.new_zeros(len(rows), 1), past_key_values=cache)


_clock = [time.perf_counter]
"""Wall time; processor time with `--cpu`, for a busy machine and one thread."""


def seconds(side: Callable[[], object]) -> float:
    """Time of one call, in s."""
    begin = _clock[0]()
    side()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return _clock[0]() - begin


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


@dataclass
class Sides:
    """A pair, its server, and what is decoded: ready to be timed."""

    slm: PreTrainedModel
    llm: PreTrainedModel
    prompts: list[IntArray]
    tokens: int
    share: float

    def __post_init__(self) -> None:
        self.service = server(self.llm, len(self.prompts), self.tokens)
        # The threshold that escalates `share` of this text, found on the first decode.
        probe = routed(self.slm, self.service, self.prompts, self.tokens, 1.0)
        self.threshold = float(np.quantile(probe.uncertainty[probe.present], 1 - self.share))
        # Everything runs once before it is measured.
        self.records = self.route(self.prompts)
        llm_on_escalated(self.llm, self.prompts, self.records.escalated)

    def route(self, prompts: list[IntArray]) -> TokenRecords:
        """One routed decode."""
        return routed(self.slm, self.service, prompts, self.tokens, self.threshold)

    def times(self) -> tuple[float, float, float]:
        """Seconds of the routed decode, and of the ideal's two parts."""
        return (
            seconds(lambda: self.route(self.prompts)),
            seconds(lambda: slm_alone(self.slm, self.prompts, self.tokens)),
            seconds(lambda: llm_on_escalated(self.llm, self.prompts, self.records.escalated)),
        )


def overhead_figures(real: Sides, times: FloatArray, repeats: int) -> dict[str, float]:
    """What of both sides is not products, and the ratio where products cost less."""
    thin_pair = Sides(thin(real.slm), thin(real.llm), real.prompts, real.tokens, real.share)
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


def figures(
    pair: ModelPair, count: int, tokens: int, repeats: int, share: float
) -> dict[str, object]:
    """All sides for one number of prompts."""
    items = load_items("builtin")
    rows = np.arange(count) % len(items)
    made = make_prompts(items, pair.tokenizer, rows, "generate", PROMPT_TOKENS)
    prompts = [prompt.tokens[:PROMPT_TOKENS] for prompt in made]
    sides = Sides(pair.slm, pair.llm, prompts, tokens, share)
    records = sides.records
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
        "prompts": count,
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
    add_pair_options(parser)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.cpu:
        _clock[0] = time.process_time
    print(f"{options.threads} threads")
    pair = load_models(pair_settings(options))
    found = []
    for count in options.prompts:
        one = figures(pair, count, options.tokens, options.repeats, options.share)
        print(json.dumps(one, indent=1), flush=True)
        found.append(one)
    print(write_report("routed_decode", {**vars(options), "runs": found}))


if __name__ == "__main__":
    main()
