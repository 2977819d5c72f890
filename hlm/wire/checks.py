"""What a request must be, whether a device is about to send it or a server has just read it."""

import math
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from hlm.verifiers import Shape
from hlm.wire.errors import InvalidField
from hlm.wire.messages import (
    NO_TOKEN,
    SCALAR_BITS,
    Request,
    Row,
    following_row,
)
from hlm.wire.prefix import DIGEST_BITS, IDENTITY_BYTES


def check_request(request: Request) -> None:
    """Raise :class:`InvalidField` for the first field that is out of range or contradictory."""
    for name, allowed in (("bits", (8, 16)), ("decoding", ("greedy", "sampled"))):
        if getattr(request, name) not in allowed:
            raise InvalidField(f"{name}={getattr(request, name)!r} must be one of {allowed}")
    if request.vocab < 2:
        raise InvalidField(f"vocab={request.vocab} must be at least 2")
    if not (math.isfinite(request.temperature) and request.temperature > 0):
        raise InvalidField(f"temperature={request.temperature} must be above 0")
    if not 0 < request.top_p <= 1:
        raise InvalidField(f"top_p={request.top_p} must be in (0, 1]")
    if not 0 <= request.client < 1 << 32:
        raise InvalidField(f"client={request.client} must be in [0, {1 << 32})")
    if not request.rows:
        raise InvalidField("rows must not be empty")
    if len(request.identity) != (IDENTITY_BYTES if request.begins else 0):
        raise InvalidField(
            f"identity has {len(request.identity)} bytes; {IDENTITY_BYTES} are needed where a row "
            "starts at 0, and none elsewhere"
        )
    runs = 1 + sum(row.session != last.session for last, row in pairwise(request.rows))
    if runs != len({row.session for row in request.rows}):
        raise InvalidField("rows of one session must be adjacent")
    if request.rows[0].block:
        raise InvalidField(f"session {request.rows[0].session}: the first row goes on no block")
    for last, row in pairwise(request.rows):
        if row.block:
            _check_block(last, row)
    builds = any(request.builds(index) for index in range(len(request.rows)))
    most = 1 << DIGEST_BITS if builds else 1
    if not 0 <= request.digest < most:
        raise InvalidField(f"digest={request.digest} must be in [0, {most}) for these rows")
    if not _plainly_right(request):
        for row in request.rows:
            _check_row(row, request)


def _plainly_right(request: Request) -> bool:
    """Whether all rows are right, seen at once; False also where that takes a closer look."""
    rows, vocab = request.rows, request.vocab
    shape = request.shape
    for row in rows:
        if (
            type(row.tokens) is not np.ndarray
            or row.tokens.dtype != np.int64
            or row.tokens.ndim != 1
            or not 0 <= row.session < 1 << 32
            or not 0 <= row.start < 1 << 32
            or not 0 <= row.quiet <= row.tokens.size
            or not NO_TOKEN <= row.draft < vocab
            or (shape != Shape.NOTHING and row.draft != NO_TOKEN)
            or not (row.weight is None and row.support is None and row.weights is None)
        ):
            return False
    tokens = np.concatenate([row.tokens for row in rows])
    return not tokens.size or (0 <= int(tokens.min()) and int(tokens.max()) < vocab)


def _check_block(last: Row, row: Row) -> None:
    expected = following_row(last, row.draft, row.weight, row.support, row.weights)
    if last.draft == NO_TOKEN or row != expected:
        raise InvalidField(
            f"session {row.session}: to go on a block, a row needs a draft before it, and session "
            f"{expected.session}, start {expected.start}, tokens [{last.draft}], quiet 1; it has "
            f"start {row.start}, tokens {row.tokens}, quiet {row.quiet}"
        )


def _check_row(row: Row, request: Request) -> None:
    where = f"session {row.session}"
    tokens = np.asarray(row.tokens)
    if tokens.ndim != 1 or (tokens.size and not np.issubdtype(tokens.dtype, np.integer)):
        raise InvalidField(f"{where}: tokens must be a vector of integers")
    if tokens.size and not 0 <= int(tokens.min()) <= int(tokens.max()) < request.vocab:
        raise InvalidField(f"{where}: tokens must be in [0, {request.vocab})")
    for name, low, high in (
        ("session", 0, 1 << 32),
        ("start", 0, 1 << 32),
        ("quiet", 0, tokens.size + 1),
        ("draft", NO_TOKEN, request.vocab),
    ):
        if not low <= getattr(row, name) < high:
            raise InvalidField(f"{where}: {name}={getattr(row, name)} must be in [{low}, {high})")
    shape = Shape.NOTHING if row.draft == NO_TOKEN else request.shape
    present = (row.weight is not None, row.support is not None, row.weights is not None)
    wanted = (shape == Shape.WEIGHT, shape == Shape.SUPPORT, shape in (Shape.SUPPORT, Shape.PROBS))
    if present != wanted:
        raise InvalidField(
            f"{where}: (weight, support, weights) given is {present}, but {request.verifier!r} "
            f"{'without' if row.draft == NO_TOKEN else 'with'} a draft needs {wanted}"
        )
    if row.weight is not None and not 1 <= row.weight <= 1 << SCALAR_BITS:
        raise InvalidField(f"{where}: weight={row.weight} must be in [1, {1 << SCALAR_BITS}]")
    if row.weights is not None:
        _check_law(row, row.weights, request, where)


def _check_law(row: Row, weights: npt.NDArray[np.integer], request: Request, where: str) -> None:
    size = request.vocab if row.support is None else len(row.support)
    if weights.shape != (size,) or size == 0:
        raise InvalidField(f"{where}: weights have shape {weights.shape}; expected ({size},), > 0")
    total, whole = int(weights.sum(dtype=np.int64)), 1 << request.bits
    enough = total == whole or (row.support is not None and total < whole)
    if int(weights.min()) < 0 or not enough:
        relation = "sum to" if row.support is None else "sum to at most"
        raise InvalidField(f"{where}: weights must be >= 0 and {relation} {whole}; got {total}")
    if row.support is not None:
        low, high = int(row.support[0]), int(row.support[-1])
        if not 0 <= low <= high < request.vocab or bool(np.any(np.diff(row.support) < 1)):
            raise InvalidField(
                f"{where}: support must increase strictly within [0, {request.vocab})"
            )
