"""Random messages for the tests of the wire."""

from dataclasses import replace

import numpy as np

from hlm.verifiers import VERIFIERS
from hlm.wire import (
    Reply,
    Request,
    Shape,
    Status,
)
from tests.wire_rows import Row, RowReply, following_row, listed, reply_of, rows_of

Generator = np.random.Generator


def law(random: Generator, size: int, bits: int) -> np.ndarray:
    """Integer weights of ``size`` entries that sum to ``2**bits``, now and then a point mass."""
    if random.random() < 0.15:
        weights = np.zeros(size, dtype=np.int64)
        weights[random.integers(size)] = 1 << bits
        return weights
    return random.multinomial(1 << bits, random.dirichlet(np.full(size, 0.3))).astype(np.int64)


def claim(random: Generator, verifier: str, vocab: int, bits: int) -> dict[str, object]:
    shape = VERIFIERS[verifier].claim
    if shape == Shape.WEIGHT:
        weight = int(random.choice([1, 1 << 16, random.integers(1, 1 << 16)]))
        return {"weight": weight}
    if shape == Shape.SUPPORT:
        size = int(random.integers(1, min(vocab, 40) + 1))
        support = np.sort(random.choice(vocab, size, replace=False)).astype(np.int64)
        weights = law(random, size + 1, bits)[:-1]
        return {"support": support, "weights": weights}
    if shape == Shape.PROBS:
        return {"weights": law(random, vocab, bits)}
    return {}


def random_request(
    random: Generator,
    verifier: str | None = None,
    most_sessions: int = 8,
    vocabs: tuple[int, ...] = (2, 3, 10, 100, 257, 4096),
) -> Request:
    verifier = verifier or str(random.choice(list(VERIFIERS)))
    vocab = int(random.choice(vocabs))
    bits = int(random.choice([8, 16]))
    count = int(random.integers(1, most_sessions + 1))
    if random.random() < 0.5:
        sessions = random.choice(1 << int(random.choice([4, 10, 32])), count, replace=False)
    else:
        sessions = int(random.integers(1 << 16)) + np.arange(count)
    rows: list[Row] = []
    for session in sessions:
        for part in range(1 + int(random.random() < 0.2)):
            tokens = random.integers(0, vocab, int(random.geometric(0.3)) - (part == 0))
            draft = int(random.integers(0, vocab)) if random.random() < 0.85 else -1
            made = claim(random, verifier, vocab, bits) if draft >= 0 else {}
            start = int(random.choice([0, random.integers(0, 2000)]))
            quiet = int(random.choice([0, random.integers(0, len(tokens) + 1)]))
            rows.append(Row(int(session), start, tokens, draft, quiet=quiet, **made))  # type: ignore
            while rows[-1].draft >= 0 and random.random() < 0.2:
                draft = int(random.integers(0, vocab)) if random.random() < 0.7 else -1
                made = claim(random, verifier, vocab, bits) if draft >= 0 else {}
                rows.append(following_row(rows[-1], draft, **made))  # type: ignore
    begins = any(row.start == 0 for row in rows)
    request = Request(
        verifier,
        vocab,
        rows_of(rows),
        seed=int(random.choice([0, 7, random.integers(1 << 63)])),
        client=int(random.choice([0, 19, random.integers(1 << 32)])),
        feedback=bool(random.integers(2)),
        decoding=str(random.choice(["greedy", "sampled"])),  # type: ignore
        temperature=float(random.choice([1.0, 0.7, 1 / 3])),
        top_p=float(random.choice([1.0, 0.95])),
        bits=bits,
        identity=random.bytes(16) if begins else b"",
    )
    builds = request.rows.builds.any()
    return replace(request, digest=int(random.integers(1 << 32)) if builds else 0)


def random_reply(random: Generator, request: Request) -> Reply:
    rows: list[RowReply] = []
    troubled = random.random() < 0.3
    less = random.random() < 0.2
    for index, row in enumerate(listed(request.rows)):
        last = rows[-1] if rows else None
        if row.block and last and (last.status != Status.OK or not last.accepted):
            rows.append(RowReply(Status.SKIPPED))
            continue
        status = Status(int(random.integers(3))) if troubled else Status.OK
        if status != Status.OK:
            rows.append(RowReply(status))
            continue
        size = int(request.feedback_counts[index])
        size = int(random.integers(size + 1)) if less else size
        feedback = random.integers(0, 256, size).astype(np.uint8)
        rows.append(replace(_verdict(random, row, request), feedback=feedback))
    return reply_of(rows)


def _verdict(random: Generator, row: Row, request: Request) -> RowReply:
    token = int(random.integers(0, request.vocab))
    if row.draft < 0:
        return RowReply(token=token if random.random() < 0.5 else -1)
    if random.random() < 0.5:
        return RowReply(accepted=True, token=row.draft)
    if request.shape != Shape.WEIGHT or random.random() < 0.3:
        return RowReply(token=token)
    weights = law(random, request.vocab, 16)
    support = np.flatnonzero(weights)
    return RowReply(target_support=support, target_weights=weights[support])
