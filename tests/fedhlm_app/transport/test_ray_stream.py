"""Streams from a Ray actor: the same tokens, and what becomes of them when either side dies."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from fedhlm_app.transport.actor_names import NAMESPACE
from fedhlm_app.transport.transports import SocketTransport
from hlm.wire import Status, WireError, decode_reply, encode_request
from hlm.wire.frames import End
from hlm.wire.stream import Opening, Outcome, encode_opening
from servers.actors import LanguageModelActor, start_actor
from tests.streaming import (
    Device,
    asked,
    assert_delays_change_no_text,
    make_service,
    own_text,
    prompts,
)

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def ray_here():
    import ray

    # The actor's process has to find the tests.
    root = str(Path(__file__).resolve().parents[3])
    environ = {"env_vars": {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"}}
    ray.init(num_cpus=1, include_dashboard=False, logging_level="error", runtime_env=environ)
    yield ray
    ray.shutdown()


@pytest.fixture(scope="module")
def link(ray_here):
    actor = start_actor(LanguageModelActor, "llm", NAMESPACE, make_service)
    link = SocketTransport("llm", 300)
    link.exchange(encode_request(asked()))
    yield link
    del actor  # which ends without it


@pytest.mark.parametrize("window", [1, 4, 64])
def test_text_is_that_of_one_process_whatever_the_window_and_the_delays(link, window):
    assert_delays_change_no_text(link, window)


def test_stop(link):
    device = Device(link, asked(prompts(2), client=20), credit=4, key=20)
    while device.written < 4:
        device.read()
    assert device.control(stops={0: 5}) is Outcome.REFUSED
    assert device.control(credit=64, stops={0: 1}) is Outcome.APPLIED
    assert device.read_all().ends == {0: End.STOPPED, 1: End.SPAN}


def test_a_device_that_goes_away_ends_its_stream(link):
    device = Device(link, asked(prompts(2), client=30), credit=3, key=30)
    device.read()
    device.frames.close()
    deadline = time.monotonic() + 120
    while device.control() is not Outcome.UNKNOWN:
        assert time.monotonic() < deadline, "the stream is still there"
        time.sleep(0.01)
    later = asked(prompts(2), client=30)
    assert decode_reply(link.exchange(encode_request(later)), later).statuses[0] == Status.OK


def test_what_is_no_opening_is_refused(link):
    with pytest.raises(WireError, match="vocab=99"):
        list(link.stream(encode_opening(Opening(asked(vocab=99), 1, 8, 8))))


def test_an_actor_that_dies_in_mid_stream_is_waited_for_and_knows_no_more_of_it(link, ray_here):
    import ray

    device = Device(link, asked(prompts(1), client=40), credit=3, key=40)
    device.read()
    actor = ray.get_actor("llm", namespace=NAMESPACE)
    before = ray.get(actor.place.remote())
    ray.kill(actor, no_restart=False)
    # It is not dead at once, and the rest of the stream is soon read.
    while ray.get(actor.place.remote()) == before:
        time.sleep(0.01)
    while device.read():
        pass
    assert not device.reader.finished
    again = Device(link, asked(prompts(1), client=40), key=41).read_all()
    assert again.texts() == [own_text(text, 21) for text in prompts(1)]
