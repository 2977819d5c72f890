"""A device and an LLM service in one process, put together from two models."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from clients.decoding.drafting import RouterConfig
from clients.decoding.routing import Router
from clients.decoding.spans import SpanRouting
from clients.policy import Policy
from clients.records import TextBatch, Traffic
from clients.resolvers.chain import Resolver
from clients.resolvers.link import BackOff
from clients.resolvers.messages import UplinkConfig
from clients.resolvers.span_uplink import SpanUplink
from clients.resolvers.uplink import LanguageModelUplink
from fedhlm_app.transport.transports import DirectTransport
from hlm.sampling import Sampling
from hlm.spans import TakeBack
from hlm.transport import Frames, LinkDown
from hlm.uncertainty import closed_form
from hlm.verification import VERIFIERS
from servers.engine.engine import Engine
from servers.llm import LanguageModelService

GREEDY = Sampling()
SAMPLED = Sampling("sampled")


class Link(DirectTransport):
    """Carries bytes to the service; can be cut, and counts what it carried.

    A stream breaks after `pieces` of its frames, where there are so many.
    """

    def __init__(self, service: LanguageModelService) -> None:
        super().__init__(service)
        self.service = service
        self.down = False
        self.fail_at: set[int] = set()
        self.calls = 0
        self.pieces = 1 << 30

    def exchange(self, payload: bytes) -> bytes:
        self.calls += 1
        if self.down or self.calls in self.fail_at:
            raise LinkDown("cut by the test")
        return self.service.handle(payload)

    def stream(self, payload: bytes) -> Frames:
        self.calls += 1
        if self.down or self.calls in self.fail_at:
            raise LinkDown("cut by the test")
        with closing(super().stream(payload)) as arriving:
            for number, frames in enumerate(arriving):
                if number == self.pieces or self.down:
                    raise LinkDown("cut by the test")
                yield frames


@dataclass
class Setup:
    router: Router
    uplink: LanguageModelUplink
    engine: Engine
    link: Link

    def generate(self, prompts, new_tokens, sessions=None):
        sessions = np.arange(len(prompts)) if sessions is None else sessions
        texts = TextBatch(prompts, sessions, room=new_tokens)
        traffic = Traffic()
        return texts, self.router.generate(texts, new_tokens, traffic), traffic


def build(
    slm,
    llm,
    policy: Policy,
    sampling: Sampling = GREEDY,
    verifier: str | None = None,
    *,
    sessions: int = 64,
    context: int = 64,
    seed: int = 7,
    audit_rate: float = 0.0,
    feedback: bool = True,
    end_tokens: frozenset[int] = frozenset(),
    pause: float = 0.0,
    rule: TakeBack | None = None,
    window: int = 4,
    link: type[Link] = Link,
    tiers: Sequence[Resolver[Any]] = (),
    drafts: bool = True,
) -> Setup:
    name = verifier or ("greedy" if sampling.decoding == "greedy" else "coupled")
    engine = Engine(llm, max_sessions=sessions, max_context=context)
    carrier = link(LanguageModelService(engine))
    method = VERIFIERS[name]()
    vocab = int(slm.config.get_text_config().vocab_size)
    common = UplinkConfig(0, vocab, sampling, seed=seed, feedback=feedback)
    spans = None
    if rule is None:
        uplink = LanguageModelUplink(carrier, method, common)
    else:
        uplink = SpanUplink(carrier, method, common, window)
        spans = SpanRouting(rule, uplink, drafts)
    uplink.link.back_off = BackOff(pause)
    config = RouterConfig(
        sampling,
        lambda logits, draft, keys: closed_form(logits, draft, 1.0),
        seed,
        0,
        end_tokens,
        audit_rate,
    )
    router = Router(slm, config, policy, method, [*tiers, uplink], spans=spans)
    return Setup(router, uplink, engine, carrier)


def make_prompts(vocab: int, count: int = 5, seed: int = 0, least: int = 2, most: int = 12):
    generator = np.random.default_rng(seed)
    return [generator.integers(1, vocab, generator.integers(least, most)) for _ in range(count)]


def own_text(model, prompt, new_tokens, **options):
    """What Transformers' own `generate` makes of a prompt, greedily."""
    with torch.inference_mode():
        made = model.generate(
            torch.from_numpy(prompt)[None],
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            max_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=0,
            **options,
        )
    return made[0, len(prompt) :].tolist()


def new_part(texts: TextBatch, row: int) -> list[int]:
    return texts.text(row)[texts.prompt_lengths[row] :].tolist()
