"""The router with streams: whose text it is, whatever the window, the pace and the faults."""

from __future__ import annotations

import random
import threading
import time
from contextlib import closing
from queue import Queue

import numpy as np
import pytest
import torch

from clients.policy import FixedPolicy, ThresholdPolicy
from clients.records import Stage
from clients.resolvers.cache import CacheConfig, CacheResolver, TokenCache
from clients.resolvers.span_uplink import SpanUplink
from fedhlm_app.client.edge import token_embeddings
from fedhlm_app.transport.http_transport import HttpTransport
from fedhlm_app.transport.transports import DirectTransport
from hlm.spans import AT_ONCE, NEVER, ONE_BY_ONE, SpanCosts, TakeBack, certain, learned
from hlm.uncertainty import closed_form
from hlm.wire.frames import Frame, encode_frame
from hlm.wire.stream import decode_opening
from servers.engine.engine import Engine
from servers.llm import LanguageModelService
from tests.models import VOCAB, random_model
from tests.routed import GREEDY, SAMPLED, Link, build, make_prompts, new_part, own_text
from tests.served import serving

STEPS = 14
THRESHOLD = 0.6
SLM, LLM = random_model("llama", 1), random_model("llama", 2)
CERTAIN = certain(SpanCosts(40.0, 5.0, 60.0))
LEARNED = learned(np.array([[1.0, 2], [4, 5], [4, 6]]), SpanCosts(40.0, 5.0, 60.0), STEPS)
"""A rule that looks at two drafts, and one that looks at as many as it likes."""

RULES = {"at-once": AT_ONCE, "certain": CERTAIN, "learned": LEARNED, "never": NEVER}


def made(rule: TakeBack | None, sampling=GREEDY, rows=5, policy=None, **options):
    """Texts as lists of new tokens, records, traffic and what made them."""
    setup = build(SLM, LLM, policy or ThresholdPolicy(THRESHOLD), sampling, rule=rule, **options)
    texts, records, traffic = setup.generate(make_prompts(VOCAB, rows), STEPS)
    return [new_part(texts, row) for row in range(rows)], records, traffic, setup


class Hurried(Link):
    """The server writes ahead by itself, at a pace of its own, and hears of controls late."""

    def stream(self, payload):
        arriving: Queue[bytes] = Queue()
        pace = random.Random(payload)

        def write():
            with closing(super(Hurried, self).stream(payload)) as frames:
                for part in frames:
                    time.sleep(pace.choice((0, 0.001, 0.004)))
                    arriving.put(part)
            arriving.put(b"")

        writer = threading.Thread(target=write)
        writer.start()
        while part := arriving.get():
            time.sleep(pace.choice((0, 0.002)))
            yield part
        writer.join()


def test_the_rules_look_at_more_than_one_draft():
    assert CERTAIN.ahead == 2 and LEARNED.ahead > 1


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "coupled"])
@pytest.mark.parametrize("rows", [1, 20])
def test_taking_back_at_once_is_the_text_of_one_token_per_escalation(sampling, rows):
    texts, records, traffic, _ = made(AT_ONCE, sampling, rows)
    expected, plain, before, _ = made(None, sampling, rows)
    assert texts == expected
    for name in ("draft", "token", "stage", "uncertainty", "kept", "escalated", "choice"):
        assert np.array_equal(getattr(records, name), getattr(plain, name)), name
    assert traffic.streams <= before.messages
    assert before.decoded == records.escalated.sum() and before.overshot == 0
    alone, _, asked, _ = made(ONE_BY_ONE, sampling, rows)
    assert alone == expected
    assert (asked.uplink, asked.messages) == (before.uplink, before.messages)


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "coupled"])
def test_never_taking_back_is_the_llms_own_text(sampling):
    texts, records, traffic, _ = made(NEVER, sampling)
    assert texts == made(None, sampling, policy=FixedPolicy(False))[0]
    if sampling is GREEDY:
        assert texts == [own_text(LLM, prompt, STEPS) for prompt in make_prompts(VOCAB)]
    assert records.sure.any() and not records.kept.any()
    assert traffic.streams == 1 and traffic.decoded == 5 * STEPS and traffic.overshot == 0


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "coupled"])
def test_where_nothing_can_be_kept_and_nobody_learns_nothing_is_drafted(sampling, monkeypatch):
    expected, _, before, _ = made(NEVER, sampling)
    ends = frozenset({expected[0][4], expected[1][7]})
    shorter = made(NEVER, sampling, end_tokens=ends)[0]
    monkeypatch.setattr("clients.decoding.routing.ReadAhead", None)
    texts, records, traffic, _ = made(NEVER, sampling, drafts=False)
    assert texts == expected
    assert records.present.all() and (records.choice == 1).all() and (records.draft < 0).all()
    assert (traffic.streams, traffic.decoded) == (before.streams, before.decoded)
    assert traffic.uplink < before.uplink
    assert made(NEVER, sampling, drafts=False, end_tokens=ends)[0] == shorter


def test_what_nobody_drafts_is_asked_for_once_and_then_only_heard(monkeypatch):
    expected, before, _, _ = made(NEVER)
    asked, ask = [], SpanUplink.resolve

    def resolve(self, escalation):
        asked.append(len(escalation.rows))
        return ask(self, escalation)

    monkeypatch.setattr(SpanUplink, "resolve", resolve)
    texts, records, _, _ = made(NEVER, drafts=False)
    assert texts == expected and asked == [5]
    assert np.array_equal(records.position, before.position)
    assert (records.stage == Stage.LLM_RESAMPLED).all() and records.escalated.all()


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "coupled"])
@pytest.mark.parametrize("rule", ["at-once", "certain", "learned"])
def test_neither_window_nor_pace_is_in_the_text(rule, sampling):
    texts, records, _, _ = made(RULES[rule], sampling)
    assert 0 < records.kept.sum() <= records.sure.sum() < records.tokens
    for options in ({"window": 1}, {"window": 64}, {"window": 3, "link": Hurried}):
        other, same, traffic, setup = made(RULES[rule], sampling, **options)
        assert other == texts
        assert np.array_equal(same.stage, records.stage)
        assert traffic.decoded - traffic.overshot == records.escalated.sum()
        assert len(setup.link.service.streams) == 0


@pytest.mark.parametrize("rule", ["certain", "never"])
def test_over_http(rule):
    texts, _, _, setup = made(RULES[rule], SAMPLED)
    with serving(setup.link.service) as (port, _):
        with closing(HttpTransport(f"127.0.0.1:{port}", timeout=120)) as transport:
            again, records, traffic, _ = made(RULES[rule], SAMPLED, link=lambda service: transport)
    assert again == texts
    assert not records.unresolved.any() and traffic.failures == 0


def draft_of(context):
    """The small model's next draft, and whether it is sure of it, by a plain forward pass."""
    with torch.inference_mode():
        logits = SLM(torch.tensor([context])).logits[:, -1].float()
    draft = logits.argmax(-1)
    return int(draft), bool(closed_form(logits, draft, 1.0)[0] <= THRESHOLD)


@pytest.mark.parametrize("rule", ["certain", "learned"])
def test_what_is_kept_is_what_the_rule_says(rule):
    rule, prompts = RULES[rule], make_prompts(VOCAB)
    texts, records, _, _ = made(rule)
    for row, prompt in enumerate(prompts):
        local = True
        for step in range(STEPS):
            context = [*prompt.tolist(), *texts[row][:step]]
            draft, sure = draft_of(context)
            assert (draft, sure) == (records.draft[row, step], records.sure[row, step])
            ahead, last, run = 0, draft, sure
            while run and ahead < rule.ahead:
                ahead, context = ahead + 1, [*context, last]
                last, run = draft_of(context) if step + ahead < STEPS else (last, True)
            back = rule.take_back(np.array([ahead]), np.array([STEPS - step]))[0]
            kept = sure and (local or bool(back))
            agreed = Stage.LLM_ACCEPTED if texts[row][step] == draft else Stage.LLM_RESAMPLED
            assert records.kept[row, step] == kept
            assert records.stage[row, step] == (Stage.LOCAL if kept else agreed)
            local = kept
    assert np.array_equal(records.escalated, records.present & ~records.kept)


def test_the_llms_opinion_of_every_draft_in_a_stream_is_known():
    _, records, _, _ = made(CERTAIN)
    escalated = records.escalated
    agreed = records.token == records.draft
    assert np.array_equal(records.draft_choice[escalated], agreed[escalated].astype(np.int8))
    assert (records.choice[escalated] == 1).all()


def test_texts_end_at_their_end_token():
    prompts = make_prompts(VOCAB, 6)
    for rule in (AT_ONCE, CERTAIN, NEVER):
        whole = made(rule, rows=6)[0]
        ends = frozenset({text[4] for text in whole[:3]})
        texts, records, _, setup = made(rule, rows=6, end_tokens=ends)
        for row in range(len(prompts)):
            stops = [at for at, token in enumerate(whole[row]) if token in ends]
            length = stops[0] + 1 if stops else STEPS
            # A draft that ends the text ends the run that is looked at.
            assert rule is CERTAIN or texts[row] == whole[row][:length]
            assert not set(texts[row][:-1]) & ends
        assert records.tokens == sum(map(len, texts)) < 6 * STEPS
        assert len(setup.link.service.streams) == 0


@pytest.mark.parametrize("pieces", [1, 2, 4])
@pytest.mark.parametrize("rule", ["certain", "never"])
def test_a_broken_stream_goes_on_by_a_new_opening(rule, pieces):
    texts, _, traffic, _ = made(RULES[rule])

    class Breaking(Link):
        def __init__(self, service):
            super().__init__(service)
            self.pieces = pieces

    drafts = rule != "never"
    # As long as it breaks in the middle, the server is there: nobody stays away from it.
    options = {"link": Breaking, "window": 64, "drafts": drafts, "pause": 600.0}
    again, told, failed, setup = made(RULES[rule], **options)
    assert again == texts and not told.unresolved.any()
    assert failed.failures > 0 and failed.streams >= traffic.streams
    assert len(setup.link.service.streams) == 0


@pytest.mark.parametrize("rule", ["certain", "never"])
def test_what_only_another_replica_hears_costs_openings_and_no_text(rule):
    class Elsewhere(Link):
        """What the device says of its streams reaches a service that does not write them."""

        def __init__(self, service):
            super().__init__(service)
            self.other = LanguageModelService(Engine(LLM, max_sessions=64, max_context=64))

        def post(self, payload):
            DirectTransport(self.other).post(payload)

    texts, _, traffic, _ = made(RULES[rule], window=3)
    again, told, more, setup = made(RULES[rule], window=3, link=Elsewhere)
    assert again == texts and not told.unresolved.any() and more.failures == 0
    assert more.streams + more.overshot > traffic.streams + traffic.overshot
    heard = setup.link.other.streams.stats
    assert heard.unknown == heard.controls > 0
    assert len(setup.link.service.streams) == 0


def test_while_the_link_is_down_tokens_are_unresolved_and_texts_whole():
    class Dying(Link):
        def stream(self, payload):
            for number, frames in enumerate(super().stream(payload)):
                self.down = number > 2
                yield frames

    for rule, drafts in ((CERTAIN, True), (NEVER, True), (NEVER, False)):
        texts, records, traffic, _ = made(rule, link=Dying, pause=60.0, drafts=drafts)
        assert all(len(text) == STEPS for text in texts) and records.present.all()
        assert records.unresolved.any() and traffic.failures >= 1
        stands = records.unresolved
        assert np.array_equal(records.token[stands], records.draft[stands])


def test_a_server_that_writes_without_end_costs_no_text():
    class Endless(Link):
        """After two honest frames it writes more than it was asked for."""

        def stream(self, payload):
            request = decode_opening(payload).request
            for number, frames in enumerate(super().stream(payload)):
                yield frames
                if number == 2:
                    break
            while True:
                rows = range(len(request.rows))
                yield encode_frame(Frame({row: np.ones(9, int) for row in rows}), VOCAB)

    for rule in (CERTAIN, NEVER):
        texts, records, traffic, _ = made(rule, link=Endless, pause=60.0)
        assert all(len(text) == STEPS for text in texts) and traffic.failures
        assert Stage.LLM_ACCEPTED in records.stage or Stage.LLM_RESAMPLED in records.stage


def test_audits_take_the_streams_token():
    options = {"policy": ThresholdPolicy(THRESHOLD), "audit_rate": 0.5, "rows": 12}
    texts, records, _, _ = made(AT_ONCE, **options)
    expected, plain, _, _ = made(None, **options)
    assert texts == expected
    assert np.array_equal(records.audited, plain.audited) and records.audited.any()
    _, records, _, _ = made(CERTAIN, **options)
    verified = np.isin(records.stage, [Stage.LLM_ACCEPTED, Stage.LLM_RESAMPLED])
    assert np.array_equal(verified & records.kept, records.audited)
    assert (records.sure[records.kept]).all()


def test_tiers_are_asked_before_the_stream_and_learn_from_it():
    config = CacheConfig("context", 256, 0.9, 0.98, 0.995)
    cache = CacheResolver(TokenCache(token_embeddings(SLM), config, 32), 0.0, 1.0)
    setup = build(SLM, LLM, ThresholdPolicy(THRESHOLD), rule=CERTAIN, tiers=[cache])
    prompts = make_prompts(VOCAB)
    _, _, before = setup.generate(prompts, STEPS)
    _, records, traffic = setup.generate(prompts, STEPS, np.arange(5) + 5)
    counts = records.stage_counts()
    assert counts["cache"] > 0 and traffic.decoded < before.decoded
    # What the LLM is writing no other tier decides.
    for row in range(5):
        for step in range(1, STEPS):
            if records.stage[row, step] == Stage.CACHE:
                assert records.stage[row, step - 1] in (Stage.CACHE, Stage.LOCAL)


def test_a_policy_that_keeps_all_asks_nobody():
    for rule in (AT_ONCE, CERTAIN):
        texts, records, traffic, _ = made(rule, policy=FixedPolicy(True))
        assert texts == [own_text(SLM, prompt, STEPS) for prompt in make_prompts(VOCAB)]
        assert traffic.messages == traffic.streams == 0 and records.kept.all()


def test_fewer_sessions_than_rows():
    """What has no place to be written has its verdicts alone; the text is the same."""
    texts = made(CERTAIN, rows=8)[0]
    assert made(CERTAIN, rows=8, sessions=3)[0] == texts
