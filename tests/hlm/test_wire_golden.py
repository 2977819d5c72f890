"""Bytes on the wire stay what they are: a change of them is one on purpose."""

from __future__ import annotations

import json

import pytest

from hlm.verifiers import VERIFIERS
from hlm.wire import (
    Reply,
    Request,
    decode_reply,
    decode_request,
    encode_reply,
    encode_request,
)
from tests.hlm.wire_golden import PATH, edge_messages, restored

GOLDEN = json.loads(PATH.read_text(encoding="utf-8"))


@pytest.mark.parametrize("verifier", VERIFIERS)
def test_requests_and_replies_keep_their_bytes(verifier):
    entries = [e for e in GOLDEN["exchanges"] if e["request"]["verifier"] == verifier]
    assert len(entries) == 3
    for entry in entries:
        request = restored(Request, entry["request"])
        reply = restored(Reply, entry["reply"])
        sent, answered = bytes.fromhex(entry["sent"]), bytes.fromhex(entry["answered"])
        assert encode_request(request) == sent
        assert encode_reply(reply, request) == answered
        assert decode_request(sent) == request
        assert decode_reply(answered, request) == reply


def test_messages_of_the_edge_tier_keep_their_bytes():
    assert edge_messages() == GOLDEN["edge"]
