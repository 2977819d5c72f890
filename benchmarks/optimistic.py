"""Drafting on during a verification, and drafting in blocks, over a link that really takes time.

One prompt at a time with the built-in pair. The link sleeps: half a round trip and the message's
bytes each way. The decoders: the plain router; the optimistic router, whose texts and bytes must
be the same, once behind every verification and once (the default) only where drafts are often
accepted; and speculative decoding in blocks, which lets the LLM decide every token. `slm-ms`
adds a pause to each pass of the small model, as on a device slower than this machine. Run:

    python -m benchmarks.optimistic [--shares .1 .25 .5] [--round-trip-ms 60] [--slm-ms 0 20]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from benchmarks._report import write_report
from clients.block_uplink import BlockUplink, block_method
from clients.optimistic import OptimisticRouter
from clients.policy import ThresholdPolicy
from clients.records import TextBatch, TokenRecords, Traffic
from clients.routing import Router, RouterConfig
from clients.speculative import SpeculativeDecoder
from clients.uplink import LanguageModelUplink, UplinkConfig
from fedhlm_app.data.items import load_items
from fedhlm_app.data.prompts import prompts as make_prompts
from fedhlm_app.pair.load import load_pair
from hlm.sampling import Sampling
from hlm.uncertainty import closed_form
from hlm.verification import VERIFIERS
from servers.engine import Engine
from servers.llm import LanguageModelService

PROMPT_TOKENS = 16
SEED = 7
DECODERS = ("plain", "optimistic", "optimistic-always", "speculative")
IntArray = np.ndarray[Any, np.dtype[np.int64]]


class SleepingLink:
    """Carries bytes to a service in this process, at the pace of a link.

    Parameters
    ----------
    service : LanguageModelService
        Answers.
    round_trip : float
        Seconds a message and its answer take at least.
    rate : float
        Bits per second, each way.
    """

    def __init__(self, service: LanguageModelService, round_trip: float, rate: float) -> None:
        self.service = service
        self.round_trip = round_trip
        self.rate = rate

    def exchange(self, payload: bytes) -> bytes:
        """Send a request, return the reply."""
        time.sleep(self.round_trip / 2 + 8 * len(payload) / self.rate)
        answer = self.service.handle(payload)
        time.sleep(self.round_trip / 2 + 8 * len(answer) / self.rate)
        return answer


@contextmanager
def slowed(model: PreTrainedModel, seconds: float) -> Iterator[None]:
    """Let every pass of a model take longer by some seconds."""
    if seconds == 0:
        yield
        return
    hook = model.register_forward_pre_hook(lambda *_: time.sleep(seconds))
    try:
        yield
    finally:
        hook.remove()


class Bench:
    """The pair, the prompts and the link of one run of the benchmark."""

    def __init__(self, options: argparse.Namespace) -> None:
        pair = load_pair()
        items = load_items("builtin")
        rows = np.arange(0, len(items), len(items) // options.prompts)[: options.prompts]
        made = make_prompts(items, pair.tokenizer, rows, "generate", PROMPT_TOKENS)
        self.slm, self.llm = pair.slm, pair.llm
        self.prompts = [prompt.tokens[:PROMPT_TOKENS] for prompt in made]
        self.options = options
        self.sampling = Sampling(options.decoding)
        self.vocab = int(pair.slm.config.vocab_size)

    def decoder(self, name: str, threshold: float) -> Router | SpeculativeDecoder:
        """A decoder with an LLM service of its own."""
        options = self.options
        engine = Engine(self.llm, max_context=PROMPT_TOKENS + 1 + options.tokens)
        link = SleepingLink(
            LanguageModelService(engine), options.round_trip_ms / 1e3, options.mbit * 1e6
        )
        method = "greedy" if options.decoding == "greedy" else "coupled"
        config = RouterConfig(
            self.sampling, lambda logits, draft, keys: closed_form(logits, draft, 1.0), SEED, 0
        )
        uplink = UplinkConfig(0, self.vocab, self.sampling, seed=SEED)
        if name == "speculative":
            blocks = BlockUplink(link, block_method(method), uplink)
            return SpeculativeDecoder(self.slm, config, blocks, options.draft_tokens)
        verifier = VERIFIERS[method]()
        resolvers = [LanguageModelUplink(link, verifier, uplink)]
        shared = (self.slm, config, ThresholdPolicy(threshold), verifier, resolvers)
        if name == "plain":
            return Router(*shared)
        return OptimisticRouter(*shared, least_chance=0.0 if name == "optimistic-always" else 0.25)

    def threshold(self, share: float) -> float:
        """The threshold that escalates a share of the text the small model makes alone."""
        decoder = self.decoder("plain", 1.0)
        texts = TextBatch(self.prompts, np.arange(len(self.prompts)), room=self.options.tokens)
        records = decoder.generate(texts, self.options.tokens, Traffic())
        return float(np.quantile(records.uncertainty[records.present], 1 - share))

    def decode(
        self, decoder: Router | SpeculativeDecoder, session: int
    ) -> tuple[float, IntArray, TokenRecords, Traffic]:
        """Continue one prompt: seconds, its tokens, its records, its traffic."""
        texts = TextBatch([self.prompts[session]], np.array([session]), room=self.options.tokens)
        traffic = Traffic()
        begin = time.perf_counter()
        records = decoder.generate(texts, self.options.tokens, traffic)
        return time.perf_counter() - begin, texts.text(0), records, traffic


def measure(bench: Bench, share: float, slm_ms: float) -> dict[str, Any]:
    """All decoders for one share of escalated tokens, prompt by prompt in turn."""
    threshold = bench.threshold(share)
    names = DECODERS
    decoders = {name: bench.decoder(name, threshold) for name in names}
    seconds = dict.fromkeys(names, 0.0)
    traffic = {name: Traffic() for name in names}
    tokens = dict.fromkeys(names, 0)
    escalated = 0
    with slowed(bench.slm, slm_ms / 1e3):
        for session in range(len(bench.prompts)):
            texts = {}
            for name in names:
                spent, texts[name], records, used = bench.decode(decoders[name], session)
                seconds[name] += spent
                traffic[name] += used
                tokens[name] += records.tokens
                escalated += int(records.escalated.sum()) if name == "plain" else 0
            if any(not np.array_equal(texts["plain"], texts[name]) for name in names[1:3]):
                raise RuntimeError(f"prompt {session}: drafting ahead changed the text")
    made_ahead = {
        name: vars(decoder.stats)
        for name, decoder in decoders.items()
        if isinstance(decoder, OptimisticRouter)
    }
    found = {
        name: {
            "tokens_per_second": tokens[name] / seconds[name],
            "seconds": seconds[name],
            "waited_s": traffic[name].waited,
            "slm_s": traffic[name].slm,
            "messages_per_token": traffic[name].messages / tokens[name],
            "uplink_bytes_per_token": traffic[name].uplink / tokens[name],
            "downlink_bytes_per_token": traffic[name].downlink / tokens[name],
        }
        for name in names
    }
    return {
        "share_aimed_at": share,
        "escalated_share": escalated / tokens["plain"],
        "threshold": threshold,
        "slm_extra_ms": slm_ms,
        "tokens": tokens["plain"],
        "decoders": found,
        "speed_up": {name: seconds["plain"] / seconds[name] for name in names[1:3]},
        "drafts": made_ahead,
    }


def main() -> None:
    """Measure, print and write benchmarks/out/optimistic.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shares", type=float, nargs="+", default=[0.1, 0.25, 0.5])
    parser.add_argument("--slm-ms", type=float, nargs="+", default=[0.0, 20.0])
    parser.add_argument("--round-trip-ms", type=float, default=60.0)
    parser.add_argument("--mbit", type=float, default=1.0, help="rate of the link, each way")
    parser.add_argument("--prompts", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--draft-tokens", type=int, default=4)
    parser.add_argument("--decoding", choices=["greedy", "sampled"], default="greedy")
    options = parser.parse_args()
    # Two threads work at once; one processor each is what a device would give them.
    torch.set_num_threads(1)
    bench = Bench(options)
    bench.decode(bench.decoder("optimistic", 0.5), 0)  # the first passes of a process are slow
    runs = []
    for slm_ms in options.slm_ms:
        for share in options.shares:
            runs.append(measure(bench, share, slm_ms))
            rates = {k: round(v["tokens_per_second"], 1) for k, v in runs[-1]["decoders"].items()}
            drafts = runs[-1]["drafts"]["optimistic"]
            print(
                f"slm +{slm_ms:.0f} ms, {runs[-1]['escalated_share']:.2f} escalated: "
                f"tokens/s {rates}, {drafts['verifications']} verified, "
                f"{drafts['accepted']} accepted, {drafts['ahead']} ahead, "
                f"{drafts['wasted']} wasted",
                flush=True,
            )
    settings = {k: v for k, v in vars(options).items() if k not in ("shares", "slm_ms")}
    print(write_report("optimistic", {"settings": settings, "runs": runs}))


if __name__ == "__main__":
    main()
