"""A device that serves text: routed as in a run, stored without text, policies taken up."""

from __future__ import annotations

import json

import numpy as np
import pytest

from clients.learning.feedback_store import FeedbackStore
from clients.records import Stage
from fedhlm_app.client.feedback_folder import (
    FeedbackFolder,
    ServedPolicy,
    TextNote,
    digest,
    made_with,
)
from fedhlm_app.client.prompted import Ask, BadPrompt
from fedhlm_app.client.take_back import take_back
from fedhlm_app.models.vocabulary import load_tokenizer
from fedhlm_app.serve_device.service import DeviceService
from tests.fedhlm_app.serve_device.devices import PROMPT, Down, served, settings, written


def test_answers_say_who_decided_each_token(llm):
    answer = written(served(llm, escalation="token"), PROMPT, 20)
    assert 1 <= len(answer.tokens) <= 20
    assert answer.ended or len(answer.tokens) == 20
    assert sum(answer.stages.values()) == len(answer.tokens)
    decided = answer.stages["llm_accepted"] + answer.stages["llm_resampled"]
    assert answer.stages["local"] > 0 and decided > 0
    assert answer.routed.traffic.uplink > 0 and answer.routed.traffic.downlink > 0
    assert (answer.threshold, answer.policy.server_round) == (0.3, 0)
    chosen = answer.routed.records[0].token[0, : len(answer.tokens)]
    assert answer.text == load_tokenizer().decode(chosen, skip_special_tokens=True)


def test_a_device_that_keeps_nothing_writes_what_the_llm_writes(llm):
    escalating = written(served(llm, policy="never"), PROMPT, 12)
    alone = written(served(llm, policy="always"), PROMPT, 12)
    assert escalating.stages["local"] == 0 == alone.routed.traffic.uplink
    assert escalating.threshold is alone.threshold is None
    assert {token.stage for token in alone.tokens} == {Stage.LOCAL}
    assert written(served(llm, policy="never"), PROMPT, 12).text == escalating.text != alone.text


def test_a_text_that_ends_is_told_while_others_go_on(llm):
    texts, told = served(llm), []
    prompt = texts.device.read_prompt(PROMPT, 8)
    asks = [
        Ask(prompt, most, at, lambda token, most=most: told.append(most), told.append)
        for at, most in enumerate((8, 2))
    ]
    longer, shorter = texts.answer(asks)
    early = next(one for one in told if not isinstance(one, int))
    assert (early.tokens, early.ended) == (shorter.tokens, False)
    assert told[told.index(early) :].count(8) == 6
    assert longer.text.startswith(shorter.text)


def test_without_the_llm_text_goes_on_and_says_so():
    texts = served(None, transport=Down())
    answer = written(texts, PROMPT, 12)
    assert answer.stages["unresolved"] > 0 == answer.stages["llm_accepted"]
    assert len(answer.tokens) == sum(answer.stages.values())
    assert texts.device.uplink.link.asleep


def test_the_store_holds_feedback_and_no_text(llm, tmp_path):
    texts = served(llm, FeedbackFolder(tmp_path))
    prompts = [texts.device.read_prompt(f"{PROMPT} number {number}", 8) for number in range(3)]
    answers = texts.answer([Ask(prompt, 8, texts.session(None)) for prompt in prompts])
    texts.close()
    with FeedbackStore(FeedbackFolder(tmp_path).store_file) as store:
        feedback, lines = store.read()
    assert len(feedback) == sum(len(answer.tokens) for answer in answers)
    assert list(lines) == [1, 2, 3]
    notes = [TextNote.from_json(line) for line in lines.values()]
    for answer, note in zip(answers, notes, strict=True):
        assert note.made == made_with(settings())
        assert note.policy == digest({"threshold": np.array([0.3])})
        assert not note.read
        assert note.figures["tokens"] == len(answer.tokens)
        assert note.figures["llm-accepted"] == answer.stages["llm_accepted"]
        assert note.figures["bytes-uplink"] == answer.routed.traffic.uplink
    # Escalated tokens are known; what the LLM was not told of is not.
    assert feedback.known[~feedback.kept].all()
    assert not feedback.known.all()
    tokenizer = load_tokenizer()
    raw = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    words = {word for answer in answers for word in answer.text.split() if len(word) > 5}
    assert words
    for word in words | {"airline", "minister"}:
        assert word.encode() not in raw
    ids = tokenizer(PROMPT, add_special_tokens=False)["input_ids"]
    for dtype in ("<i8", "<i4", "<i2"):
        assert np.array(ids, dtype).tobytes() not in raw


def test_numbers_of_texts_go_on_after_a_restart(llm, tmp_path):
    folder = FeedbackFolder(tmp_path)
    sampled = {"decoding": "sampled"}
    first = served(llm, folder, **sampled)
    texts = [written(first, PROMPT, 12).text for _ in range(2)]
    first.close()
    second = served(llm, folder, **sampled)
    texts.append(written(second, PROMPT, 12).text)
    second.close()
    # Draws are keyed by the text's number: one that came twice would repeat a text.
    assert len(set(texts)) == 3
    with FeedbackStore(folder.store_file) as store:
        assert list(store.read()[1]) == [1, 2, 3]


def test_a_new_policy_is_taken_up_without_restart(llm, tmp_path):
    folder = FeedbackFolder(tmp_path)
    texts = served(llm, folder)
    assert written(texts, PROMPT, 6).threshold == 0.3
    folder.write_policy(
        ServedPolicy({"threshold": np.array([-1.0])}, 4, made=made_with(settings()))
    )
    answer = written(texts, PROMPT, 6)
    assert (answer.threshold, answer.policy.server_round) == (-1.0, 4)
    assert answer.stages["local"] == 0
    restarted = served(llm, folder)
    assert (restarted.threshold, restarted.policy.server_round) == (-1.0, 4)
    folder.policy_file.unlink()
    assert written(texts, PROMPT, 6).threshold == -1.0
    for one in (texts, restarted):
        one.close()


def test_a_policy_of_the_version_before_has_no_counts(llm, tmp_path):
    texts = served(llm, FeedbackFolder(tmp_path), escalation="span")
    made = made_with(texts.settings)
    policy = {"version": 2, "arrays": {"threshold": [0.2]}, "server_round": 1, "made": made}
    (tmp_path / "policy.json").write_text(json.dumps(policy))
    assert written(texts, PROMPT, 6).threshold == 0.2
    assert texts.device.spans.rule is take_back(texts.settings)
    counts = [0.0, 10, 5, 5, 10, 300]
    policy |= {"version": 3, "take_back": counts}
    (tmp_path / "policy.json").write_text(json.dumps(policy))
    written(texts, PROMPT, 6)
    assert texts.device.spans.rule is take_back(texts.settings, counts)
    assert texts.device.spans.rule is not take_back(texts.settings)
    texts.close()


def policy_file(chosen, **arrays):
    return json.dumps({"version": 3, "arrays": arrays, "made": made_with(chosen)})


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("no JSON", "no policy"),
        ('{"version": 3, "arrays": {"threshold": [NaN]}}', "finite"),
        ('{"version": 2, "arrays": {"threshold": [[0.1]]}}', "finite"),
        ('{"version": 2, "arrays": {"threshold": [0.1]}, "colour": 1}', "no policy"),
        ('["arrays"]', "no policy"),
        ('{"parameters": [0.1], "server_round": 1}', "version 1, allowed: 2 and 3; delete"),
        ('{"version": 3, "arrays": {}, "take_back": [1, 2]}', "2 numbers; allowed: 6"),
        ('{"version": 3, "arrays": {}, "take_back": [1, -2, 0, 0, 0, 0]}', "finite and >= 0"),
        ('{"version": 3, "arrays": {}, "take_back": [1, NaN, 0, 0, 0, 0]}', "finite and >= 0"),
        (policy_file(settings(), threshold=[0.1], dual=[4.0]), "allowed: threshold [1]"),
        (
            policy_file(settings(uncertainty="entropy"), threshold=[0.1]),
            "uncertainty = 'entropy' there and 'closed-form' here",
        ),
    ],
)
def test_a_policy_that_cannot_be_used_is_told_and_left(llm, tmp_path, content, why):
    texts = served(llm, FeedbackFolder(tmp_path))
    (tmp_path / "policy.json").write_text(content)
    assert written(texts, PROMPT, 2).threshold == 0.3
    assert why in texts.policy_problem
    good = ServedPolicy({"threshold": np.array([0.2])}, 1, made=made_with(settings()))
    texts.folder.write_policy(good)
    assert written(texts, PROMPT, 2).threshold == 0.2
    assert texts.policy_problem == ""
    texts.close()


@pytest.mark.parametrize("rule", ["certified", "linear"])
def test_rules_that_calibrate_have_kept_tokens_read(llm, tmp_path, rule):
    texts = served(llm, FeedbackFolder(tmp_path), learning=rule, free_feedback=False)
    if rule == "certified":
        # Before there is a guarantee nothing is kept.
        assert texts.threshold == -1.0
        assert written(texts, PROMPT, 6).stages["local"] == 0
        made, given = made_with(texts.settings), {"threshold": np.array([0.9])}
        texts.folder.write_policy(ServedPolicy(given, 1, read=True, made=made))
    answer = written(texts, PROMPT, 12)
    assert answer.stages["local"] > 0
    with FeedbackStore(texts.folder.store_file) as store:
        feedback, lines = store.read(1 if rule == "certified" else 0)
    (line,) = lines.values()
    note = TextNote.from_json(line)
    assert note.read and note.figures["read"] > 0
    assert feedback.kept.any() and feedback.known.all()
    texts.close()
    # Without a store nobody would learn from it.
    assert not served(llm, learning=rule).policy.read


def test_a_full_disk_costs_the_feedback_and_not_the_text(llm, tmp_path):
    texts = served(llm, FeedbackFolder(tmp_path))
    written(texts, PROMPT, 4)
    (stored,) = texts._store._connection.execute("PRAGMA page_count").fetchone()
    texts._store._connection.execute(f"PRAGMA max_page_count = {stored}")
    while not texts.store_problem:
        before = len(texts._store)
        assert written(texts, PROMPT, 40).tokens
    assert texts.store_problem == "database or disk is full"
    assert texts.counts["not-stored"] == 1 and len(texts._store) == before
    texts._store._connection.execute("PRAGMA max_page_count = 100000")
    assert len(written(texts, PROMPT, 4).tokens) == len(texts._store) - before
    assert not texts.store_problem
    texts.close()


def test_a_cache_answers_what_was_asked_before(llm):
    texts = served(llm, cache_mode="context", initial_threshold=-1.0)
    first, second = (written(texts, PROMPT, 8) for _ in range(2))
    assert first.text == second.text
    assert second.stages["cache"] > first.stages["cache"]


def test_what_a_serving_device_cannot_follow_is_refused(llm, tmp_path):
    with pytest.raises(ValueError, match="'peer-mode' = 'context'"):
        served(llm, peer_mode="context")
    with pytest.raises(ValueError, match="no such folder"):
        FeedbackFolder(tmp_path / "missing")
    texts = served(llm)
    with pytest.raises(BadPrompt, match="must be at most 128 together"):
        written(texts, PROMPT, 120)
    with pytest.raises(BadPrompt, match="128 together"):
        written(texts, "word " * 400, 1)
    with pytest.raises(ValueError, match="queue = 0"):
        DeviceService(texts, 0)
