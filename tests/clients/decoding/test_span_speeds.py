"""Learned rules over links told by the clock: no cell of LLM pace and round trip is lost."""

from __future__ import annotations

import numpy as np
import pytest

from clients.policy import ThresholdPolicy
from fedhlm_app.compare.contender import Recorder
from hlm.channels import Link
from hlm.spans import NEVER, SpanCosts, TakeBack, count_runs, learned
from tests.models import VOCAB, random_model
from tests.routed import DirectTransport, build, make_prompts

STEPS, TEXTS, SLM_MS = 20, 2, 5.0
SLM, LLM = random_model("llama", 1), random_model("llama", 2)


class Clock(ThresholdPolicy):
    """A policy of drafts that take `SLM_MS`, with an LLM whose passes take `llm_ms`."""

    seconds = 0.0

    def keep(self, inputs):
        self.seconds += SLM_MS / 1000
        return super().keep(inputs)


def speed(rule: TakeBack | None, costs: SpanCosts):
    """Seconds over the link for all texts, one after the other, and where drafts were sure."""
    clock, link = Clock(0.6), Link("a", 1e8, costs.round_trip_ms / 1000)
    recorder = Recorder(None, lambda: clock.seconds, [link])

    def carried(service):
        recorder._transport = DirectTransport(service)
        score = service.engine.score

        def paced(feeds):
            clock.seconds += costs.llm_ms / 1000 * any(len(feed.wanted) for feed in feeds)
            return score(feeds)

        service.engine.score = paced
        return recorder

    setup = build(SLM, LLM, clock, rule=rule, window=costs.window, link=carried)
    sure, seconds = [], 0.0
    for number, prompt in enumerate(make_prompts(VOCAB, TEXTS)):
        recorder.clear()
        _, records, _ = setup.generate([prompt], STEPS, np.array([number]))
        seconds += float(recorder.took().times.now[0])
        sure.append(records.sure[0])
    return seconds, np.array(sure)


@pytest.mark.parametrize("llm_ms", [8.5, 20, 40, 80])
@pytest.mark.parametrize("round_trip_ms", [5, 30, 60])
def test_spans_are_nowhere_slower_than_one_token_at_a_time_or_the_llm_alone(llm_ms, round_trip_ms):
    costs = SpanCosts(llm_ms, SLM_MS, round_trip_ms)
    token, sure = speed(None, costs)
    alone, _ = speed(NEVER, costs)
    spans, _ = speed(learned(count_runs(sure), costs, STEPS), costs)
    assert spans <= token / 0.98 and spans <= alone / 0.98, (spans, token, alone)
