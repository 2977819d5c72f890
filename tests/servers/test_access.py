"""A bearer token in front of a served LLM."""

from __future__ import annotations

from http.client import HTTPConnection

import numpy as np
import pytest

from fedhlm_app.transport.http_transport import HttpTransport
from hlm.wire import Status, decode_reply, encode_request
from servers.access import DeviceTokens, Tokens, check_certificate
from tests.asking import request_of
from tests.certificates import Authority
from tests.served import make_service, payload, serving
from tests.wire_rows import Row, told

TOKEN = "a-token-of-a-test-0123456789"


def status(port, method, path, body=b"", **headers):
    connection = HTTPConnection("127.0.0.1", port, timeout=120)
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status


def test_only_who_brings_the_token_is_answered():
    with serving(make_service(), token=TOKEN) as (port, served):
        good = {"authorization": f"Bearer {TOKEN}"}
        assert status(port, "POST", "/v1/exchange", payload(), **good) == 200
        assert status(port, "GET", "/v1/stats", **good) == 200
        assert status(port, "GET", "/health") == 200
        for wrong in (
            {},
            {"authorization": ""},
            {"authorization": TOKEN},
            {"authorization": f"Basic {TOKEN}"},
            {"authorization": f"Bearer {TOKEN[:-1]}"},
            {"authorization": f"Bearer {TOKEN}x"},
            {"authorization": "Bearer \xff"},
        ):
            assert status(port, "POST", "/v1/exchange", payload(), **wrong) == 401
            assert status(port, "GET", "/v1/stats", **wrong) == 401
        assert served.service.engine.stats.passes == 1
        assert served.counts["401"] == 14


def test_a_body_without_the_token_is_not_taken_in():
    with serving(make_service(), token=TOKEN) as (port, served):
        assert status(port, "POST", "/v1/exchange", bytes(1 << 20)) == 401
        assert served.bodies.held.taken == 0
        assert served.counts["413"] == 0


@pytest.fixture
def devices(tmp_path):
    """The file of two devices' tokens, and the tokens."""
    known = DeviceTokens(tmp_path / "devices.json")
    return known.file, {name: known.issue(name) for name in ("phone", "car-7")}


def bearer(token):
    return {"authorization": f"Bearer {token}"}


def test_a_device_is_known_by_its_token_until_that_is_revoked(devices, caplog):
    file, tokens = devices
    assert file.stat().st_mode & 0o077 == 0
    assert not [token for token in tokens.values() if token in file.read_text()]
    with serving(make_service(), token=Tokens(file=file)) as (port, _):
        for token in tokens.values():
            assert status(port, "GET", "/v1/stats", **bearer(token)) == 200
        assert status(port, "GET", "/v1/stats", **bearer(TOKEN)) == 401
        DeviceTokens(file).revoke("phone")
        assert status(port, "GET", "/v1/stats", **bearer(tokens["phone"])) == 401
        again = DeviceTokens(file).issue("phone")
        assert status(port, "GET", "/v1/stats", **bearer(again)) == 200
        # A file that is broken locks nobody out, and lets nobody in.
        file.write_text('{"phone": 3}')
        assert status(port, "GET", "/v1/stats", **bearer(again)) == 200
        assert status(port, "GET", "/v1/stats", **bearer(TOKEN)) == 401
    assert "no tokens of devices" in caplog.text
    assert not [token for token in (again, *tokens.values()) if token in caplog.text]


@pytest.mark.parametrize("name", ["", "../etc", "a b", "x" * 65, "phone"])
def test_names_of_devices_are_checked(name, devices):
    file, _ = devices
    with pytest.raises(ValueError, match="device '"):
        DeviceTokens(file).issue(name)
    with pytest.raises(ValueError, match=r"device 'tv' has no token; .*car-7, phone"):
        DeviceTokens(file).revoke("tv")


def test_a_device_reaches_no_text_of_another_even_with_its_very_bytes(devices):
    file, tokens = devices
    begin = request_of("greedy", [Row(0, 0, np.array([5, 9, 2]), 7)], feedback=True)
    on = request_of("greedy", [Row(0, 3, np.array([4]), 7)], on={0: [5, 9, 2]}, feedback=True)
    with serving(make_service(), token=Tokens(file=file)) as (port, _):

        def asked(name, request):
            link = HttpTransport(f"127.0.0.1:{port}", timeout=120, token=tokens[name])
            (row,) = told(decode_reply(link.exchange(encode_request(request)), request))
            link.close()
            return row.status

        assert asked("phone", begin) == Status.OK
        assert asked("car-7", on) == Status.PREFIX_NEEDED
        # Nor does sending the beginning again take the text from its device.
        assert asked("car-7", begin) == Status.OK
        assert asked("phone", on) == Status.OK


def test_a_certificate_that_serves_nobody_is_refused_by_name(tmp_path):
    authority = Authority(tmp_path)
    certificate, key = authority.issue("localhost")
    _, other = authority.issue("localhost")
    check_certificate(certificate, key)
    for wrong in ((certificate, ""), (certificate, other), ("/no/such/file", key), (key, key)):
        with pytest.raises(ValueError, match=r"--tls-cert = .*--tls-key = .*no certificate with"):
            check_certificate(*wrong)
