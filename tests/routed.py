"""A device and an LLM service in one process, put together from two models."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from clients.decoding.drafting import RouterConfig
from clients.decoding.routing import Router
from clients.policy import Policy
from clients.records import TextBatch, Traffic
from clients.resolvers.link import BackOff
from clients.resolvers.messages import UplinkConfig
from clients.resolvers.uplink import LanguageModelUplink
from hlm.sampling import Sampling
from hlm.transport import LinkDown
from hlm.uncertainty import closed_form
from hlm.verification import VERIFIERS
from servers.engine.engine import Engine
from servers.llm import LanguageModelService

GREEDY = Sampling()
SAMPLED = Sampling("sampled")


class Link:
    """Carries bytes to the service; can be cut, and counts what it carried."""

    def __init__(self, service: LanguageModelService) -> None:
        self.service = service
        self.down = False
        self.fail_at: set[int] = set()
        self.calls = 0

    def exchange(self, payload: bytes) -> bytes:
        self.calls += 1
        if self.down or self.calls in self.fail_at:
            raise LinkDown("cut by the test")
        return self.service.handle(payload)


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
) -> Setup:
    name = verifier or ("greedy" if sampling.decoding == "greedy" else "coupled")
    engine = Engine(llm, max_sessions=sessions, max_context=context)
    link = Link(LanguageModelService(engine))
    method = VERIFIERS[name]()
    vocab = int(slm.config.get_text_config().vocab_size)
    uplink = LanguageModelUplink(
        link,
        method,
        UplinkConfig(0, vocab, sampling, seed=seed, feedback=feedback),
    )
    uplink.link.back_off = BackOff(pause)
    config = RouterConfig(
        sampling,
        lambda logits, draft, keys: closed_form(logits, draft, 1.0),
        seed,
        0,
        end_tokens,
        audit_rate,
    )
    return Setup(Router(slm, config, policy, method, [uplink]), uplink, engine, link)


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
