"""A bearer token in front of a served LLM."""

from __future__ import annotations

import hmac
from http.client import HTTPConnection

import pytest

from servers import access
from servers.access import check_certificate
from tests.certificates import Authority
from tests.served import make_service, payload, serving

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
        assert served.held == 0
        assert served.counts["413"] == 0


def test_tokens_are_compared_in_constant_time(monkeypatch):
    """By digests of one length, and by nothing that stops at the first difference."""
    compared, compare_digest = [], hmac.compare_digest

    def compare(a, b):
        compared.append((len(a), len(b)))
        return compare_digest(a, b)

    monkeypatch.setattr(access.hmac, "compare_digest", compare)
    with serving(make_service(), token=TOKEN) as (port, _):
        for given in ("", "x", TOKEN, TOKEN * 9):
            status(port, "GET", "/v1/stats", authorization=f"Bearer {given}")
    assert compared == [(32, 32)] * 4


def test_a_certificate_that_serves_nobody_is_refused_by_name(tmp_path):
    authority = Authority(tmp_path)
    certificate, key = authority.issue("localhost")
    _, other = authority.issue("localhost")
    check_certificate(certificate, key)
    for wrong in ((certificate, ""), (certificate, other), ("/no/such/file", key), (key, key)):
        with pytest.raises(ValueError, match=r"--tls-cert = .*--tls-key = .*no certificate with"):
            check_certificate(*wrong)
