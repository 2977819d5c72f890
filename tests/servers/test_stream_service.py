"""Streams over HTTP: the same tokens, in whatever pieces; what breaks them breaks nothing else."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import closing, suppress

import pytest

from fedhlm_app.transport.http_transport import HttpTransport
from hlm.transport import LinkDown, LinkRefused
from hlm.wire import Status, WireError, decode_reply, encode_request
from hlm.wire.frames import End
from hlm.wire.stream import Opening, Outcome, encode_opening
from servers import stream
from tests.asking import request_of
from tests.served import StuckService, serving
from tests.streaming import (
    Device,
    asked,
    assert_delays_change_no_text,
    make_service,
    own_text,
    prompts,
)
from tests.wire_rows import listed, told


@pytest.fixture(scope="module")
def server():
    service = make_service(sessions=64)
    with serving(service, most=64) as (port, served):
        yield port, served


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """A stream waits for a device that other work on the machine holds up."""
    monkeypatch.setattr(stream, "CREDIT_SECONDS", 120)


@pytest.fixture
def link(server):
    with closing(HttpTransport(f"127.0.0.1:{server[0]}", timeout=120)) as link:
        yield link


def eventually(condition):
    for _ in range(12_000):
        if condition():
            return True
        time.sleep(0.01)
    return False


@pytest.mark.parametrize("window", [1, 4, 64])
def test_text_is_that_of_one_process_whatever_the_window_and_the_delays(link, window):
    assert_delays_change_no_text(link, window)


def test_a_connection_is_kept_after_a_stream_and_serves_controls_beside_it(link):
    for key in range(6):
        device = Device(link, asked(prompts(2), client=10 + key), credit=2, key=key)
        device.read_along(2)
    # One for streams, one for what is said meanwhile; two more may have been made ready at a time.
    assert 2 <= len(link._idle) <= 5


def test_what_is_asked_while_a_stream_is_read_waits_for_no_handshake(link):
    device = Device(link, asked(prompts(2), client=25), credit=2, key=25)
    assert eventually(lambda: len(link._idle) == 2)
    ready = list(link._idle)
    assert all(connection.sock is not None for connection in ready)
    beside = Device(link, asked(prompts(2), client=26), credit=2, key=26)
    assert ready[-1] not in link._idle
    for one in (device, beside):
        one.read_along(2)


def test_stop_and_stranger(link, server):
    device = Device(link, asked(prompts(2), client=20), credit=4, key=20)
    while device.written < 4:
        device.read()
    assert device.control(stops={0: 5}) is Outcome.REFUSED
    assert device.control(stops={0: 1}, key=21) is Outcome.UNKNOWN
    assert device.control(credit=64, stops={0: 1}) is Outcome.APPLIED
    device.read_all()
    assert device.ends == {0: End.STOPPED, 1: End.SPAN}
    taken = device.text(0)[: len(listed(device.request.rows)[0].tokens) + 2]
    session = (20, 0, request_of("greedy", listed(device.request.rows)).identity)
    assert server[1].service.engine.tokens(session).tolist() == taken


def test_a_device_that_goes_away_ends_its_stream(link, server):
    device = Device(link, asked(prompts(2), client=30), credit=3, key=30)
    device.read()
    assert eventually(lambda: len(link._idle) == 2)
    device.frames.close()
    assert len(link._idle) == 2  # a half-read connection is not used again
    assert eventually(lambda: not len(server[1].service.streams))
    later = asked(prompts(2), client=30)
    assert told(decode_reply(link.exchange(encode_request(later)), later))[0].status == Status.OK


def test_what_is_no_opening_is_refused(link):
    with pytest.raises(WireError, match="first byte"):
        link.stream(encode_request(asked()))
    with pytest.raises(WireError, match="vocab=99"):
        link.stream(encode_opening(Opening(asked(vocab=99), 1, 8, 8)))
    assert link.stats()["streams"]["open"] == 0


def test_a_stream_needs_the_token_too():
    with serving(make_service(), token="t" * 16) as (port, _):
        link = HttpTransport(f"127.0.0.1:{port}", timeout=120)
        with pytest.raises(LinkRefused):
            link.stream(encode_opening(Opening(asked(), 1, 8, 8)))
        link = HttpTransport(f"127.0.0.1:{port}", timeout=120, token="t" * 16)
        assert Device(link, asked()).read_all().texts() == [own_text([5, 9, 2], 21)]


def test_a_silent_server_is_given_up():
    service = StuckService()
    with serving(service) as (port, _):
        link = HttpTransport(f"127.0.0.1:{port}", timeout=0.2)
        with pytest.raises(LinkDown):
            link.stream(encode_opening(Opening(asked(vocab=64), 1, 8, 8)))
        service.go.set()


class Proxy:
    """Carries connections to a port, back in pieces of a size, or only once `limit` bytes came.

    Parameters
    ----------
    port : int
        The server's.
    piece : int
        Bytes that are passed on at a time.
    buffering : bool
        Whether an answer is kept back until the server has paused for 0.3 s.
    limit : int
        Bytes after which the connection is cut.
    """

    def __init__(self, port, piece=1 << 16, buffering=False, limit=1 << 30):
        self.port, self.piece, self.buffering, self.limit = port, piece, buffering, limit
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self.port))
            for carry, ends in ((self._up, (near, far)), (self._down, (far, near))):
                threading.Thread(target=carry, args=ends, daemon=True).start()

    def _up(self, near, far):
        try:
            while data := near.recv(1 << 16):
                far.sendall(data)
            far.shutdown(socket.SHUT_WR)
        except OSError:
            far.close()

    def _down(self, far, near):
        with near, far:
            try:
                self._pass_on(far, near)
            finally:
                for end in (near, far):  # another thread reads from it
                    with suppress(OSError):
                        end.shutdown(socket.SHUT_RDWR)

    def _pass_on(self, far, near):
        far.settimeout(0.3 if self.buffering else None)
        kept, passed, open_still = b"", 0, True
        while open_still:
            with suppress(TimeoutError):
                data = far.recv(1 << 16)
                kept, open_still = kept + data, bool(data)
                if self.buffering and data:
                    continue
            for begin in range(0, len(kept), self.piece):
                part = kept[begin : begin + self.piece]
                passed += len(part)
                if passed > self.limit:
                    return
                near.sendall(part)
            kept = b""


def test_a_proxy_that_cuts_frames_up(server):
    proxy = Proxy(server[0], piece=1)
    request = asked(prompts(3), client=40)
    with closing(HttpTransport(proxy.address, timeout=120)) as link, closing(proxy.listener):
        device = Device(link, request, key=40).read_along(4)
    assert device.texts() == [own_text(text, 21) for text in prompts(3)]


def test_a_proxy_that_keeps_frames_back_only_slows_a_stream(server, monkeypatch):
    """The credit runs out unheard, and the device goes on with new openings."""
    monkeypatch.setattr(stream, "CREDIT_SECONDS", 0.1)
    proxy = Proxy(server[0], buffering=True)
    text = prompts(1)[0]
    with closing(HttpTransport(proxy.address, timeout=120)) as link, closing(proxy.listener):
        for key in range(50, 53):
            device = Device(link, asked([text], [-1], client=50), credit=4, key=key).read_all()
            assert device.ends == {0: End.UNHEARD}
            text = device.text(0)
    assert text == own_text(prompts(1)[0], 12)


@pytest.mark.parametrize("limit", [150, 170, 190])
def test_a_cut_wire_is_a_link_that_is_down(server, limit):
    proxy = Proxy(server[0], piece=1, limit=limit)
    with closing(HttpTransport(proxy.address, timeout=120)) as link, closing(proxy.listener):
        request = asked(prompts(1), client=limit)
        with pytest.raises(LinkDown):
            Device(link, request, key=limit).read_all()
    assert eventually(lambda: not len(server[1].service.streams))
