from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hlm.peers.fingerprints import FINGERPRINTS
from hlm.wire import InvalidField, Limits, OversizedMessage, TrailingData, WireError
from hlm.wire.edge_probe import (
    MOST_FINGERPRINTS,
    EdgeProbe,
    decode_common,
    decode_probe,
    encode_common,
    encode_probe,
    is_probe,
)

PRINTS = st.sets(st.integers(0, FINGERPRINTS - 1), max_size=MOST_FINGERPRINTS)


@given(PRINTS, st.integers(0, 2**40), st.booleans())
def test_probes_round_trip(prints, client, between):
    probe = EdgeProbe(client, np.array(sorted(prints), np.int64), between)
    payload = encode_probe(probe)
    again = decode_probe(payload)
    assert is_probe(payload)
    assert again.client == client and again.between == between
    assert again.prints.tolist() == sorted(prints)


@given(st.lists(st.booleans(), max_size=MOST_FINGERPRINTS))
def test_answers_round_trip(flags):
    payload = encode_common(np.array(flags, np.bool_))
    assert decode_common(payload).tolist() == flags and not is_probe(payload)


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(payload):
    for decode in (decode_probe, decode_common):
        try:
            decode(payload)
        except WireError:
            pass
        else:
            assert payload[0] >> 4 in (0xE, 0xF)


def test_a_first_probe_takes_28_bytes_and_a_poll_six():
    # The eight smallest of a hundred contexts.
    prints = np.sort(np.random.default_rng(0).integers(0, FINGERPRINTS, 100))[:8]
    first = encode_probe(EdgeProbe(3, prints)), encode_common(np.zeros(8, np.bool_))
    poll = encode_probe(EdgeProbe(3, prints[:0])), encode_common(np.zeros(8, np.bool_))
    assert sum(map(len, first)) <= 28 and sum(map(len, poll)) <= 6


@pytest.mark.parametrize("prints", [[3, 3], [4, 1], [-1], [FINGERPRINTS], range(65)])
def test_bad_fingerprints_are_refused(prints):
    with pytest.raises(InvalidField, match="prints"):
        encode_probe(EdgeProbe(0, np.array(list(prints), np.int64)))


def test_what_is_too_long_is_refused():
    payload = encode_probe(EdgeProbe(0, np.arange(20) * 1000))
    with pytest.raises(OversizedMessage):
        decode_probe(payload, Limits(max_bytes=8))
    with pytest.raises(TrailingData):
        decode_probe(payload + bytes(2))
    with pytest.raises(OversizedMessage, match="announced"):
        decode_common(encode_common(np.zeros(65, np.bool_)))
