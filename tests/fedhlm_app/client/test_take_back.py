"""When the devices of a run take texts back, and what rounds learn from text made so."""

from __future__ import annotations

import numpy as np
import pytest

from clients.policy import ThresholdPolicy
from clients.records import Stage
from fedhlm_app.client import rounds as client_rounds
from fedhlm_app.client.device import Device
from fedhlm_app.client.feedback_folder import difference, made_with
from fedhlm_app.client.routed import feedback_of, figures
from fedhlm_app.client.take_back import (
    RUN_COUNTS,
    learns_take_back,
    run_counts,
    span_costs,
    take_back,
)
from fedhlm_app.hosting.llm import build_service
from fedhlm_app.transport.transports import DirectTransport
from hlm.spans import AT_ONCE, NEVER, checked_counts, count_runs
from tests.fedhlm_app.in_process import Runner, settings_of

LONG_RUNS = [0.0, 10, 5, 5, 10, 300]


@pytest.fixture(scope="module")
def service():
    return build_service(settings_of())


def device(service, **changes) -> Device:
    changes = {"learning": "balanced", "escalation": "span", "tokens_per_round": 60, **changes}
    return Device(settings_of(**changes), 0, DirectTransport(service))


def test_rules_are_of_settings_and_counts():
    settings = settings_of(escalation="span", learning="balanced", tokens_per_prompt=20)
    assert span_costs(settings).break_even == pytest.approx(65 / 35)
    assert take_back(settings).ahead == 2
    assert take_back(settings, LONG_RUNS).reads_along
    assert take_back(settings, [5.0, 0, 200, 0, 0, 0]) is NEVER
    far = settings_of(escalation="span", learning="balanced", llm_round_trip=2000.0)
    assert take_back(far) is NEVER
    # It asks nobody, so nobody writes its texts.
    kept = far.model_copy(update={"policy": "always", "learning": "none"})
    assert take_back(kept) is AT_ONCE


@pytest.mark.parametrize(("trip", "pace", "tokens"), [(60.0, 40.0, 6), (60.0, 8.5, 18), (0, 20, 2)])
def test_the_window_keeps_the_server_busy_while_credit_travels(trip, pace, tokens):
    costs = span_costs(settings_of(llm_round_trip=trip, llm_pace=pace))
    assert costs.window == tokens
    # Half of it is used when the device raises its credit.
    assert costs.window / 2 * pace >= trip + pace - 1e-9


@pytest.mark.parametrize(
    ("changes", "learns"),
    [
        ({"learning": "balanced"}, True),
        ({"learning": "none"}, True),
        ({}, False),
        ({"learning": "certified"}, False),
        ({"learning": "balanced", "escalation": "token"}, False),
        ({"learning": "balanced", "workload": "score"}, False),
    ],
)
def test_a_certified_threshold_holds_for_one_rule(changes, learns):
    assert learns_take_back(settings_of(**{"escalation": "span", **changes})) == learns


def test_counts_are_of_every_place(service):
    routed = device(service).train_round(ThresholdPolicy(0.5), 1)
    counts = run_counts(routed)
    assert tuple(counts) == RUN_COUNTS and sum(counts.values()) == 60
    found = checked_counts([counts[name] for name in RUN_COUNTS])
    expected = sum(count_runs(one.sure, one.present.sum(axis=1)) for one in routed.records)
    assert np.array_equal(found, expected)
    sums = figures(routed, settings_of())
    assert sums["streams"] > 0 and sums["llm-decoded"] - sums["llm-overshot"] == sums["escalated"]


def test_feedback_of_streamed_drafts(service):
    """All that the LLM decided is known; kept ones as before: by the next prefix, or not yet."""
    one = device(service)
    routed = one.train_round(ThresholdPolicy(0.5), 1)
    feedback = feedback_of(routed, one.settings)
    records = routed.records
    at = [(r.present, r) for r in records]
    kept = np.concatenate([r.kept[p] for p, r in at])
    wrong = np.concatenate([(r.draft != r.token)[p] for p, r in at])
    sure = np.concatenate([r.sure[p] for p, r in at])
    assert np.array_equal(feedback.kept, kept) and (sure & ~kept).any()
    assert feedback.known[~kept].all()
    assert np.array_equal(feedback.beta[~kept], wrong[~kept].astype(float))


def test_audits_stand_for_what_was_kept_and_the_rest_for_itself(service):
    one = device(service, audit_rate=0.5, tokens_per_round=200, tokens_per_prompt=20)
    routed = one.train_round(ThresholdPolicy(0.6), 1)
    feedback = feedback_of(routed, one.settings)
    assert set(feedback.weight[feedback.kept].tolist()) == {0.0, 2.0}
    assert (feedback.weight[~feedback.kept] == 1).all() and feedback.known[~feedback.kept].all()
    # In expectation each token counts once.
    kept = int(feedback.kept.sum())
    assert abs(feedback.weight[feedback.known].sum() - len(feedback)) < 6 * np.sqrt(kept)


def test_reading_for_a_guarantee_asks_about_kept_tokens_alone(service):
    options = {"learning": "certified-high-probability", "tokens_per_round": 200}
    one = device(service, fidelity_budget=0.4, **options)
    routed = one.train_round(ThresholdPolicy(0.7), 1, calibrate=True)
    feedback = feedback_of(routed, one.settings)
    assert feedback.known.all()
    kept = sum(int(records.kept.sum()) for records in routed.records)
    assert 0 < routed.read <= kept


def test_rounds_hear_of_the_counts_of_the_round_before(tmp_path, monkeypatch):
    runner = Runner(monkeypatch)
    heard = []
    monkeypatch.setattr(Device, "heard", lambda self, counts: heard.append(list(counts)))
    federation, run, _ = runner.run(tmp_path, escalation="span", learning="balanced", rounds=3)
    assert heard[:4] == [[]] * 4
    assert sum(heard[4]) == sum(heard[8]) == 4 * 20 and heard[4:8] == [heard[4]] * 4
    assert heard[4] != heard[8] and sum(federation.progress.take_back) == 80
    summary = run.summary()
    assert summary["exchanges"]["streams"] > 0
    asked = summary["resolution"]["llm_accepted"] + summary["resolution"]["llm_resampled"]
    assert summary["exchanges"]["decoded"] - summary["exchanges"]["overshot"] == asked


@pytest.mark.parametrize(
    ("name", "lie", "reason"),
    [
        (RUN_COUNTS[0], -1, "bad-metric"),
        (RUN_COUNTS[3], 21, "bad-metric"),
        (RUN_COUNTS[5], float("nan"), "not-finite"),
        (RUN_COUNTS[5], [1, 2], "bad-metric"),
    ],
)
def test_a_device_that_lies_about_its_drafts_is_refused(tmp_path, monkeypatch, name, lie, reason):
    told = client_rounds.run_counts
    honest: list[float] = []

    def lying(routed):
        found = told(routed)
        if len(honest) == 6 * 3:
            return {**found, name: lie}
        honest.extend(found.values())
        return found

    monkeypatch.setattr(client_rounds, "run_counts", lying)
    runner = Runner(monkeypatch)
    federation, run, _ = runner.run(tmp_path, escalation="span", learning="balanced", rounds=1)
    assert run.metrics()[0]["refused"] == {"3": reason} and run.summary()["refused"] == {reason: 1}
    assert sum(federation.progress.take_back) == sum(honest) == 3 * 20


def test_text_made_with_streams_is_not_text_made_without():
    plain = made_with(settings_of())
    spans = made_with(settings_of(escalation="span"))
    assert "escalation" in difference(spans, plain) and "escalation" in difference(plain, spans)
    assert "llm-pace" in difference(spans, made_with(settings_of(escalation="span", llm_pace=9.0)))


def test_the_whole_answer_is_written_where_nothing_is_taken_back(service):
    one = device(service, llm_round_trip=2000.0)
    (records,) = one.train_round(ThresholdPolicy(0.9), 1).records
    assert records.sure.any() and not records.kept.any()
    decided = records.stage[records.present]
    assert set(decided.tolist()) <= {Stage.LLM_ACCEPTED, Stage.LLM_RESAMPLED}
