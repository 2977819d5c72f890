"""Requests put together by hand, from a device process of a known identity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from hlm.wire import PrefixDigest, Request, joint_digest
from tests.models import VOCAB

IDENTITY = bytes(range(16))


def request_of(
    verifier,
    rows,
    *,
    on: Mapping[int, Sequence[int]] | None = None,
    vocab=VOCAB,
    identity=IDENTITY,
    **options,
) -> Request:
    """A request whose rows of session s go on the text ``on[s]``; without, on no known one."""
    rows = tuple(rows)
    begins = any(row.start == 0 for row in rows)
    request = Request(verifier, vocab, rows, identity=identity if begins else b"", **options)
    prefixes = [
        (
            row.session,
            row.start,
            PrefixDigest(identity).at(np.array(list(text), np.int64), row.start),
        )
        for index, row in enumerate(rows)
        if request.builds(index) and (text := (on or {}).get(row.session)) is not None
    ]
    if not prefixes:
        return request
    return Request(**{**vars(request), "digest": joint_digest(identity, prefixes)})


def _prefix(identity, text, length) -> bytes:
    return PrefixDigest(identity).at(np.array(list(text), np.int64), length)
