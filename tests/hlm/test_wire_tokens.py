"""A prefix code for token ids: short, the same everywhere, and refused where it is unknown."""

import csv
import gzip
import os
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hlm.wire import (
    BitReader,
    BitWriter,
    Request,
    TokenCode,
    TruncatedMessage,
    UnsupportedVersion,
    WireError,
    bits_needed,
    decode_request,
    encode_request,
)
from tests.hlm.wire_messages import random_request

quick = settings(max_examples=80, deadline=None)
ZIPF = (1_000_000 / np.arange(1, 4097) ** 1.1).astype(np.int64)
CODE, OTHER, SHORTER = TokenCode(ZIPF), TokenCode(ZIPF[::-1]), TokenCode(ZIPF[:4095])


@quick
@given(st.lists(st.integers(0, 10**6), min_size=2, max_size=60), st.integers(0, 2**32 - 1))
def test_tokens_come_back_in_nearly_their_entropy(counts: list[int], seed: int) -> None:
    code = TokenCode(counts)
    weights = 2 * np.array(counts) + 1
    share = weights / weights.sum()
    entropy = -(share * np.log2(share)).sum()
    assert (2.0**-code.lengths).sum() == 1.0  # Kraft: no bit pattern is left over
    assert entropy - 1e-9 <= share @ code.lengths < entropy + 1
    tokens = np.random.default_rng(seed).integers(0, len(counts), 40)
    writer = BitWriter()
    writer.uint(1, 3)
    code.write(writer, tokens)
    payload = writer.getvalue()
    assert len(payload) == (3 + code.bits(tokens) + 7) // 8
    reader = BitReader(payload)
    reader.uint(3)
    assert reader.remaining >= code.bits(tokens)
    assert code.read(reader, 40).tolist() == tokens.tolist()
    reader.finish()


def test_no_shorter_code_exists_for_four_tokens() -> None:
    # All complete prefix codes of four words have these lengths, in some order.
    for seed in range(50):
        counts = np.random.default_rng(seed).integers(0, 100, 4)
        weights = 2 * counts + 1
        best = min(
            int(weights @ np.array(order))
            for lengths in ((2, 2, 2, 2), (1, 2, 3, 3))
            for order in permutations(lengths)
        )
        assert int(weights @ TokenCode(counts).lengths) == best


def test_the_code_is_the_same_on_every_machine() -> None:
    assert TokenCode([5, 5, 5, 0, 1, 1]).lengths.tolist() == [2, 2, 2, 4, 4, 3]
    assert CODE.fingerprint == TokenCode(ZIPF.astype(np.int32)).fingerprint
    assert CODE.fingerprint != OTHER.fingerprint


def coded_request(seed: int) -> Request:
    random = np.random.default_rng(seed)
    request = random_request(random, "coupled")
    share = ZIPF / ZIPF.sum()
    rows = tuple(
        replace(row, tokens=random.choice(4096, 30, p=share), draft=int(random.choice(40)), quiet=0)
        for row in request.rows
        if not row.block
    )
    return replace(request, vocab=4096, rows=rows)


@quick
@given(st.integers(0, 2**32 - 1))
def test_requests_come_back_shorter(seed: int) -> None:
    request = coded_request(seed)
    payload = encode_request(request, CODE)
    assert decode_request(payload, token_code=CODE) == request
    assert len(payload) < len(encode_request(request))
    for other in (None, OTHER, SHORTER):
        with pytest.raises(UnsupportedVersion):
            decode_request(payload, token_code=other)
    with pytest.raises(TruncatedMessage):
        decode_request(payload[:-1], token_code=CODE)


def test_a_code_that_does_not_help_is_not_used() -> None:
    request = coded_request(3)
    plain = encode_request(request)
    assert encode_request(request, OTHER) == plain
    assert encode_request(request, TokenCode(ZIPF[:100])) == plain
    assert decode_request(plain, token_code=CODE) == request


def test_flipped_bits_are_read_or_refused() -> None:
    code = CODE
    payload = encode_request(coded_request(5), code)
    outcomes = {True: 0, False: 0}
    for place in range(8 * len(payload)):
        wrong = bytearray(payload)
        wrong[place >> 3] ^= 1 << (place & 7)
        try:
            decode_request(bytes(wrong), token_code=code)
        except WireError:
            outcomes[False] += 1
        else:
            outcomes[True] += 1
    assert min(outcomes.values()) > 10


@pytest.mark.parametrize(
    "counts", [[1], [[1, 2]], [0.5, 1.0], [-1, 2], [2**41, 1]], ids=lambda counts: str(counts)
)
def test_counts_that_are_none_are_refused(counts: list[int]) -> None:
    with pytest.raises(ValueError, match="counts"):
        TokenCode(counts)


def test_news_takes_a_sixth_fewer_bits() -> None:
    shared = Path(os.environ.get("FEDHLM_SHARED", Path(__file__).parents[3] / "shared"))
    tokenizer_file = shared / "pair" / "slm" / "tokenizer.json"
    news = shared / "data" / "ag_news"
    if not tokenizer_file.is_file() or not news.is_dir():
        pytest.skip(f"needs the pair and AG News under {shared} (set FEDHLM_SHARED)")
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_file))

    def ids(name: str, articles: int) -> np.ndarray:
        with gzip.open(news / name, "rt", encoding="utf-8") as lines:
            texts = [row[-1] for _, row in zip(range(articles), csv.reader(lines), strict=False)]
        return np.concatenate([found.ids for found in tokenizer.encode_batch(texts)])

    vocab = tokenizer.get_vocab_size()
    training = np.bincount(ids("train.csv.gz", 4_000), minlength=vocab)
    unseen = ids("validation.csv.gz", 500)
    for padded, most in ((vocab, 0.86), (32_000, 0.70)):
        code = TokenCode(np.pad(training, (0, padded - vocab)))
        assert code.bits(unseen) < most * unseen.size * bits_needed(padded)
