"""Requests put together by hand, from a device process of a known identity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from hlm.wire import PrefixDigest, Reply, Request, joint_digest
from servers.job import Job
from servers.llm import LanguageModelService
from servers.schedule import Schedule
from tests.models import VOCAB
from tests.wire_rows import rows_of

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
    rows = list(rows)
    begins = any(row.start == 0 for row in rows)
    request = Request(
        verifier, vocab, rows_of(rows), identity=identity if begins else b"", **options
    )
    prefixes = [
        (
            row.session,
            row.start,
            PrefixDigest(identity).at(np.array(list(text), np.int64), row.start),
        )
        for index, row in enumerate(rows)
        if request.rows.builds[index] and (text := (on or {}).get(row.session)) is not None
    ]
    if not prefixes:
        return request
    return Request(**{**vars(request), "digest": joint_digest(identity, prefixes)})


def _prefix(identity, text, length) -> bytes:
    return PrefixDigest(identity).at(np.array(list(text), np.int64), length)


def answers(service: LanguageModelService, requests: Sequence[Request]) -> list[Reply]:
    """Every row of every request decided, in order, from shared passes."""
    schedule = Schedule(service, max(1, len(requests)))
    jobs = [schedule.add(Job(service, request)) for request in requests]
    while schedule.busy:
        schedule.turn()
    for job in jobs:
        if job.error is not None:
            raise job.error
    return [job.reply for job in jobs]
