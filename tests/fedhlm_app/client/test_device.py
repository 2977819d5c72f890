from __future__ import annotations

import numpy as np
import pytest

from clients.policy import ThresholdPolicy
from clients.records import TokenRecords
from fedhlm_app.client.device import Device
from fedhlm_app.client.inference import uncertainty_of
from fedhlm_app.client.routed import Routed, feedback_of
from fedhlm_app.hosting.llm import build_service
from fedhlm_app.settings import Settings
from fedhlm_app.transport.transports import DirectTransport


def settings(**changes) -> Settings:
    given = {"clients": 4, "clusters": 2, "tokens-per-round": 30, **changes}
    return Settings.from_sources({k.replace("_", "-"): v for k, v in given.items()}, {})


@pytest.fixture(scope="module")
def service():
    return build_service(settings())


def device(service, client=0, **changes) -> Device:
    return Device(settings(**changes), client, DirectTransport(service))


@pytest.mark.parametrize("workload", ["generate", "score", "classify"])
def test_a_round_routes_exactly_its_tokens(service, workload):
    routed = device(service, workload=workload).train_round(ThresholdPolicy(0.5), 1)
    assert sum(records.tokens for records in routed.records) == 30
    counts = [sum(records.stage_counts().values()) for records in routed.records]
    assert sum(counts) == 30
    assert (routed.answered > 0) == (workload != "generate")


def test_a_round_repeats_and_rounds_differ(service):
    def tokens(server_round):
        routed = device(service).train_round(ThresholdPolicy(0.5), server_round)
        return np.concatenate([records.token.ravel() for records in routed.records])

    assert np.array_equal(tokens(1), tokens(1))
    assert not np.array_equal(tokens(1), tokens(2))


def test_training_and_held_out_texts_are_apart(service):
    one = device(service)
    assert not set(one.train_rows) & set(one.held_out_rows)
    assert len(one.held_out_rows) > 0


def test_what_was_measured_for_the_report_is_not_learned_from(service):
    one = device(service)
    routed = one.train_round(ThresholdPolicy(0.9), 1)
    feedback = feedback_of(routed, one.settings)
    assert len(feedback) == 30
    told = sum(int((r.choice >= 0).sum() - r.measured_only.sum()) for r in routed.records)
    assert feedback.known.sum() <= told < 30
    # Yet the report knows every place.
    assert all((r.choice[r.present] >= 0).all() for r in routed.records)


def test_evaluation_repeats(service):
    one = device(service)
    first, second = (one.evaluate(ThresholdPolicy(0.5)).records[0] for _ in range(2))
    assert np.array_equal(first.token, second.token)


def test_classify_knows_which_labels_are_right(service):
    one = device(service, workload="classify", tokens_per_round=60)
    routed = one.train_round(ThresholdPolicy(-1), 1)
    assert routed.answered == 60
    # The large model labels 91 % of AG News rightly, and these items are plainer.
    assert routed.correct / routed.answered > 0.7


@pytest.mark.parametrize("measure", ["closed-form", "disagreement", "temperature-sweep", "entropy"])
def test_every_uncertainty_lies_in_the_unit_interval(service, measure):
    one = device(service, uncertainty=measure)
    records = one.train_round(ThresholdPolicy(0.5), 1).records[0]
    values = records.uncertainty[records.present]
    assert ((values >= 0) & (values <= 1)).all()
    assert len(np.unique(values)) > 3
    assert callable(uncertainty_of(one.settings))


def test_a_client_outside_the_run_is_refused(service):
    with pytest.raises(ValueError, match="partition-id = 4"):
        device(service, client=4)


def test_no_two_texts_of_a_run_share_a_number(service, monkeypatch):
    """A round of 5,000 texts, and the one after it: draws are keyed by these numbers."""
    one = device(service, tokens_per_round=5000, tokens_per_prompt=2)
    numbers = []

    def noted(policy, work, before, rows, *flags, **more):
        numbers.append(work.texts.sessions)
        records = TokenRecords(len(rows), 1)
        records.present[:] = True  # every text ends after its first token: as many as there can be
        return Routed([*before.records, records], before.traffic)

    monkeypatch.setattr(one, "_route", noted)
    for server_round in (1, 2, 3):
        one.train_round(ThresholdPolicy(0.5), server_round)
    one.evaluate(ThresholdPolicy(0.5))
    together = np.concatenate(numbers)
    assert len(together) == 15_000 + len(numbers[-1])
    assert len(np.unique(together)) == len(together)
    assert together.max() < 1 << 32
