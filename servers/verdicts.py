"""What becomes of logits: verdicts on drafts, and a byte of the LLM's opinion for each token read.

Logits are large, and what is told of them is small. They are reduced some rows at a time, so that
a long message costs no more memory than a short one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from hlm.arrays import IntArray
from hlm.feedback import feedback_bytes
from hlm.randomness import DrawKeys, exponentials, session_keys
from hlm.sampling import Sampling, checked_top_token, distribution, top_token
from hlm.verification import VERIFIERS, Claim, ClaimError, Greedy
from hlm.verification.coupled import exponential_race
from hlm.wire import NO_TOKEN, Columns, Reply, Request, Status, column, entries
from servers.blocks import own_tokens, skipped

REDUCED_VALUES = 1 << 22
"""Most logits that are turned into verdicts or opinions at a time; as float64, 32 MiB a copy."""

_OK = int(Status.OK)  # numpy takes three times as long over a member of an enum


@dataclass(frozen=True, eq=False)
class Places(Columns):
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

    at: IntArray = column()
    owner: IntArray = column()
    token: IntArray = column()
    told: IntArray = column()
    asks: NDArray[np.bool_] = column(np.bool_)


class Verdicts:
    """What is decided of a request's rows, and told of their tokens, as logits come in.

    Parameters
    ----------
    request : Request
        Valid.

    Attributes
    ----------
    statuses : numpy.ndarray
        int64 [rows], a `Status`; ``OK`` until something else is known.
    fed_counts : numpy.ndarray
        int64 [rows], tokens of each row, the last ones, that the device wants to hear about.
    """

    def __init__(self, request: Request) -> None:
        rows = len(request.rows)
        self.request = request
        self.sampling = Sampling(request.decoding, request.temperature, request.top_p)
        self.statuses = np.full(rows, _OK, np.int64)
        self.fed_counts, self._told_counts = request.fed_counts, request.feedback_counts
        self._told_from = np.cumsum(self._told_counts) - self._told_counts
        self._opinions = np.zeros(int(self._told_counts.sum()), np.uint8)
        self._accepted = np.zeros(rows, np.bool_)
        self._tokens = np.full(rows, NO_TOKEN, np.int64)
        self._targets: dict[int, tuple[IntArray, IntArray]] = {}

    def places(self, begin: int, end: int) -> Places:
        """What is wanted of rows ``begin .. end - 1``, of one text: opinions, then what they ask.

        A row asks if it has a draft, or ends a block.
        """
        rows = self.request.rows
        index = np.arange(begin, end)
        fed = self.fed_counts[index]
        sizes = fed + (rows.drafted | rows.block)[index]
        owner = np.repeat(index, sizes)
        place = entries(np.zeros_like(sizes), sizes)
        asks = place == np.repeat(fed, sizes)
        at = (rows.ends - self.fed_counts)[owner] + place
        token = np.full(len(at), NO_TOKEN)
        if self.request.feedback:
            # Rows of a text go on from each other, and so do their tokens.
            first = int(rows.lengths[:begin].sum()) - int(rows.starts[begin])
            token[~asks] = rows.tokens[at[~asks] + first]
            token[asks] = rows.drafts[owner[asks]]
        return Places(at, owner, token, self._told_from[owner] + place, asks)

    def take(self, places: Places, logits: torch.Tensor) -> None:
        """Decide and tell what is wanted at `places`.

        Parameters
        ----------
        places : Places
            What is wanted.
        logits : torch.Tensor
            float32 [n, vocab of the model], a row for each place.
        """
        logits = logits[:, : self.request.vocab]
        most = max(1, REDUCED_VALUES // self.request.vocab)
        if len(logits) == 1 and places.asks[0] and places.token[0] < 0:
            self._decide(places.owner, logits)
            return
        for part in _some(np.flatnonzero(places.asks), most):
            chosen = torch.from_numpy(part).to(logits.device)
            self._decide(places.owner[part], logits[chosen])
        for part in _some(np.flatnonzero(places.token >= 0), most):
            here, chosen = places.select(part), torch.from_numpy(part).to(logits.device)
            self._opinions[here.told] = self._opinions_of(here, logits[chosen])

    def settle(self) -> tuple[IntArray, NDArray[np.bool_]]:
        """Skip what follows a row that does not stand in its block; every place was taken.

        Returns
        -------
        tokens, cut : numpy.ndarray
            int64 [rows], what was decided to follow each row's tokens, `NO_TOKEN` if nothing; and
            bool [rows], rows after which a block ends before its end.
        """
        stands = (self.statuses == _OK) & self._accepted
        ended = skipped(self.request.rows.block, stands)
        self.statuses[ended] = int(Status.SKIPPED)
        served = self.statuses == _OK
        self._tokens[~served], self._accepted[~served] = NO_TOKEN, False
        return self._tokens, np.append(ended[1:], False) & ~ended

    def reply(self) -> Reply:
        """The answer, once settled."""
        served = self.statuses == _OK
        sizes = np.zeros(len(served), np.int64)
        found = [(row, part) for row, part in sorted(self._targets.items()) if served[row]]
        for row, (support, _) in found:
            sizes[row] = len(support)
        nothing = np.zeros(0, np.int64)
        return Reply(
            self.statuses,
            self._accepted,
            self._tokens,
            self._told_counts * served,
            self._opinions[np.repeat(served, self._told_counts)],
            sizes,
            np.concatenate([nothing, *(support for _, (support, _) in found)]),
            np.concatenate([nothing, *(weights for _, (_, weights) in found)]),
        )

    def _decide(self, asking: IntArray, logits: torch.Tensor) -> None:
        """Decide each row as if those before it in its block stood; a wrong claim is refused."""
        try:
            self._verify(asking, logits)
        except ClaimError:
            if len(asking) == 1:
                self.statuses[asking] = Status.REFUSED
                return
            for index in range(len(asking)):
                self._decide(asking[index : index + 1], logits[index : index + 1])

    def _verify(self, asking: IntArray, logits: torch.Tensor) -> None:
        request, rows = self.request, self.request.rows
        if request.verifier == Greedy.name and self.sampling.decoding == "greedy":
            self._tokens[asking] = checked_top_token(logits).cpu().numpy()
            self._accepted[asking] = rows.drafts[asking] == self._tokens[asking]
            return
        target = distribution(logits, self.sampling).cpu()
        keys = self._draw_keys(asking, rows.ends[asking])
        drafted = rows.drafted[asking]
        if drafted.any():
            index = asking[drafted]
            one = rows.select(index)
            claim = Claim.of_entries(one.drafts, one.counts, one.weights, one.support)
            verifier = VERIFIERS[request.verifier]()
            verdict = verifier.decide(target[drafted], claim, keys.select(drafted))
            self._accepted[index] = verdict.accepted.numpy()
            self._tokens[index] = verdict.tokens.numpy()
            if verdict.target_weights is not None:
                for row, weights in zip(index.tolist(), verdict.target_weights, strict=True):
                    if self._tokens[row] == NO_TOKEN:
                        support = weights.nonzero()[:, 0]
                        self._targets[row] = support.numpy(), weights[support].numpy()
        if not drafted.all():
            own = own_tokens(target[~drafted], request.verifier, keys.select(~drafted))
            self._tokens[asking[~drafted]] = own.numpy()

    def _draw_keys(self, rows: IntArray, positions: IntArray) -> DrawKeys:
        sessions = session_keys(self.request.client, self.request.rows.sessions[rows])
        return DrawKeys(self.request.seed, sessions, positions)

    def _opinions_of(self, places: Places, logits: torch.Tensor) -> NDArray[np.uint8]:
        """A byte about the token at each place."""
        asked = torch.from_numpy(places.token).to(logits.device)
        if self.sampling.decoding == "greedy":
            log_prob = logits.gather(1, asked[:, None])[:, 0] - torch.logsumexp(logits, dim=1)
            choice = asked == top_token(logits)
        else:
            target, asked = distribution(logits, self.sampling).cpu(), asked.cpu()
            log_prob = target.gather(1, asked[:, None])[:, 0].log()
            keys = self._draw_keys(places.owner, places.at)
            choice = asked == exponential_race(target, exponentials(keys, self.request.vocab))
        return feedback_bytes(log_prob, choice)


def _some(index: IntArray, most: int) -> Iterator[IntArray]:
    """`index`, at most so many at a time."""
    return (index[begin : begin + most] for begin in range(0, len(index), most))
