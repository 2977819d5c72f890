"""What becomes of logits: verdicts on drafts, and a byte of the LLM's opinion for each token read.

Logits are large, and what is told of them is small. They are reduced some rows at a time, so that
a long message costs no more memory than a short one.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from hlm.arrays import IntArray
from hlm.feedback import feedback_bytes
from hlm.randomness import DrawKeys, exponentials, session_keys
from hlm.sampling import Sampling, checked_top_token, distribution, top_token
from hlm.verification import VERIFIERS, Claim, ClaimError, Greedy
from hlm.verification.coupled import exponential_race
from hlm.wire import NO_TOKEN, Reply, Request, Status, entries
from servers.blocks import own_tokens, skipped

REDUCED_VALUES = 1 << 22
"""Most logits that are turned into verdicts or opinions at a time; as float64, 32 MiB a copy."""

_OK = int(Status.OK)  # numpy takes three times as long over a member of an enum


class Verdicts:
    """What is decided of a request's rows, and told of their tokens, as logits come in.

    *Places* are the positions at which something is: of every row the tokens whose opinions are
    wanted, then the row's draft, or the token after its block.

    Parameters
    ----------
    request : Request
        Valid; rows of one text go on from each other.

    Attributes
    ----------
    statuses : numpy.ndarray
        int64 [rows], a `Status`; ``OK`` until something else is known.
    fed_counts : numpy.ndarray
        int64 [rows], tokens of each row, the last ones, that the device wants to hear about.
    firsts : numpy.ndarray
        int64 [rows + 1], the first place of each row, and how many there are.
    at, token : numpy.ndarray
        int64 [places], the position in the text, and the token that an opinion is wanted about;
        -1: none is.
    """

    def __init__(self, request: Request) -> None:
        rows, count = request.rows, len(request.rows)
        self.request = request
        self.sampling = Sampling(request.decoding, request.temperature, request.top_p)
        self.statuses = np.full(count, _OK, np.int64)
        self.fed_counts, self._told_counts = request.fed_counts, request.feedback_counts
        self._accepted = np.zeros(count, np.bool_)
        self._tokens = np.full(count, NO_TOKEN, np.int64)
        self._targets: dict[int, tuple[IntArray, IntArray]] = {}
        # A row asks if it has a draft, or ends a block.
        asking = rows.drafted | rows.block
        self.firsts = np.zeros(count + 1, np.int64)
        (self.fed_counts + asking).cumsum(out=self.firsts[1:])
        if not request.feedback:
            self._owner = asking.nonzero()[0]
            self.at = rows.ends[self._owner]
            self.token = np.full(len(self._owner), NO_TOKEN)
            self._opinions = np.zeros(0, np.uint8)
            return
        sizes = self.fed_counts + asking
        self._owner = owner = np.repeat(np.arange(count), sizes)
        place = entries(np.zeros_like(sizes), sizes)
        self._asks = place == self.fed_counts[owner]
        self.at = (rows.ends - self.fed_counts)[owner] + place
        self._told = (np.cumsum(self._told_counts) - self._told_counts)[owner] + place
        self._opinions = np.zeros(int(self._told_counts.sum()), np.uint8)
        # A token's place among those of all rows; a draft is in none.
        index = self.at + (np.cumsum(rows.lengths) - rows.lengths - rows.starts)[owner]
        self.token = np.where(self._asks, rows.drafts[owner], 0)
        self.token[~self._asks] = rows.tokens[index[~self._asks]]

    def take(self, places: IntArray, logits: torch.Tensor) -> None:
        """Decide and tell what is wanted at `places`.

        Parameters
        ----------
        places : numpy.ndarray
            int64 [n].
        logits : torch.Tensor
            float32 [n, vocab of the model], a row for each place.
        """
        logits = logits[:, : self.request.vocab]
        most = max(1, REDUCED_VALUES // self.request.vocab)
        if not self.request.feedback and len(places) <= most:
            self._decide(self._owner[places], logits)
            return
        asks = self._asks[places] if self.request.feedback else np.ones(len(places), np.bool_)
        for part in _some(np.flatnonzero(asks), most):
            chosen = torch.from_numpy(part).to(logits.device)
            self._decide(self._owner[places[part]], logits[chosen])
        for part in _some(np.flatnonzero(self.token[places] >= 0), most):
            here, chosen = places[part], torch.from_numpy(part).to(logits.device)
            self._opinions[self._told[here]] = self._opinions_of(here, logits[chosen])

    def settle(self) -> tuple[IntArray, NDArray[np.bool_]]:
        """Skip what follows a row that does not stand in its block; every place was taken.

        Returns
        -------
        tokens, cut : numpy.ndarray
            int64 [rows], what was decided to follow each row's tokens, `NO_TOKEN` if nothing; and
            bool [rows], rows after which a block ends before its end.
        """
        cut = np.zeros(len(self.statuses), np.bool_)
        if self.request.rows.block.any():
            stands = (self.statuses == _OK) & self._accepted
            ended = skipped(self.request.rows.block, stands)
            self.statuses[ended] = int(Status.SKIPPED)
            cut[:-1] = ended[1:] & ~ended[:-1]
        served = self.statuses == _OK
        if not served.all():
            self._tokens[~served], self._accepted[~served] = NO_TOKEN, False
        return self._tokens, cut

    def reply(self) -> Reply:
        """The answer, once settled."""
        if not self.request.feedback and not self._targets:
            return Reply(self.statuses, self._accepted, self._tokens)
        served = self.statuses == _OK
        found = [(row, part) for row, part in sorted(self._targets.items()) if served[row]]
        sizes = np.zeros(len(served), np.int64)
        sizes[[row for row, _ in found]] = [len(support) for _, (support, _) in found]
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
            tokens = checked_top_token(logits).cpu().numpy()
            self._tokens[asking], self._accepted[asking] = tokens, rows.drafts[asking] == tokens
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

    def _opinions_of(self, places: IntArray, logits: torch.Tensor) -> NDArray[np.uint8]:
        """A byte about the token at each place."""
        asked = torch.from_numpy(self.token[places]).to(logits.device)
        if self.sampling.decoding == "greedy":
            log_prob = logits.gather(1, asked[:, None])[:, 0] - torch.logsumexp(logits, dim=1)
            choice = asked == top_token(logits)
        else:
            target, asked = distribution(logits, self.sampling).cpu(), asked.cpu()
            log_prob = target.gather(1, asked[:, None])[:, 0].log()
            keys = self._draw_keys(self._owner[places], self.at[places])
            choice = asked == exponential_race(target, exponentials(keys, self.request.vocab))
        return feedback_bytes(log_prob, choice)


def _some(index: IntArray, most: int) -> Iterator[IntArray]:
    """`index`, at most so many at a time."""
    return (index[begin : begin + most] for begin in range(0, len(index), most))
