"""A routed step is short: counted in calls, which no busy machine makes more or fewer."""

from __future__ import annotations

import cProfile
import pstats

import numpy as np

from benchmarks._memory import key_value_bytes
from benchmarks._routed_sides import PROMPT_TOKENS, routed, server
from fedhlm_app.models.load import load_pair


def test_a_step_of_twenty_prompts_takes_few_calls() -> None:
    pair = load_pair()
    prompts = list(np.random.default_rng(0).integers(8, 4096, (20, PROMPT_TOKENS)))
    service = server(pair.llm, 20, 12)
    probe = routed(pair.slm, service, prompts, 12, 1.0)
    threshold = float(np.quantile(probe.uncertainty[probe.present], 0.75))
    profile = cProfile.Profile()
    profile.enable()
    records = routed(pair.slm, service, prompts, 12, threshold)
    profile.disable()
    assert 0.1 < records.escalated.mean() < 0.5
    calls = pstats.Stats(profile).total_calls / 12  # type: ignore[attr-defined]
    # 3,600 of them; over 5,000 while Transformers' modules were called one by one.
    assert calls < 4_200


def test_keys_and_values_are_counted_as_the_engine_sets_them_aside() -> None:
    llm = load_pair().llm
    service = server(llm, 8, 12)
    memory = service.engine._reader._memory  # type: ignore[attr-defined]
    room = sum(part.nbytes for part in memory._keys + memory._values)
    assert room == 8 * (PROMPT_TOKENS + 1 + 12) * key_value_bytes(llm)
