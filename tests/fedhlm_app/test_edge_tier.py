from __future__ import annotations

import numpy as np
import pytest

from clients.policy import ThresholdPolicy
from clients.records import Stage
from fedhlm_app.device import Device
from fedhlm_app.edge import build_edge
from fedhlm_app.links import DirectLink
from fedhlm_app.serving import build_service
from fedhlm_app.settings import Settings

OFF = {"cache-mode": "off", "peer-mode": "off"}


def settings(**changes) -> Settings:
    given = {"clients": 4, "clusters": 1, "tokens-per-round": 60, "opportunistic": False}
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
            raise ConnectionError("cut by the test")
        return self.server.handle(payload)


def rounds(service, how, count=3, clients=2, link=None):
    """Rounds of a few clients, whose state travels between them as in a run."""
    if link is None:
        link = EdgeLink(build_edge(how, 0, 0, range(how.clients), 1))
    devices = [Device(how, k, DirectLink(service), lambda cluster: link) for k in range(clients)]
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


def test_with_all_off_nothing_changes(service):
    plain = Device(settings(), 0, DirectLink(service)).train_round(ThresholdPolicy(0.4), 1)
    how = settings(**{k.replace("-", "_"): v for k, v in OFF.items()})
    other = rounds(service, how, count=1, clients=1)[0][3]
    assert np.array_equal(plain.records[0].token, other.records[0].token)
    assert np.array_equal(plain.records[0].stage, other.records[0].stage)
    assert plain.traffic.uplink == other.traffic.uplink
    assert other.traffic.edge == 0


def test_an_edge_that_is_down_sends_tokens_on_to_the_llm(service):
    how = settings(peer_mode="context")
    link = EdgeLink(build_edge(how, 0, 0, range(4), 1))
    link.down = True
    routed = rounds(service, how, count=1, clients=1, link=link)[0][3]
    plain = Device(settings(), 0, DirectLink(service)).train_round(ThresholdPolicy(0.4), 1)
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
    device = Device(how, 0, DirectLink(service), lambda cluster: None)
    device.edge.join(0, 4, {})
    first = device.evaluate(ThresholdPolicy(0.4))
    assert len(device.edge.cache.cache) == 0
    second = device.evaluate(ThresholdPolicy(0.4))
    assert np.array_equal(stages(first), stages(second))
