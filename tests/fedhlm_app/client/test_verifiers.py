from __future__ import annotations

import numpy as np
import pytest

from clients.policy import RandomPolicy
from clients.records import Stage
from fedhlm_app.client.verifiers import verifier_of
from fedhlm_app.settings import Settings
from hlm.line import UncertaintyLine
from hlm.truncation.count_rules import FixedCount, OnlineCount
from hlm.verification import VERIFIERS
from hlm.verification.truncated import Truncated, TruncatedExact
from hlm.wire import decode_request
from tests.models import VOCAB, random_model
from tests.routed import GREEDY, SAMPLED, Link, build, make_prompts

STEPS = 10


def routed(method, sampling=SAMPLED, *, seed=7):
    """Texts of six prompts under a verifier instance, and every request that went up."""
    setup = build(
        random_model("llama", 1),
        random_model("llama", 2),
        RandomPolicy(0.5),
        sampling,
        method.name,
        seed=seed,
    )
    setup.router.verifier = setup.uplink.verifier = method
    requests = []

    class Recorder(Link):
        def exchange(self, payload):
            requests.append(decode_request(payload))
            return super().exchange(payload)

    setup.uplink.link.transport = Recorder(setup.link.service)
    texts, records, traffic = setup.generate(make_prompts(VOCAB, 6), STEPS)
    return texts, records, traffic, requests


METHODS = {
    **VERIFIERS,
    "truncated k=3": lambda: Truncated(3),
    "truncated-exact k=1": lambda: TruncatedExact(1),
}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_decides_over_the_wire_and_repeats(name):
    sampling = GREEDY if name == "greedy" else SAMPLED
    texts, records, traffic, requests = routed(METHODS[name](), sampling)
    decided = np.isin(records.stage, (Stage.LLM_ACCEPTED, Stage.LLM_RESAMPLED))
    assert np.array_equal(decided, records.escalated)
    assert 0.3 < records.escalated.mean() < 0.7
    assert (records.token[records.stage == Stage.LLM_ACCEPTED] >= 0).all()
    kept = records.stage != Stage.LLM_RESAMPLED
    assert np.array_equal(records.token[kept], records.draft[kept])
    assert {request.verifier for request in requests} == {METHODS[name]().name}
    again, _, same, _ = routed(METHODS[name](), sampling)
    assert np.array_equal(texts.tokens, again.tokens)
    assert (traffic.uplink, traffic.downlink) == (same.uplink, same.downlink)
    if sampling is SAMPLED:
        other, *_ = routed(METHODS[name](), sampling, seed=8)
        assert not np.array_equal(texts.tokens, other.tokens)


@pytest.mark.parametrize(("count", "expected"), [(1, 1), (5, 5), (VOCAB, VOCAB - 1)])
def test_truncation_k_is_what_goes_up(count, expected):
    *_, requests = routed(Truncated(count))
    sizes = {int(size) for request in requests for size in request.rows.counts}
    assert sizes == {expected}


def test_a_wider_tolerance_uploads_less():
    sizes = []
    for theta in (0.01, 0.2, 0.8):
        *_, requests = routed(Truncated(0, theta))
        sizes.append(sum(len(request.rows.support) for request in requests))
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[2]


def test_settings_choose_the_rule():
    sampled = {"decoding": "sampled", "verification": "truncated"}
    fixed = verifier_of(Settings.from_sources({**sampled, "truncation-k": 4}, {}))
    assert isinstance(fixed, Truncated)
    assert fixed.rule == FixedCount(4)
    online = verifier_of(
        Settings.from_sources({**sampled, "theta-tv": 0.25}, {}),
        line=UncertaintyLine(0.9, -0.1, 0.5),
    )
    assert online.rule == OnlineCount(0.25, 0.9, -0.1)
    assert verifier_of(Settings.from_sources({}, {})).name == "greedy"
    assert verifier_of(Settings.from_sources({"decoding": "sampled"}, {})).name == "coupled"


def test_wrong_parameters_are_refused_by_name():
    with pytest.raises(ValueError, match=r"truncation-k = -1"):
        Truncated(-1)
    with pytest.raises(ValueError, match=r"theta_tv = -0.5"):
        Truncated(0, -0.5)
