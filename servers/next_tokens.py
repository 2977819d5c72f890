"""The next tokens of all streams that a pass brought on, drawn together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from hlm.randomness import DrawKeys, exponentials, session_keys
from hlm.sampling import Sampling, checked_top_token, distribution
from hlm.verification.coupled import exponential_race
from hlm.wire import Request
from servers.stream import Stream, WrittenRow
from servers.verdicts import REDUCED_VALUES


def write(streams: Sequence[Stream]) -> None:
    """Draw the next token of all rows of streams together; an error is its stream's."""
    alike: dict[tuple[object, ...], list[Stream]] = {}
    for stream in streams:
        request = stream.opening.request
        sampling = request.decoding, request.temperature, request.top_p
        key = (request.vocab, request.seed, *sampling)
        alike.setdefault(key, []).append(stream)
    for group in alike.values():
        rows = [row for stream in group for row in stream.open_rows()]
        try:
            tokens = iter(next_tokens(group[0].opening.request, rows))
        except Exception as error:  # whoever reads the stream must hear of it, and nobody else
            if len(group) == 1:
                group[0].error = error
            else:
                for stream in group:
                    write([stream])
            continue
        for stream in group:
            stream.append(tokens)


def next_tokens(request: Request, rows: Sequence[WrittenRow]) -> list[int]:
    """What the large model puts next, exactly as a verdict of the same verifier would."""
    sampling = Sampling(request.decoding, request.temperature, request.top_p)
    tokens: list[int] = []
    most = max(1, REDUCED_VALUES // request.vocab)
    for begin in range(0, len(rows), most):
        part = rows[begin : begin + most]
        logits = torch.cat([row.logits for row in part if row.logits is not None])
        logits = logits[:, : request.vocab]
        if request.decoding == "greedy":
            tokens += checked_top_token(logits).tolist()
            continue
        clients, sessions, ends = np.array([(*row.session[:2], row.end) for row in part]).T
        keys = DrawKeys(request.seed, session_keys(clients, sessions), ends)
        target = distribution(logits, sampling).cpu()
        tokens += exponential_race(target, exponentials(keys, request.vocab)).tolist()
    return tokens
