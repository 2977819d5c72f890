from __future__ import annotations

import csv

import numpy as np
import pytest

from clients.decoding.drafting import RouterConfig
from clients.decoding.routing import Router
from clients.policy import ThresholdPolicy
from clients.records import Stage, Traffic
from clients.resolvers.measuring import read_unseen
from clients.resolvers.messages import UplinkConfig
from clients.resolvers.uplink import LanguageModelUplink
from fedhlm_app.client.device import Device
from fedhlm_app.client.draws import training_sessions
from fedhlm_app.data.items import load_items
from fedhlm_app.hosting.edge import build_edge
from fedhlm_app.hosting.llm import build_service
from fedhlm_app.models.small import end_tokens
from fedhlm_app.settings import Settings
from fedhlm_app.transport.transports import DirectTransport
from hlm.sampling import Sampling
from hlm.transport import LinkDown
from hlm.uncertainty import closed_form
from hlm.verification import VERIFIERS


def settings(**changes) -> Settings:
    given = {"clients": 4, "clusters": 1, "tokens-per-round": 60, "opportunistic": False}
    given |= {"escalation": "token"}  # what tiers see of streams: tests/clients/decoding
    given.update({key.replace("_", "-"): value for key, value in changes.items()})
    return Settings.from_sources(given, {})


@pytest.fixture(scope="module")
def service():
    return build_service(settings())


class EdgeLink:
    def __init__(self, server):
        self.server = server
        self.down = False

    def exchange(self, payload):
        if self.down:
            raise LinkDown("cut by the test")
        return self.server.handle(payload)


def rounds(service, how, count=3, clients=2, link=None):
    """Rounds of a few clients, whose state travels between them as in a run."""
    if link is None:
        # Without peers nobody asks it; it is only told of the end of a round.
        there = how.model_copy(update={"peer_mode": "paper"}) if how.peer_mode == "off" else how
        link = EdgeLink(build_edge(there, 0, 0, range(how.clients), 1))
    devices = [
        Device(how, k, DirectTransport(service), lambda cluster: link) for k in range(clients)
    ]
    kept: list[dict] = [{} for _ in devices]
    routed = []
    for number in range(1, count + 1):
        for k, device in enumerate(devices):
            if device.edge is not None:
                device.edge.join(0, how.clients, kept[k])
            # The same round again and again: texts that come again are what caches are for.
            one = device.train_round(ThresholdPolicy(0.4), 1)
            if device.edge is not None:
                kept[k] = device.edge.finish(one.traffic)
            routed.append((number, k, device, one))
        link.server.publish()
    return routed


def stages(routed):
    return np.concatenate([r.stage[r.present] for r in routed.records])


def test_a_text_that_comes_again_is_in_the_cache(service):
    found = rounds(service, settings(cache_mode="context"), clients=1)
    assert not (stages(found[0][3]) == Stage.CACHE).all()
    asked = [np.isin(stages(one), [4, 5]).sum() for *_, one in found]
    assert asked[0] > 0
    # Every verified place is known the second time, so nothing is left to ask.
    assert asked[1] == asked[2] == 0
    assert (stages(found[1][3]) == Stage.CACHE).sum() == asked[0] + (
        stages(found[0][3]) == Stage.CACHE
    ).sum()


def test_each_tier_is_switched_by_itself(service):
    for changes, stage in (
        ({"cache_mode": "context"}, Stage.CACHE),
        ({"cache_mode": "paper"}, Stage.CACHE),
    ):
        found = rounds(service, settings(**changes), clients=1, count=2)
        assert (stages(found[-1][3]) == stage).any()
        assert not np.isin(stages(found[-1][3]), [Stage.PEER, Stage.EDGE]).any()
    found = rounds(service, settings(peer_mode="context"), count=2)
    assert not (stages(found[-1][3]) == Stage.CACHE).any()


def test_the_papers_cache_holds_every_token_of_the_devices_texts(service):
    """As the paper writes it ("inferred or received"); by context, what the LLM decided alone."""
    for mode, holds in (("paper", [True, True]), ("context", [False, True])):
        ((_, _, device, routed),) = rounds(service, settings(cache_mode=mode), count=1, clients=1)
        present = routed.records[0].present
        token, stage = routed.records[0].token[present], routed.records[0].stage[present]
        decided = set(token[np.isin(stage, [Stage.LLM_ACCEPTED, Stage.LLM_RESAMPLED])])
        kept = set(token[stage == Stage.LOCAL]) - decided
        cached = set(device.edge.cache.cache.tokens)
        assert kept and decided
        assert [kept <= cached, decided <= cached] == holds, mode


def test_with_all_off_it_is_the_plain_router(service):
    """The tiers off are as if there were none: same tokens, stages and bytes, bit for bit."""
    how = settings()
    assert how.cache_mode == how.peer_mode == "off"
    device = Device(how, 0, DirectTransport(service))
    assert device.edge is None
    routed = device.train_round(ThresholdPolicy(0.4), 1)
    uplink = LanguageModelUplink(
        DirectTransport(build_service(how)),
        VERIFIERS["greedy"](),
        UplinkConfig(client=0, vocab=int(device.model.config.vocab_size), sampling=Sampling()),
    )
    router = Router(
        device.model,
        RouterConfig(Sampling(), closed, how.seed + 1, 0, end_tokens(device.model)),
        ThresholdPolicy(0.4),
        VERIFIERS["greedy"](),
        [uplink],
    )
    made, traffic = 0, Traffic()
    for number, (rows, records) in enumerate(zip(routed.rows, routed.records, strict=True)):
        each = records.token.shape[1]
        sessions = training_sessions(1, how.tokens_per_round, made + np.arange(len(rows)))
        work = device.work.make(rows, sessions, each)
        made += len(rows)
        plain = router.generate(work.texts, work.new_tokens, traffic)
        read_unseen(uplink.sender, work.texts, plain, traffic)
        for name in ("token", "stage", "draft", "position", "uncertainty", "log_prob"):
            left, right = getattr(records, name), getattr(plain, name)
            assert np.array_equal(left, right, equal_nan=left.dtype.kind == "f"), (number, name)
    assert np.isin(stages(routed), [Stage.LLM_ACCEPTED, Stage.LLM_RESAMPLED]).any()
    for name in ("messages", "uplink", "downlink", "measured", "edge"):
        assert getattr(routed.traffic, name) == getattr(traffic, name), name
    assert traffic.edge == 0


def closed(logits, draft, keys):
    return closed_form(logits, draft, 1.0)


@pytest.fixture(scope="module")
def few_texts(tmp_path_factory):
    """Eight texts in many copies, so that clients meet each other's contexts."""
    path = tmp_path_factory.mktemp("texts") / "few.csv"
    corpus = load_items("builtin").table
    some = range(0, len(corpus), len(corpus) // 8)
    items = [(corpus["label"][i].as_py() + 1, "", corpus["text"][i].as_py()) for i in some]
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(items * 12)
    return str(path)


def stage_counts(service, few_texts, **changes):
    """Stages of five clients in two clusters over three rounds, the clusters neighbours."""
    given = {"cache_mode": "context", "peer_mode": "context", "inter_cluster": True, **changes}
    inter = given.pop("inter_cluster")
    given = {"tokens_per_round": 40, **given}
    how = settings(dataset=few_texts, clients=5, clusters=2, **given)
    clusters = [0, 0, 0, 1, 1]
    members = [[k for k in range(5) if clusters[k] == cluster] for cluster in (0, 1)]
    edges = []
    if how.peer_mode != "off":
        edges = [build_edge(how, 0, cluster, members[cluster], 2) for cluster in (0, 1)]
    if inter and edges:
        edges[0].neighbours, edges[1].neighbours = [EdgeLink(edges[1])], [EdgeLink(edges[0])]
    links = [EdgeLink(edge) for edge in edges]
    devices = [Device(how, k, DirectTransport(service), links.__getitem__) for k in range(5)]
    kept: list[dict] = [{} for _ in devices]
    counts, tokens = np.zeros(len(Stage), np.int64), 0
    for number in (1, 2, 3):
        for k, device in enumerate(devices):
            if device.edge is not None:
                device.edge.join(clusters[k], len(members[clusters[k]]), kept[k])
            one = device.train_round(ThresholdPolicy(0.4), number)
            if device.edge is not None:
                kept[k] = device.edge.finish(one.traffic)
            counts += np.bincount(stages(one), minlength=len(Stage))
            tokens += sum(records.tokens for records in one.records)
        for edge in edges:
            edge.publish()
    assert counts.sum() == tokens == 5 * 3 * how.tokens_per_round
    return counts


@pytest.mark.parametrize(
    ("off", "gone"),
    [
        ({}, []),
        ({"cache_mode": "off"}, [Stage.CACHE]),
        ({"peer_mode": "off"}, [Stage.PEER, Stage.EDGE]),
        ({"inter_cluster": False}, [Stage.EDGE]),
    ],
)
def test_each_stage_is_switched_off_alone(service, few_texts, off, gone):
    counts = stage_counts(service, few_texts, **off)
    for stage in (Stage.CACHE, Stage.PEER, Stage.EDGE):
        assert (counts[stage] == 0) == (stage in gone), (stage, counts)


def test_by_the_opportunistic_rule_devices_find_their_peers(service, few_texts):
    """What they learnt of each other outlives the rounds: tiers are built anew in each."""
    counts = stage_counts(
        service,
        few_texts,
        cache_mode="off",
        inter_cluster=False,
        opportunistic=True,
        tokens_per_round=60,
    )
    assert counts[Stage.PEER] > 0


def test_by_the_opportunistic_rule_strangers_spend_their_credit_and_no_more(service):
    how = settings(peer_mode="context", opportunistic=True)
    found = rounds(service, how, count=4, clients=3)
    llm = sum(one.traffic.uplink + one.traffic.downlink for *_, one in found)
    edge = sum(one.traffic.edge for *_, one in found)
    assert 0 < edge <= 3 * 36 + 0.005 * (llm + edge)
    for *_, device, _ in found:
        assert device.edge.edge.rows_asked == 0


def test_an_edge_that_is_down_sends_tokens_on_to_the_llm(service):
    how = settings(peer_mode="context")
    link = EdgeLink(build_edge(how, 0, 0, range(4), 1))
    link.down = True
    routed = rounds(service, how, count=1, clients=1, link=link)[0][3]
    plain = Device(settings(), 0, DirectTransport(service)).train_round(ThresholdPolicy(0.4), 1)
    assert np.array_equal(stages(routed), stages(plain))
    assert routed.traffic.failures > 0
    assert routed.traffic.edge == 0


def test_audited_hits_are_counted_by_round(service):
    found = rounds(service, settings(cache_mode="context", audit_rate=0.5), clients=1, count=3)
    counts = [device.edge.figures() for *_, device, _ in found]
    # One device object serves all rounds: its figures are those since the last `join`.
    assert counts[-1]["cache-audited"] > 0
    assert 0 <= counts[-1]["cache-false"] <= counts[-1]["cache-audited"]


def test_evaluation_leaves_the_tiers_as_they_were(service):
    how = settings(cache_mode="context")
    device = Device(how, 0, DirectTransport(service), lambda cluster: None)
    device.edge.join(0, 4, {})
    first = device.evaluate(ThresholdPolicy(0.4))
    assert len(device.edge.cache.cache) == 0
    second = device.evaluate(ThresholdPolicy(0.4))
    assert np.array_equal(stages(first), stages(second))
