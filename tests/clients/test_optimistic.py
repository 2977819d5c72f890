from __future__ import annotations

import copy
import time
from itertools import pairwise

import numpy as np
import pytest
import torch

from clients.optimistic import AcceptanceOdds, OptimisticRouter
from clients.policy import RandomPolicy, ThresholdPolicy
from clients.records import Stage
from clients.uplink import LinkDown
from tests.models import ARCHITECTURES, VOCAB, random_model
from tests.routed import GREEDY, SAMPLED, Setup, build, make_prompts, new_part, own_text

STEPS = 12


def relative(model, noise, seed=0):
    """A model that often agrees with another, as two that share nothing but a size never do."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weights in other.parameters():
            size = noise * weights.std() if weights.ndim > 1 else 0.0
            weights += size * torch.randn(weights.shape, generator=generator)
    return other


SLM = random_model("llama", 1)
LLM = relative(SLM, 0.12)


class Slow:
    """Delays each exchange by a time of its own, so that drafting ahead gets varying distances."""

    def __init__(self, inner, seed=0, longest=0.004):
        self.inner = inner
        self._generator = np.random.default_rng(seed)
        self._longest = longest

    def exchange(self, payload):
        time.sleep(self._generator.uniform(0, self._longest))
        return self.inner.exchange(payload)


def optimistic(*arguments, delay_seed=0, longest=0.004, least_chance=0.0, **options) -> Setup:
    """The same as `build`, with the optimistic router and a slow link."""
    setup = build(*arguments, **options)
    setup.uplink.transport = Slow(setup.link, delay_seed, longest)
    plain = setup.router
    setup.router = OptimisticRouter(
        plain.model, plain.config, plain.policy, plain.drafter, plain.resolvers, least_chance
    )
    return setup


def same(first, second) -> None:
    """Text, records, and what crossed the link."""
    (texts, records, traffic), (other_texts, other_records, other_traffic) = first, second
    assert new_part(texts, 0) == new_part(other_texts, 0)
    assert texts.held.tolist() == other_texts.held.tolist()
    for name, values in vars(records).items():
        if values is not None:
            assert np.array_equal(values, getattr(other_records, name), equal_nan=True), name
    for name in ("uplink", "downlink", "messages", "failures"):
        assert getattr(traffic, name) == getattr(other_traffic, name), name


@pytest.mark.parametrize("threshold", [-1.0, 0.2, 0.5, 0.8, 1.0])
@pytest.mark.parametrize(
    ("sampling", "verifier"), [(GREEDY, "greedy"), (SAMPLED, "coupled"), (SAMPLED, "full")]
)
def test_everything_is_as_without_it(sampling, verifier, threshold):
    for seed in range(1, 4):
        prompts = make_prompts(VOCAB, 1, seed)
        arguments = (SLM, LLM, ThresholdPolicy(threshold), sampling, verifier)
        plain = build(*arguments, seed=seed, audit_rate=0.2)
        ahead = optimistic(*arguments, seed=seed, audit_rate=0.2, delay_seed=seed)
        same(plain.generate(prompts, STEPS), ahead.generate(prompts, STEPS))
        assert plain.engine.held((0, 0)) == ahead.engine.held((0, 0))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_below_zero_the_text_is_the_llms_own(architecture):
    slm, llm = random_model(architecture, 1), random_model(architecture, 2)
    (prompt,) = make_prompts(VOCAB, 1)
    texts, _, _ = optimistic(slm, llm, ThresholdPolicy(-0.5)).generate([prompt], STEPS)
    assert new_part(texts, 0) == own_text(llm, prompt, STEPS)


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED])
def test_the_pair_of_these_tests_both_agrees_and_differs(sampling):
    _, records, _ = build(SLM, LLM, ThresholdPolicy(-1), sampling).generate(
        make_prompts(VOCAB, 8), STEPS
    )
    counts = records.stage_counts()
    assert min(counts["llm_accepted"], counts["llm_resampled"]) > 0.15 * records.tokens


def test_drafts_go_on_during_a_verification_and_rejected_ones_are_counted():
    setup = optimistic(SLM, LLM, RandomPolicy(0.3), SAMPLED, longest=0.1)
    kept_behind_accepted = 0
    for session in range(3):
        prompts = make_prompts(VOCAB, 1, session)
        _, records, _ = setup.generate(prompts, STEPS, np.array([session]))
        kept_behind_accepted += sum(
            pair == (Stage.LLM_ACCEPTED, Stage.LOCAL) for pair in pairwise(records.stage[0])
        )
    stats = setup.router.stats
    assert stats.ahead > stats.verifications / 2
    assert 0 < stats.wasted < stats.ahead
    assert kept_behind_accepted > 0


def test_behind_drafts_that_are_never_accepted_it_waits():
    stranger = random_model("llama", 5)
    arguments = (SLM, stranger, RandomPolicy(0.3), SAMPLED)
    careful = optimistic(*arguments, longest=0.02, least_chance=0.25)
    for probability in np.arange(0.05, 1, 0.1):
        for _ in range(20):
            careful.router.odds.learn(probability, accepted=False)
    for session in range(3):
        prompts, number = make_prompts(VOCAB, 1, session), np.array([session])
        plain = build(*arguments).generate(prompts, STEPS, number)
        same(plain, careful.generate(prompts, STEPS, number))
    assert careful.router.stats.verifications > 5
    assert careful.router.stats.ahead == careful.router.stats.wasted == 0


def test_odds_are_counted_by_probability():
    odds = AcceptanceOdds(bins=4)
    assert odds.chance(0.1) == odds.chance(1.0) == 0.5
    for accepted in (True, False, False, False):
        odds.learn(0.1, accepted)
    assert odds.chance(0.2) == pytest.approx(2 / 6)
    assert odds.chance(0.3) == 0.5
    with pytest.raises(ValueError, match="least_chance = 2"):
        optimistic(SLM, LLM, RandomPolicy(0.3), least_chance=2)


def test_an_agreeing_pair_wastes_nothing():
    setup = optimistic(SLM, SLM, RandomPolicy(0.4))
    setup.generate(make_prompts(VOCAB, 1), STEPS)
    assert setup.router.stats.ahead > 0
    assert setup.router.stats.wasted == 0


def test_drafting_overlaps_with_the_link():
    """Waiting is shorter than the link takes, by what was drafted meanwhile."""
    setup = optimistic(SLM, SLM, RandomPolicy(0.25), longest=0.05)
    carried = 0.0
    slow = setup.uplink.transport.exchange

    def exchange(payload):
        nonlocal carried
        begin = time.perf_counter()
        answer = slow(payload)
        carried += time.perf_counter() - begin
        return answer

    setup.uplink.transport.exchange = exchange
    _, _, traffic = setup.generate(make_prompts(VOCAB, 1), 30)
    assert traffic.messages > 0
    assert traffic.waited == pytest.approx(setup.router.stats.waited)
    assert traffic.waited < carried


@pytest.mark.parametrize("ending", [2, 5])
def test_an_end_token_ends_the_text_whoever_put_it_there(ending):
    for seed in range(6):
        prompts = make_prompts(VOCAB, 1, seed)
        whole, _, _ = build(SLM, LLM, ThresholdPolicy(0.5), SAMPLED).generate(prompts, STEPS)
        ends = frozenset(new_part(whole, 0)[ending : ending + 1])
        arguments = (SLM, LLM, ThresholdPolicy(0.5), SAMPLED)
        plain = build(*arguments, end_tokens=ends).generate(prompts, STEPS)
        same(plain, optimistic(*arguments, end_tokens=ends).generate(prompts, STEPS))
        assert len(new_part(plain[0], 0)) <= ending + 1


def test_a_link_that_breaks_leaves_the_drafts():
    for call in (1, 2, 4):
        made = []
        for make in (build, optimistic):
            setup = make(SLM, LLM, ThresholdPolicy(0.5), GREEDY)
            setup.link.fail_at = {call, call + 1}
            made.append(setup.generate(make_prompts(VOCAB, 1, 3), STEPS))
        same(*made)
        assert made[0][2].failures == 2
        assert made[0][1].stage_counts()["unresolved"] == 2


def test_an_error_in_the_other_thread_comes_out():
    setup = optimistic(SLM, LLM, ThresholdPolicy(-1))

    def broken(payload):
        raise RuntimeError("broken transport")

    setup.uplink.transport.exchange = broken
    with pytest.raises(RuntimeError, match="broken transport"):
        setup.generate(make_prompts(VOCAB, 1), STEPS)


def test_an_evicted_text_is_sent_again():
    def interrupted(setup):
        inner = setup.uplink.transport

        class Forgetful:
            calls = 0

            def exchange(self, payload):
                self.calls += 1
                if self.calls in (3, 6):
                    setup.engine.forget((0, 0))
                return inner.exchange(payload)

        setup.uplink.transport = Forgetful()
        return setup.generate(make_prompts(VOCAB, 1, 2), STEPS)

    arguments = (SLM, LLM, ThresholdPolicy(0.3), SAMPLED)
    same(interrupted(build(*arguments)), interrupted(optimistic(*arguments)))


def test_several_texts_are_routed_in_lockstep():
    prompts = make_prompts(VOCAB, 4)
    arguments = (SLM, LLM, ThresholdPolicy(0.5), SAMPLED)
    texts, _, traffic = build(*arguments).generate(prompts, STEPS)
    ahead_texts, _, ahead_traffic = optimistic(*arguments).generate(prompts, STEPS)
    assert np.array_equal(texts.tokens, ahead_texts.tokens)
    assert traffic.messages == ahead_traffic.messages


def test_a_down_link_is_the_slms_own_text():
    setup = optimistic(SLM, LLM, ThresholdPolicy(-1))
    setup.link.down = True
    (prompt,) = make_prompts(VOCAB, 1)
    texts, records, _ = setup.generate([prompt], STEPS)
    assert new_part(texts, 0) == own_text(SLM, prompt, STEPS)
    assert records.stage_counts()["unresolved"] == STEPS
    with pytest.raises(LinkDown):
        setup.link.exchange(b"")
