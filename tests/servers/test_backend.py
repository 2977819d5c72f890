"""The service with a backend that tells top tokens only: what it can do, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

from clients.policy import FixedPolicy, ThresholdPolicy
from clients.resolvers.measuring import read_unseen
from hlm.verifiers import VERIFIERS, Need, served_verifiers
from hlm.wire import WireError, encode_request
from servers.llm import LanguageModelService
from tests.asking import request_of
from tests.models import VOCAB, random_model
from tests.routed import build, make_prompts
from tests.servers.top_tokens import TopTokens
from tests.streaming import CONTEXT, MODEL, Device, asked, own_text, prompts
from tests.wire_rows import Row


@pytest.mark.parametrize("sessions", [64, 2])
@pytest.mark.parametrize("policy", [FixedPolicy(kept=False), ThresholdPolicy(0.5)])
def test_greedy_text_and_feedback_are_those_of_the_engine(policy, sessions):
    slm, llm = random_model("llama", 1), random_model("llama", 2)
    found = []
    for other in (False, True):
        setup = build(slm, llm, policy, sessions=sessions)
        if other:
            setup.link.service = LanguageModelService(TopTokens(llm, sessions))
        texts, records, traffic = setup.generate(make_prompts(VOCAB, 4), 8)
        read_unseen(setup.uplink.sender, texts, records, traffic)
        found.append((texts.tokens, records, traffic))
    (tokens, records, traffic), (same, told, counted) = found
    assert (tokens == same).all() and traffic.failures == counted.failures == 0
    assert (records.choice == told.choice).all()
    assert (records.draft_choice == told.draft_choice).all()
    assert np.isfinite(told.log_prob[told.kept & told.present]).all()
    # A byte has eighths of a nat, and float sums differ in their last bits.
    assert np.nanmax(np.abs(records.log_prob - told.log_prob)) <= 1 / 8


@pytest.mark.parametrize(
    ("verifier", "decoding"), [("coupled", "sampled"), ("greedy", "sampled"), ("coupled", "greedy")]
)
def test_what_needs_distributions_is_refused_by_name(verifier, decoding):
    service = LanguageModelService(TopTokens(random_model("llama", 2)))
    request = request_of(verifier, [Row(0, 0, np.array([3, 4]), 5)], decoding=decoding)
    with pytest.raises(WireError, match=rf"verifier='{verifier}'.*it serves greedy"):
        service.handle(encode_request(request))


def test_verifiers_are_served_where_the_backend_offers_what_they_need():
    assert served_verifiers(Need.PROBS) == list(VERIFIERS)
    assert served_verifiers(Need.TOP) == ["greedy"]


def test_a_stream_is_the_llms_own_text():
    service = LanguageModelService(TopTokens(MODEL, context=CONTEXT))
    texts = prompts(3)
    device = Device(service, asked(texts, drafts=[3, 4, 5]), span=8).read_all()
    for index, text in enumerate(texts):
        assert device.text(index) == own_text(text, 9)
