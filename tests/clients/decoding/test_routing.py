from __future__ import annotations

import numpy as np
import pytest
import torch

from clients.policy import FixedPolicy, RandomPolicy, ThresholdPolicy
from clients.records import Stage, TextBatch, Traffic
from tests.models import ARCHITECTURES, VOCAB, random_model
from tests.routed import GREEDY, SAMPLED, build, make_prompts, new_part, own_text

STEPS = 12


def pair(architecture="llama"):
    return random_model(architecture, 1), random_model(architecture, 2)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_below_zero_the_text_is_the_llms_own(architecture):
    slm, llm = pair(architecture)
    prompts = make_prompts(VOCAB)
    texts, records, _ = build(slm, llm, ThresholdPolicy(-0.5)).generate(prompts, STEPS)
    for row, prompt in enumerate(prompts):
        assert new_part(texts, row) == own_text(llm, prompt, STEPS)
    counts = records.stage_counts()
    assert counts["llm_accepted"] + counts["llm_resampled"] == records.tokens == 5 * STEPS


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_from_one_on_the_text_is_the_slms_own(architecture):
    slm, llm = pair(architecture)
    prompts = make_prompts(VOCAB)
    setup = build(slm, llm, ThresholdPolicy(1.0))
    texts, records, traffic = setup.generate(prompts, STEPS)
    for row, prompt in enumerate(prompts):
        assert new_part(texts, row) == own_text(slm, prompt, STEPS)
    assert records.stage_counts()["local"] == records.tokens
    assert traffic.uplink == traffic.messages == setup.link.calls == 0


def test_texts_end_at_their_end_token():
    slm, llm = pair()
    prompts = make_prompts(VOCAB, 6)
    ends = [own_text(llm, prompt, STEPS)[3] for prompt in prompts]
    setup = build(slm, llm, ThresholdPolicy(-1), end_tokens=frozenset(ends))
    texts, records, _ = setup.generate(prompts, STEPS)
    for row, prompt in enumerate(prompts):
        expected = own_text(llm, prompt, STEPS, eos_token_id=sorted(set(ends)))
        assert new_part(texts, row) == expected
    assert records.tokens == sum(len(new_part(texts, row)) for row in range(6)) < 6 * STEPS


def test_lockstep_equals_one_prompt_at_a_time():
    slm, llm = pair("qwen2")
    prompts = make_prompts(VOCAB)
    together, _, _ = build(slm, llm, ThresholdPolicy(0.5)).generate(prompts, STEPS)
    for row, prompt in enumerate(prompts):
        alone, _, _ = build(slm, llm, ThresholdPolicy(0.5)).generate(
            [prompt], STEPS, np.array([row])
        )
        assert new_part(alone, 0) == new_part(together, row)


@pytest.mark.parametrize("verifier", ["coupled", "full"])
def test_sampled_runs_repeat_and_differ_by_seed(verifier):
    slm, llm = pair()
    prompts = make_prompts(VOCAB)
    made = [
        build(slm, llm, ThresholdPolicy(0.5), SAMPLED, verifier, seed=seed).generate(
            prompts, STEPS
        )[0]
        for seed in (3, 3, 4)
    ]
    assert np.array_equal(made[0].tokens, made[1].tokens)
    assert not np.array_equal(made[0].tokens, made[2].tokens)


def test_one_message_carries_all_uncertain_rows_of_a_step():
    slm, llm = pair()
    setup = build(slm, llm, ThresholdPolicy(-1))
    _, _, traffic = setup.generate(make_prompts(VOCAB, 8), STEPS)
    assert traffic.messages == setup.link.calls == STEPS


def test_stages_sum_to_the_tokens_for_every_policy():
    slm, llm = pair()
    for policy in (
        FixedPolicy(True), FixedPolicy(False), RandomPolicy(0.4), ThresholdPolicy(0.6),
    ):  # fmt: skip
        _, records, _ = build(slm, llm, policy).generate(make_prompts(VOCAB), STEPS)
        assert sum(records.stage_counts().values()) == records.tokens == 5 * STEPS


def test_the_random_policy_escalates_its_share():
    slm, llm = pair()
    _, records, _ = build(slm, llm, RandomPolicy(0.4)).generate(make_prompts(VOCAB, 40), 20)
    share = records.escalated[records.present].mean()
    # 800 tokens: six standard deviations are .104.
    assert abs(share - 0.4) < 0.104


def test_audits_verify_kept_tokens():
    slm, llm = pair()
    _, records, _ = build(slm, llm, ThresholdPolicy(1.0), audit_rate=0.3).generate(
        make_prompts(VOCAB, 40), 20
    )
    assert records.kept[records.present].all()
    audited = records.audited[records.present]
    assert abs(audited.mean() - 0.3) < 6 * np.sqrt(0.21 / 800)
    verified = np.isin(records.stage, [Stage.LLM_ACCEPTED, Stage.LLM_RESAMPLED])
    assert np.array_equal(verified & records.present, records.audited)


def test_scoring_leaves_the_context_alone():
    slm, llm = pair("gpt2")
    given = make_prompts(VOCAB, 6, least=8, most=20)
    first = np.array([3, 1, 4, 2, 5, 6])
    tables = []
    for threshold in (-1.0, 0.5, 1.0):
        texts = TextBatch(given, np.arange(6), given=True)
        setup = build(slm, llm, ThresholdPolicy(threshold))
        records = setup.router.score(texts, first, Traffic())
        for row, text in enumerate(given):
            assert texts.text(row).tolist() == text.tolist()
            with torch.inference_mode():
                own = llm(torch.from_numpy(text)[None]).logits[0].argmax(-1).numpy()
                draft = slm(torch.from_numpy(text)[None]).logits[0].argmax(-1).numpy()
            count = len(text) - first[row]
            assert records.present[row].sum() == count
            assert records.draft[row, :count].tolist() == draft[first[row] - 1 : -1].tolist()
            kept = records.kept[row, :count]
            expected = np.where(kept, draft[first[row] - 1 : -1], own[first[row] - 1 : -1])
            assert records.token[row, :count].tolist() == expected.tolist()
        tables.append(records.draft)
    assert np.array_equal(tables[0], tables[1])
    assert np.array_equal(tables[1], tables[2])


def test_eq3_uses_the_softmax_in_greedy_decoding():
    slm, llm = pair()
    prompts = make_prompts(VOCAB, 3)
    texts, records, _ = build(slm, llm, ThresholdPolicy(-1), GREEDY).generate(prompts, 4)
    for row in range(3):
        for step in range(4):
            context = texts.text(row)[: records.position[row, step]]
            with torch.inference_mode():
                x = slm(torch.from_numpy(context)[None]).logits[0, -1].softmax(-1)
                y = llm(torch.from_numpy(context)[None]).logits[0, -1].log_softmax(-1)
            draft = records.draft[row, step]
            assert records.probability[row, step] == pytest.approx(float(x[draft]), abs=1e-4)
            # One byte: steps of 1/8 nat, down to -127/8.
            expected = max(float(y[draft]), -127 / 8)
            assert records.log_prob[row, step] == pytest.approx(expected, abs=1 / 16 + 1e-3)
            assert records.draft_choice[row, step] == int(y.argmax() == draft)
