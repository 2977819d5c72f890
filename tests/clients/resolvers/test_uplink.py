from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from clients.policy import FixedPolicy, RandomPolicy, ThresholdPolicy
from clients.records import Stage, TextBatch, Traffic
from clients.resolvers.measuring import read_unseen
from tests.models import VOCAB, random_model
from tests.routed import GREEDY, SAMPLED, build, make_prompts, new_part, own_text

STEPS = 12


def pair():
    return random_model("llama", 1), random_model("llama", 2)


def test_a_dropped_prefix_is_sent_again_unnoticed():
    slm, llm = pair()
    prompts = make_prompts(VOCAB, 6)
    roomy = build(slm, llm, ThresholdPolicy(0.4))
    cramped = build(slm, llm, ThresholdPolicy(0.4), sessions=2)
    wanted, _, little = roomy.generate(prompts, STEPS)
    got, _, much = cramped.generate(prompts, STEPS)
    assert np.array_equal(wanted.tokens, got.tokens)
    assert cramped.engine.stats.evictions > 0
    assert much.uplink > little.uplink


def test_tokens_cross_the_link_once():
    slm, llm = pair()
    prompts = make_prompts(VOCAB, 4)
    setup = build(slm, llm, RandomPolicy(0.3))
    texts, records, _ = setup.generate(prompts, STEPS)
    # Everything the engine read is a token of a text; what it fed twice would show here.
    assert setup.engine.stats.tokens <= texts.lengths.sum()
    assert records.escalated.any()


def test_free_feedback_tells_of_kept_tokens():
    slm, llm = pair()
    prompts = make_prompts(VOCAB, 8)
    texts, records, _ = build(slm, llm, RandomPolicy(0.3)).generate(prompts, STEPS)
    told = records.kept & (records.choice >= 0)
    assert told.sum() > 10
    for row, step in zip(*np.nonzero(told), strict=True):
        context = texts.text(row)[: records.position[row, step]]
        with torch.inference_mode():
            y = llm(torch.from_numpy(context)[None]).logits[0, -1].log_softmax(-1)
        token = records.token[row, step]
        assert records.choice[row, step] == int(y.argmax() == token)
        expected = max(float(y[token]), -127 / 8)
        assert records.log_prob[row, step] == pytest.approx(expected, abs=1 / 16 + 1e-3)
    # A kept token is told of exactly when its text was escalated later.
    for row in range(8):
        last = np.flatnonzero(records.escalated[row])
        expected = np.zeros(STEPS, bool)
        if len(last):
            expected[: last[-1]] = records.kept[row, : last[-1]]
        assert np.array_equal(told[row], expected)


def test_without_free_feedback_only_escalated_tokens_are_told_of():
    slm, llm = pair()
    setup = build(slm, llm, RandomPolicy(0.3), feedback=False)
    _, records, _ = setup.generate(make_prompts(VOCAB, 8), STEPS)
    assert np.array_equal(records.draft_choice >= 0, records.escalated)


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED])
@pytest.mark.parametrize("share", [0.0, 0.3])
def test_measuring_reads_every_place_and_is_not_traffic(sampling, share):
    slm, llm = pair()
    setup = build(slm, llm, RandomPolicy(share), sampling)
    prompts = make_prompts(VOCAB, 6)
    texts, records, traffic = setup.generate(prompts, STEPS)
    before = (traffic.uplink, traffic.downlink, traffic.messages)
    known = records.choice >= 0
    read_unseen(setup.uplink.sender, texts, records, traffic)
    assert (traffic.uplink, traffic.downlink, traffic.messages) == before
    assert traffic.measured > 0
    assert (records.choice[records.present] >= 0).all()
    assert np.array_equal(records.measured_only, records.present & ~known)
    if sampling is GREEDY:
        for row in range(6):
            with torch.inference_mode():
                own = llm(torch.from_numpy(texts.text(row))[None]).logits[0].argmax(-1).numpy()
            at = records.position[row]
            assert np.array_equal(records.choice[row] == 1, own[at - 1] == records.token[row])


def test_measuring_given_texts_asks_about_the_drafts():
    slm, llm = pair()
    given = make_prompts(VOCAB, 4, least=8, most=16)
    texts = TextBatch(given, np.arange(4), given=True)
    setup = build(slm, llm, RandomPolicy(0.3))
    traffic = Traffic()
    records = setup.router.score(texts, np.full(4, 2), traffic)
    read_unseen(setup.uplink.sender, texts, records, traffic)
    for row, text in enumerate(given):
        with torch.inference_mode():
            own = llm(torch.from_numpy(text)[None]).logits[0].argmax(-1).numpy()
        count = len(text) - 2
        wanted = own[1:-1] == records.draft[row, :count]
        assert np.array_equal(records.draft_choice[row, :count] == 1, wanted)


def test_a_link_that_is_down_leaves_tokens_unresolved():
    slm, llm = pair()
    prompts = make_prompts(VOCAB, 5)
    setup = build(slm, llm, ThresholdPolicy(-1), pause=100.0)
    setup.link.down = True
    texts, records, traffic = setup.generate(prompts, STEPS)
    for row, prompt in enumerate(prompts):
        assert new_part(texts, row) == own_text(slm, prompt, STEPS)
    assert records.stage_counts()["unresolved"] == records.tokens
    assert traffic.failures == setup.link.calls == 1  # after that the server is left alone


def test_a_link_that_comes_back_is_used_again():
    slm, llm = pair()
    prompts = make_prompts(VOCAB, 5)
    setup = build(slm, llm, ThresholdPolicy(-1))
    setup.link.fail_at = {4, 5}
    texts, records, traffic = setup.generate(prompts, STEPS)
    counts = records.stage_counts()
    assert counts["unresolved"] == 2 * 5
    assert traffic.failures == 2
    # From the gap on, the text goes on as the LLM would have continued the text as it is.
    for row in range(5):
        text = texts.text(row)
        resumed = int(texts.prompt_lengths[row]) + 5
        assert text[resumed:].tolist() == own_text(llm, text[:resumed], STEPS - 5)


def test_a_text_too_long_for_the_server_goes_on_locally():
    slm, llm = pair()
    prompts = make_prompts(VOCAB, 2, least=10, most=11)
    setup = build(slm, llm, ThresholdPolicy(-1), context=14)
    _, records, _ = setup.generate(prompts, STEPS)
    counts = records.stage_counts()
    assert counts["unresolved"] > 0
    assert counts["llm_accepted"] + counts["llm_resampled"] > 0


def test_several_rows_of_a_dropped_text_bring_its_prefix_once():
    slm, llm = pair()
    prompts = make_prompts(VOCAB, 4, least=10, most=16)
    found = []
    for sessions in (64, 2):
        setup = build(slm, llm, RandomPolicy(0.4), sessions=sessions)
        texts = TextBatch(prompts, np.arange(4), given=True)
        records = setup.router.score(texts, np.full(4, 2), Traffic())
        read_unseen(setup.uplink.sender, texts, records, Traffic())
        assert (records.choice[records.present] >= 0).all()
        found.append(records.token[records.present])
    assert np.array_equal(*found)
    assert setup.engine.stats.evictions > 0


@pytest.mark.parametrize("client", [0, 5, 2**32 - 1])
def test_device_and_server_key_their_draws_alike(client):
    llm = random_model("llama", 2)
    setup = build(llm, llm, FixedPolicy(kept=False), SAMPLED)
    setup.router.config = replace(setup.router.config, client=client)
    setup.uplink.sender.config = replace(setup.uplink.config, client=client)
    sessions = np.array([0, 9, 2**32 - 1])
    _, records, _ = setup.generate(make_prompts(VOCAB, 3), 6, sessions)
    # One model, the same clocks: whatever the device draws is what the server draws.
    assert (records.stage == Stage.LLM_ACCEPTED).all() and (records.choice == 1).all()
