"""Messages that others have read, and tokens that were taken back while they are in use."""

from __future__ import annotations

from http.client import HTTPConnection

import pytest

from clients.policy import FixedPolicy
from fedhlm_app.transport.http_transport import HttpTransport
from fedhlm_app.transport.transports import DirectTransport
from hlm.transport import LinkDown
from hlm.wire.frames import End
from servers.access import DeviceTokens, Tokens
from tests.models import VOCAB
from tests.routed import make_prompts, new_part
from tests.served import make_service, payload, serving
from tests.servers.test_access import bearer
from tests.servers.test_service import routed
from tests.streaming import Device
from tests.streaming import asked as question
from tests.streaming import make_service as streaming_service

NEVER = FixedPolicy(kept=False)


class Replayed:
    """A link of which a stranger sends the last three messages again, backwards."""

    def __init__(self, link, port: int, headers) -> None:
        self.link, self.port, self.headers = link, port, headers
        self.sent: list[bytes] = []
        self.told: list[int] = []

    def exchange(self, body: bytes) -> bytes:
        for one in reversed(self.sent[-3:]):
            source = ("127.0.0.5", 0)
            connection = HTTPConnection("127.0.0.1", self.port, 120, source_address=source)
            connection.request("POST", "/v1/exchange", one, self.headers)
            self.told.append(connection.getresponse().status)
            connection.close()
        self.sent.append(body)
        return self.link.exchange(body)


@pytest.mark.parametrize("tokens", [False, True])
def test_replayed_messages_change_no_token(tokens, tmp_path):
    prompts, known = make_prompts(VOCAB, 3), DeviceTokens(tmp_path / "devices.json")
    phone, stranger = known.issue("phone"), known.issue("stranger")
    access = {"token": Tokens(file=known.file)} if tokens else {}
    with serving(make_service(), **access) as (port, _):
        link = HttpTransport(f"127.0.0.1:{port}", timeout=120, token=phone if tokens else "")
        replayed = Replayed(link, port, bearer(stranger) if tokens else {})
        texts, records, traffic = routed(replayed, NEVER, prompts, 6)
        link.close()
    direct, same, counted = routed(DirectTransport(make_service()), NEVER, prompts, 6)
    assert [new_part(texts, i) for i in range(3)] == [new_part(direct, i) for i in range(3)]
    assert records.stage_counts() == same.stage_counts()
    assert traffic.failures == 0 and set(replayed.told) == {200}
    # What is held of a device that is known by its token, others' messages do not reach.
    assert (traffic.messages == counted.messages) == tokens


def test_a_token_that_is_taken_back_ends_a_connection_that_is_in_use(tmp_path):
    known = DeviceTokens(tmp_path / "devices.json")
    token = known.issue("phone")
    with serving(make_service(), token=Tokens(file=known.file)) as (port, _):
        connection = HTTPConnection("127.0.0.1", port, timeout=120)
        found = []
        for turn in range(4):
            if turn == 2:
                known.revoke("phone")
            connection.request("POST", "/v1/exchange", payload(), bearer(token))
            answer = connection.getresponse()
            answer.read()
            found.append(answer.status)
        connection.close()
    assert found == [200, 200, 401, 401]


def test_a_stream_whose_token_is_taken_back_gets_no_further_credit(tmp_path, monkeypatch):
    monkeypatch.setattr("servers.stream.CREDIT_SECONDS", 0.05)
    known = DeviceTokens(tmp_path / "devices.json")
    token = known.issue("phone")
    with serving(streaming_service(), token=Tokens(file=known.file)) as (port, served):
        link = HttpTransport(f"127.0.0.1:{port}", timeout=120, token=token)
        device = Device(link, question(), span=20, credit=2)
        device.read()
        known.revoke("phone")
        with pytest.raises(LinkDown, match="token"):
            device.control(credit=20)
        device.read_all()
        assert device.ends == {0: End.UNHEARD} and len(device.tokens[0]) == 2
        assert len(served.service.streams) == 0
        link.close()
