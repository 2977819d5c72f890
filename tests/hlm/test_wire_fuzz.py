"""Whatever arrives, a decoder returns a message or raises a WireError: soon, and in bounds."""

import time
import tracemalloc

import numpy as np
import pytest

from hlm.wire import (
    BitWriter,
    Limits,
    WireError,
    decode_reply,
    decode_request,
    encode_reply,
    encode_request,
)
from tests.hlm.wire_messages import random_reply, random_request

TIGHT = Limits(max_rows=64, max_tokens=4096, max_vocab=1 << 16, max_weights=1 << 16)


def mutated(random: np.random.Generator, payload: bytes) -> bytes:
    octets = np.frombuffer(payload, dtype=np.uint8).copy()
    kind = random.integers(6)
    if kind <= 2:  # one to eight flipped bits
        for _ in range(1 if kind == 0 else int(random.integers(1, 9))):
            octets[random.integers(octets.size)] ^= 1 << random.integers(8)
    elif kind == 3:  # a stretch of noise, zeros or ones
        first = int(random.integers(octets.size))
        stretch = octets[first : first + int(random.integers(1, 9))]
        fill = random.integers(0, 256, stretch.size)
        stretch[:] = random.choice(np.array([fill, fill * 0, fill * 0 + 255]))
    elif kind == 4:
        return payload[: random.integers(octets.size)]
    else:
        return payload + random.bytes(int(random.integers(1, 9)))
    return octets.tobytes()


def fuzz(count: int, seed: int) -> tuple[int, int]:
    """Decode ``count`` mutated messages; returns how many were read and how many refused."""
    random = np.random.default_rng(seed)
    read = refused = 0
    while read + refused < count:
        request = random_request(random, most_sessions=2)
        messages = [encode_request(request), encode_reply(random_reply(random, request), request)]
        for turn in range(400):
            payload = mutated(random, messages[turn % 2])
            began = time.process_time()
            try:
                if turn % 2:
                    reply = decode_reply(payload, request, TIGHT)
                else:
                    other = decode_request(payload, TIGHT)
            except WireError:
                refused += 1
            else:
                read += 1
                if read % 16 == 0 and turn % 2:  # what a decoder lets through is a message
                    assert decode_reply(encode_reply(reply, request), request, TIGHT) == reply
                elif read % 16 == 0:
                    assert decode_request(encode_request(other), TIGHT) == other
            assert time.process_time() - began < 2
    return read, refused


def test_two_thousand_mutated_messages() -> None:
    read, refused = fuzz(2_000, seed=1)
    assert read > 200 and refused > 200  # the mutations reach past the first check


@pytest.mark.slow
def test_a_hundred_thousand_mutated_messages() -> None:
    read, refused = fuzz(100_000, seed=2)
    assert read + refused >= 100_000
    assert read > 10_000 and refused > 10_000


def test_noise_of_any_length() -> None:
    random = np.random.default_rng(3)
    request = random_request(random)
    for length in range(400):
        noise = random.bytes(length)
        for payload in (noise, b"\xa2" + noise, b"\xb2" + noise, b"\xa2" + bytes(length)):
            for decode in (
                lambda octets: decode_request(octets, TIGHT),
                lambda octets: decode_reply(octets, request, TIGHT),
            ):
                try:
                    decode(payload)
                except WireError:
                    continue


def greedy_header(vocab: int, rows: int, verifier: int = 4) -> BitWriter:
    writer = BitWriter()
    writer.uint(0xA2, 8)
    writer.uint(verifier, 4)
    writer.uint(0, 7)  # no feedback, greedy, default law, 8 bits, no quiet, no all
    writer.flag(False)
    writer.golomb(vocab - 2, 12)
    writer.uint(0, 8)  # client and seed 0
    writer.golomb(rows - 1, 3)
    return writer


def announces_rows() -> bytes:
    writer = greedy_header(2, 4096)
    return writer.getvalue() + b"\xff" * 100_000


def announces_tokens() -> bytes:
    writer = greedy_header(2, 4096)
    for value in (7, 0, 1 << 17):  # three columns of one value each
        writer.uint(3, 2)
        writer.golomb(value, {7: 3, 0: 5, 1 << 17: 1}[value])
    return writer.getvalue() + bytes(100_000)


def announces_point_masses() -> bytes:
    """Each row's law is one place, a few bits that stand for a million weights."""
    writer = greedy_header(1 << 20, 256, verifier=0)
    for value, order in ((7, 3), (0, 5), (0, 1)):
        writer.uint(3, 2)
        writer.golomb(value, order)
    return writer.getvalue() + b"\xff" * 100_000


def announces_a_support() -> bytes:
    writer = greedy_header(1 << 20, 1, verifier=1)
    for value, order in ((0, 3), (4, 5), (0, 1)):  # session, start, no token
        writer.golomb(value, order)
    writer.flag(True)  # a draft
    writer.uint(0, 32)  # digest of the four tokens before
    writer.uint(3, 20)
    writer.golomb((1 << 22) - 2, 4)
    return writer.getvalue() + b"\xff" * 100_000


@pytest.mark.parametrize(
    "build", [announces_rows, announces_tokens, announces_point_masses, announces_a_support]
)
def test_announcing_much_allocates_little(build: object) -> None:
    payload = build()  # type: ignore[operator]
    tracemalloc.start()
    try:
        with pytest.raises(WireError):
            decode_request(payload)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20


def test_mutated_messages_allocate_within_a_bound() -> None:
    random = np.random.default_rng(4)
    worst = 0
    for _ in range(30):
        request = random_request(random)
        payload = encode_request(request)
        for _ in range(10):
            wrong = mutated(random, payload)
            tracemalloc.start()
            try:
                decode_request(wrong, TIGHT)
            except WireError:
                pass
            finally:
                worst = max(worst, tracemalloc.get_traced_memory()[1])
                tracemalloc.stop()
    # max_weights and max_tokens at 8 bytes a value and a few copies of each.
    assert worst < 8 * 8 * (TIGHT.max_weights + TIGHT.max_tokens)
