"""What becomes of logits: verdicts on drafts, and a byte of the LLM's opinion for each token read.

Logits are large, and what is told of them is small. They are reduced some rows at a time, so that
a long message costs no more memory than a short one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from hlm.arrays import IntArray
from hlm.feedback import feedback_bytes
from hlm.randomness import DrawKeys, exponentials, session_keys
from hlm.sampling import Sampling, checked_top_token, distribution, top_token
from hlm.verification import VERIFIERS, ClaimError, Greedy
from hlm.verification.coupled import exponential_race
from hlm.wire import Request, RowReply, Status
from hlm.wire.claims import claim_of, reply_fields
from servers.asked import AskedRow
from servers.blocks import own_tokens

REDUCED_VALUES = 1 << 22
"""Most logits that are turned into verdicts or opinions at a time; as float64, 32 MiB a copy."""


@dataclass(frozen=True)
class Places:
    """Positions at which something is to be told of the logits.

    Attributes
    ----------
    at : numpy.ndarray
        int64 [n], positions in the text.
    owner : numpy.ndarray
        int64 [n], which row of the request.
    token : numpy.ndarray
        int64 [n], the token that an opinion is wanted about; -1: none is.
    told : numpy.ndarray
        int64 [n], where that opinion goes among all of the request.
    asks : numpy.ndarray
        bool [n]: the row's draft, or the token after its block, is decided here.
    """

    at: IntArray
    owner: IntArray
    token: IntArray
    told: IntArray
    asks: NDArray[np.bool_]

    def select(self, index: IntArray | slice | NDArray[np.bool_]) -> Places:
        """Some of them."""
        return Places(*(column[index] for column in vars(self).values()))

    @classmethod
    def joined(cls, parts: Sequence[Places]) -> Places:
        """All of several, in order."""
        columns = zip(*(vars(part).values() for part in parts), strict=True)
        return cls(*(np.concatenate(column) for column in columns))


def reduce_logits(
    request: Request,
    rows: Sequence[AskedRow],
    opinions: NDArray[np.uint8],
    places: Places,
    logits: torch.Tensor,
) -> None:
    """Write verdicts into `rows` and bytes into `opinions`.

    Parameters
    ----------
    request : Request
        Whose rows they are.
    rows : sequence of AskedRow
        All rows of the request; `decided` or `reply` is set where a place asks.
    opinions : numpy.ndarray
        uint8, all of the request; written to at ``places.told``.
    places : Places
        What is wanted.
    logits : torch.Tensor
        float32 [n, vocab of the model], a row for each place.
    """
    sampling = Sampling(request.decoding, request.temperature, request.top_p)
    logits = logits[:, : request.vocab]
    most = max(1, REDUCED_VALUES // request.vocab)
    for part in _some(np.flatnonzero(places.asks), most):
        asking = [rows[owner] for owner in places.owner[part].tolist()]
        _decide(request, sampling, asking, logits[torch.from_numpy(part).to(logits.device)])
    for part in _some(np.flatnonzero(places.token >= 0), most):
        here = places.select(part)
        owners = [rows[owner] for owner in here.owner.tolist()]
        opinions[here.told] = _opinions(
            request, sampling, owners, here, logits[torch.from_numpy(part).to(logits.device)]
        )


def _some(index: IntArray, most: int) -> Iterator[IntArray]:
    """`index`, at most so many at a time."""
    return (index[begin : begin + most] for begin in range(0, len(index), most))


def _decide(
    request: Request, sampling: Sampling, asking: Sequence[AskedRow], logits: torch.Tensor
) -> None:
    """Decide each row as if the rows before it in its block stood; a wrong claim is refused."""
    try:
        _verify(request, sampling, asking, logits)
    except ClaimError:
        if len(asking) == 1:
            asking[0].reply = RowReply(Status.REFUSED)
            return
        for index, item in enumerate(asking):
            _decide(request, sampling, [item], logits[index : index + 1])


def _verify(
    request: Request, sampling: Sampling, asking: Sequence[AskedRow], logits: torch.Tensor
) -> None:
    if request.verifier == Greedy.name and sampling.decoding == "greedy":
        _verify_greedily(logits, asking)
        return
    target = distribution(logits, sampling).cpu()
    keys = _draw_keys(request, asking, np.array([item.end for item in asking], np.int64))
    rows = [item.row for item in asking]
    drafted = np.flatnonzero([item.drafted for item in asking])
    further = np.flatnonzero([not item.drafted for item in asking])
    if len(drafted):
        claim = claim_of([rows[i] for i in drafted])
        verifier = VERIFIERS[request.verifier]()
        verdict = verifier.decide(target[drafted], claim, keys.select(drafted))
        for line, index in enumerate(drafted.tolist()):
            asking[index].decided = reply_fields(verdict, line)
    if len(further):
        tokens = own_tokens(target[further], request.verifier, keys.select(further))
        for index, token in zip(further.tolist(), tokens.tolist(), strict=True):
            asking[index].decided = {"token": token}


def _verify_greedily(logits: torch.Tensor, asking: Sequence[AskedRow]) -> None:
    """Compare drafts with the most likely tokens; rows without a draft get theirs."""
    tokens = checked_top_token(logits).tolist()
    for item, token in zip(asking, tokens, strict=True):
        if item.row.draft >= logits.shape[1]:
            raise ClaimError(f"draft = {item.row.draft}: allowed are 0 to {logits.shape[1] - 1}")
        item.decided = {"token": token}
        if item.drafted:
            item.decided["accepted"] = item.row.draft == token


def _draw_keys(request: Request, items: Sequence[AskedRow], positions: IntArray) -> DrawKeys:
    sessions = np.array([item.row.session for item in items], np.int64)
    return DrawKeys(request.seed, session_keys(request.client, sessions), positions)


def _opinions(
    request: Request,
    sampling: Sampling,
    owners: Sequence[AskedRow],
    places: Places,
    logits: torch.Tensor,
) -> NDArray[np.uint8]:
    """A byte about the token at each place."""
    asked = torch.from_numpy(places.token).to(logits.device)
    if sampling.decoding == "greedy":
        log_prob = logits.gather(1, asked[:, None])[:, 0] - torch.logsumexp(logits, dim=1)
        choice = asked == top_token(logits)
    else:
        target, asked = distribution(logits, sampling).cpu(), asked.cpu()
        log_prob = target.gather(1, asked[:, None])[:, 0].log()
        keys = _draw_keys(request, owners, places.at)
        choice = asked == exponential_race(target, exponentials(keys, request.vocab))
    return feedback_bytes(log_prob, choice)
