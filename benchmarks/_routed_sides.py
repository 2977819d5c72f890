"""What `benchmarks.routed_decode` times: the routed decode, and what it is held against."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel

from clients.decoding.drafting import RouterConfig
from clients.decoding.routing import Router
from clients.decoding.slm import LockstepDecoder
from clients.policy import ThresholdPolicy
from clients.records import TextBatch, TokenRecords, Traffic
from clients.resolvers.messages import UplinkConfig
from clients.resolvers.uplink import LanguageModelUplink
from fedhlm_app.transport.transports import DirectTransport
from hlm.arrays import BoolArray, IntArray
from hlm.sampling import Sampling
from hlm.uncertainty import closed_form
from hlm.verification import VERIFIERS
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


CLOCK = [time.perf_counter]
"""Wall time; processor time with `--cpu`, for a busy machine and one thread."""


def seconds(side: Callable[[], object]) -> float:
    """Time of one call, in s."""
    begin = CLOCK[0]()
    side()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return CLOCK[0]() - begin


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
