"""The LLM as a service: bytes in, bytes out, whatever carries them.

A request names the tokens the server does not have and the drafts it must decide. All requests
that wait at the same time are answered from the same forward passes. For every token that is read
on the way the device gets one byte of the LLM's opinion, at no extra pass ("free feedback").
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from hlm.randomness import exponentials
from hlm.sampling import Sampling, checked_top_token, law, top_token
from hlm.verification import VERIFIERS, ClaimError, Greedy
from hlm.verification.coupled import exponential_race
from hlm.wire import (
    NO_TOKEN,
    Limits,
    Reply,
    Request,
    RowReply,
    Status,
    WireError,
    decode_request,
    encode_reply,
)
from hlm.wire.claims import claim_of, reply_fields
from servers.asked import (
    AskedRow,
    IntArray,
    SessionKey,
    asked_row,
    check_askable,
    draw_keys,
    feed_of,
    turns,
)
from servers.blocks import own_tokens, skipped
from servers.engine import Engine, Feed


class LanguageModelService:
    """Decides drafts with one engine.

    Parameters
    ----------
    engine : Engine
        The large model.
    limits : Limits
        Largest message that is read.
    """

    def __init__(self, engine: Engine, limits: Limits | None = None) -> None:
        self.engine = engine
        self.limits = Limits() if limits is None else limits
        self._lock = threading.Lock()

    def handle(self, payload: bytes) -> bytes:
        """Answer one request.

        Raises
        ------
        WireError
            When the bytes are no valid request.
        """
        return self.handle_many([payload])[0]

    def handle_many(self, payloads: Sequence[bytes]) -> list[bytes]:
        """Answer several requests from shared forward passes.

        Raises
        ------
        WireError
            When any of them is no valid request; `handle_each` tells their callers apart.
        """
        requests = [self.read(payload) for payload in payloads]
        replies = self.answer(requests)
        return [
            encode_reply(reply, request) for reply, request in zip(replies, requests, strict=True)
        ]

    def handle_each(self, payloads: Sequence[bytes]) -> list[bytes | Exception]:
        """Answer several requests of different callers from shared forward passes.

        Returns
        -------
        list of bytes or Exception
            A reply each; what was wrong where there is none. One caller's error is its own: should
            it come up in a shared pass, all are answered one by one. (They can be: a request says
            itself where its tokens belong, so a second time does no harm.)
        """
        answers: dict[int, bytes | Exception] = {}
        good: list[tuple[int, Request]] = []
        for index, payload in enumerate(payloads):
            try:
                good.append((index, self.read(payload)))
            except WireError as error:
                answers[index] = error
        try:
            replies = self.answer([request for _, request in good])
            for (index, request), reply in zip(good, replies, strict=True):
                answers[index] = encode_reply(reply, request)
        except Exception as error:  # the callers must hear of it, whatever it is
            if len(good) == 1:
                answers[good[0][0]] = error
            else:
                for index, _ in good:
                    (answers[index],) = self.handle_each([payloads[index]])
        return [answers[index] for index in range(len(payloads))]

    def read(self, payload: bytes) -> Request:
        """Decode a request and check it against the model.

        Raises
        ------
        WireError
            When the bytes are no valid request, or none that this model can serve.
        """
        request = decode_request(payload, self.limits)
        if request.vocab > self.engine.vocab:
            raise WireError(
                f"vocab={request.vocab}: the model's vocabulary has {self.engine.vocab} tokens"
            )
        check_askable(request)
        return request

    def answer(self, requests: Sequence[Request]) -> list[Reply]:
        """Decide every row of every request, in order."""
        asked = [[asked_row(request, i) for i in range(len(request.rows))] for request in requests]
        with self._lock, torch.inference_mode():
            for together in turns(asked):
                self._read_texts([item for index in together for item in asked[index]])
                for index in together:
                    self._decide(requests[index], asked[index])
        return [
            Reply(tuple(item.reply or RowReply(Status.REFUSED) for item in items), passes=None)
            for items in asked
        ]

    def _read_texts(self, asked: Sequence[AskedRow]) -> None:
        """Feed all new tokens, one pass for all texts; rows that cannot be served are answered."""
        texts: dict[SessionKey, list[AskedRow]] = {}
        for item in asked:
            texts.setdefault(item.session, []).append(item)
        feeds, owners = [], []
        for session, items in texts.items():
            served = self._admit(session, items)
            if served:
                feeds.append(feed_of(session, served))
                owners.append(served)
        for feed, served, logits in zip(feeds, owners, self.engine.score(feeds), strict=True):
            for item in served:
                if logits is None:
                    held = self.engine.held(item.session)
                    item.reply = RowReply(Status.PREFIX_NEEDED, held=held)
                    continue
                if len(served) == 1:
                    item.logits = [logits]
                    continue
                places = item.feedback
                if item.asks:
                    places = np.append(places, item.end)
                found = torch.from_numpy(np.searchsorted(feed.wanted, places))
                item.logits = [logits[found]]

    def _admit(self, session: SessionKey, items: list[AskedRow]) -> list[AskedRow]:
        """The rows of one text that can be served: no gap in the prefix, and not too long."""
        known = self.engine.held(session)
        served: list[AskedRow] = []
        before: AskedRow | None = None
        for item in items:
            if item.row.block and (not served or served[-1] is not before):
                item.reply = RowReply(Status.SKIPPED)
            elif item.row.start > known:
                item.reply = RowReply(Status.PREFIX_NEEDED, held=known)
            elif item.end > self.engine.max_context:
                item.reply = RowReply(Status.REFUSED)
            else:
                served.append(item)
                known = item.end
            before = item
        return served

    def _decide(self, request: Request, items: list[AskedRow]) -> None:
        """Verify the drafts of one request's rows and write the replies."""
        sampling = Sampling(request.decoding, request.temperature, request.top_p)
        asking = [item for item in items if item.asks and item.reply is None]
        if asking:
            try:
                self._verify(request, sampling, asking)
            except ClaimError:
                for item in asking:
                    item.reply = RowReply(Status.REFUSED)
        ended = skipped([item.row for item in items], [item.stands for item in items])
        for item, silent in zip(items, ended, strict=True):
            if silent:
                item.reply = RowReply(Status.SKIPPED)
        opinions = self._opinions(request, sampling, [i for i in items if i.reply is None])
        for item, cut in zip(items, [*ended[1:], False], strict=True):
            if cut and (item.reply is None or item.reply.status != Status.SKIPPED):
                self._drop_after(item)
            if item.reply is not None:
                continue
            token = item.decided.get("token", NO_TOKEN)
            if token != NO_TOKEN and self.engine.held(item.session) == item.end:
                self.engine.append(item.session, token)
            item.reply = RowReply(Status.OK, feedback=opinions.get(id(item)), **item.decided)

    def _verify(self, request: Request, sampling: Sampling, asking: list[AskedRow]) -> None:
        """Decide each row as if the rows before it in its block stood."""
        logits = torch.stack([item.logits[0][-1] for item in asking])[:, : request.vocab]
        if request.verifier == Greedy.name and sampling.decoding == "greedy":
            _decide_greedily(logits, asking)
            return
        target = law(logits, sampling).cpu()
        keys = draw_keys(request, asking, np.array([item.end for item in asking], np.int64))
        rows = [item.row for item in asking]
        drafted = np.flatnonzero([item.drafted for item in asking])
        further = np.flatnonzero([not item.drafted for item in asking])
        if len(drafted):
            claim = claim_of([rows[i] for i in drafted])
            verifier = VERIFIERS[request.verifier]()
            verdict = verifier.decide(target[drafted], claim, keys.select(drafted))
            for line, index in enumerate(drafted):
                asking[index].decided = reply_fields(verdict, line)
        if len(further):
            tokens = own_tokens(
                target[further], request.decoding, request.verifier, keys.select(further)
            )
            for index, token in zip(further, tokens.tolist(), strict=True):
                asking[index].decided = {"token": token}

    def _drop_after(self, item: AskedRow) -> None:
        """Forget drafts that the engine read after the row that ended its block."""
        if self.engine.held(item.session) > item.end:
            nothing = np.empty(0, np.int64)
            self.engine.score([Feed(item.session, item.end, nothing, nothing)])

    def _opinions(
        self, request: Request, sampling: Sampling, items: list[AskedRow]
    ) -> dict[int, NDArray[np.uint8]]:
        """Feedback bytes about the tokens each row fed and drafted."""
        if not request.feedback or not items:
            return {}
        tokens: list[int] = []
        places: list[IntArray] = []
        owners: list[AskedRow] = []
        for item in items:
            own = item.row.tokens[item.feedback - item.row.start].tolist()
            at = item.feedback
            if item.drafted:
                own.append(item.row.draft)
                at = np.append(at, item.end)
            tokens += own
            places.append(at)
            owners += [item] * len(own)
        # The law of the token after a block is about no token that was fed or drafted.
        told = [i.logits[0][: len(at)] for i, at in zip(items, places, strict=True)]
        logits = torch.cat(told)[:, : request.vocab]
        if not len(logits):
            return {id(item): np.empty(0, np.uint8) for item in items}
        asked = torch.tensor(tokens, device=logits.device)
        if sampling.decoding == "greedy":
            log_prob = logits.gather(1, asked[:, None])[:, 0] - torch.logsumexp(logits, dim=1)
            choice = asked == top_token(logits)
        else:
            target, asked = law(logits, sampling).cpu(), asked.cpu()
            log_prob = target.gather(1, asked[:, None])[:, 0].log()
            keys = draw_keys(request, owners, np.concatenate(places))
            choice = asked == exponential_race(target, exponentials(keys, request.vocab))
        code = feedback_bytes(log_prob, choice)
        lengths = [len(at) for at in places]
        parts = np.split(code, np.cumsum(lengths)[:-1])
        return {id(item): part for item, part in zip(items, parts, strict=True)}


def _decide_greedily(logits: torch.Tensor, asking: Sequence[AskedRow]) -> None:
    """Compare drafts with the most likely tokens; rows without a draft get theirs."""
    tokens = checked_top_token(logits).tolist()
    for item, token in zip(asking, tokens, strict=True):
        if item.row.draft >= logits.shape[1]:
            raise ClaimError(f"draft = {item.row.draft}: allowed are 0 to {logits.shape[1] - 1}")
        item.decided = {"token": token}
        if item.drafted:
            item.decided["accepted"] = item.row.draft == token


def feedback_bytes(log_prob: torch.Tensor, choice: torch.Tensor) -> NDArray[np.uint8]:
    """One byte a token: bit 7 is `choice`, bits 0-6 are ``round(-8 ln y)``, at most 127.

    Parameters
    ----------
    log_prob : torch.Tensor
        float [n], nats, <= 0; -inf is the largest code.
    choice : torch.Tensor
        bool [n]: the token is what the LLM itself would have put there: its most likely token in
        greedy decoding, its own draw with the request's shared randomness otherwise.
    """
    code = torch.round(-8.0 * log_prob.double()).clamp(0, 127).nan_to_num(127.0)
    packed = code.to(torch.uint8) | (choice.to(torch.uint8) << 7)
    return packed.cpu().numpy()
