"""Digests of what a row builds on."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
import pytest

from hlm.wire import PrefixDigest, joint_digest

IDENTITY, OTHER = bytes(range(16)), bytes(16)


def plain(identity, tokens):
    octets = b"".join(int(token).to_bytes(4, "little") for token in tokens)
    return blake2b(octets, key=identity, digest_size=16).digest()


def test_any_order_of_lengths_gives_the_digest_of_the_tokens():
    random = np.random.default_rng(0)
    tokens = random.integers(0, 152_064, 60)
    digest = PrefixDigest(IDENTITY)
    for length in [0, 5, 5, 60, 3, *random.integers(0, 61, 30)]:
        assert digest.at(tokens, int(length)) == plain(IDENTITY, tokens[:length])


def test_what_comes_after_a_shorter_length_may_have_changed():
    digest, text = PrefixDigest(IDENTITY), np.arange(9)
    digest.at(text, 9)
    other = np.concatenate([text[:4], text[:4]])
    digest.at(other, 4)
    assert digest.at(other, 8) == plain(IDENTITY, other)


def test_another_identity_token_or_length_has_another_digest():
    tokens = np.arange(8)
    found = {PrefixDigest(one).at(tokens, n) for one in (IDENTITY, OTHER) for n in range(9)}
    assert len(found) == 18
    assert PrefixDigest(IDENTITY).at(np.array([0, 1, 3]), 3) not in found


def test_an_identity_has_16_bytes():
    with pytest.raises(ValueError, match="15 bytes: 16"):
        PrefixDigest(bytes(15))


def test_the_joint_digest_is_of_every_row_in_order():
    rows = [(3, 4, bytes(16)), (4, 2, bytes(range(16)))]
    octets = b"".join(
        session.to_bytes(4, "little") + start.to_bytes(4, "little") + digest
        for session, start, digest in rows
    )
    expected = blake2b(octets, key=IDENTITY, digest_size=4).digest()
    assert joint_digest(IDENTITY, rows) == int.from_bytes(expected, "big")
    others = [
        rows[:1], rows[::-1], [(5, *rows[0][1:]), rows[1]], [(3, 5, rows[0][2]), rows[1]],
        [rows[0], (4, 2, bytes(16))],
    ]  # fmt: skip
    found = {joint_digest(IDENTITY, some) for some in others} | {joint_digest(OTHER, rows)}
    assert len(found) == 6
    assert joint_digest(IDENTITY, rows) not in found
