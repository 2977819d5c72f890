"""One method, ready to make texts.

Texts are made one at a time, as a device decodes for one user: every escalated token is a message
of its own and pays the link's round trip.
"""

from __future__ import annotations

import time
from typing import Protocol

from clients.records import Stage, TokenRecords, Traffic
from clients.routing import Router
from clients.uplink import LanguageModelUplink, Transport
from fedhlm_app.compare.methods import Method
from fedhlm_app.compare.tally import Tally, payload_bytes
from fedhlm_app.workload import Work, correct
from hlm.sampling import Sampling
from hlm.wire import (
    Reply,
    Request,
    Row,
    RowReply,
    Status,
    encode_reply,
    encode_request,
)

__all__ = ["Contender", "LanguageModelAlone", "Recorder", "Routed"]


class Contender(Protocol):
    """A method as the comparison runs it."""

    method: Method
    tally: Tally

    def make(self, work: Work, counted: bool = True) -> TokenRecords:
        """Make or read one text, and count what it took."""
        ...

    def answer(self, workload: str, work: Work) -> None:
        """Route texts whose right tokens are known, and count how many come out right."""
        ...


class Recorder:
    """A transport that keeps what it carried.

    Parameters
    ----------
    transport : Transport
        Carries the bytes.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self.requests: list[bytes] = []

    def exchange(self, payload: bytes) -> bytes:
        """Send a request, return the reply."""
        self.requests.append(payload)
        return self._transport.exchange(payload)


class Routed:
    """A policy and a verifier of the one router.

    Parameters
    ----------
    method : Method
        What it is.
    router : Router
        Whose last resolver is `uplink`.
    uplink : LanguageModelUplink
        Its transport is `recorder`.
    recorder : Recorder
        Has carried nothing yet.
    """

    def __init__(
        self, method: Method, router: Router, uplink: LanguageModelUplink, recorder: Recorder
    ) -> None:
        self.method = method
        self.router = router
        self.uplink = uplink
        self.recorder = recorder
        self.tally = Tally()

    def make(self, work: Work, counted: bool = True) -> TokenRecords:
        """Make or read one text, and count what it took."""
        self.recorder.requests.clear()
        traffic = Traffic()
        begin = time.perf_counter()
        records = _route(self.router, work, traffic)
        seconds = time.perf_counter() - begin
        requests = self.recorder.requests.copy()
        # The report knows of every token what the LLM makes of it; the method pays for none of it.
        self.uplink.measure(work.texts, records, Traffic())
        if counted:
            greedy = self.router.config.sampling.decoding == "greedy"
            # Text of the small model alone is tied to no draw of the large one.
            race = self.method.verifier == "coupled" and self.method.escalates != "nothing"
            self.tally.add_text(records, traffic, seconds, greedy, race)
            self.tally.payload += sum(map(payload_bytes, requests))
        return records

    def answer(self, workload: str, work: Work) -> None:
        """Route texts whose right tokens are known, and count how many come out right."""
        records = _route(self.router, work, Traffic())
        self.tally.add_answers(workload, *correct(work, records))
        self.recorder.requests.clear()


class LanguageModelAlone:
    """The LLM decodes by itself: the prompt goes up, and tokens are streamed down.

    Parameters
    ----------
    method : Method
        What it is.
    router : Router
        Around the large model, keeping every draft.
    """

    def __init__(self, method: Method, router: Router) -> None:
        self.method = method
        self.router = router
        self.tally = Tally()

    def make(self, work: Work, counted: bool = True) -> TokenRecords:
        """Make or read one text, and count what it took."""
        traffic = Traffic()
        begin = time.perf_counter()
        records = _route(self.router, work, traffic)
        seconds = time.perf_counter() - begin
        records.stage[records.present] = Stage.LLM_ACCEPTED
        if counted:
            self.tally.add_text(records, self._traffic(work, records, seconds), seconds, True, True)
        return records

    def answer(self, workload: str, work: Work) -> None:
        """Route texts whose right tokens are known, and count how many come out right."""
        self.tally.add_answers(workload, *correct(work, _route(self.router, work, Traffic())))

    def _traffic(self, work: Work, records: TokenRecords, seconds: float) -> Traffic:
        """One request with the prompt, and a reply for each token; they wait for one round trip."""
        config = self.router.config
        vocab = int(self.router.model.config.get_text_config().vocab_size)
        traffic = Traffic(messages=len(work.first), waited=seconds)
        for index in range(len(work.first)):
            made = records.token[index][records.present[index]]
            prompt = work.texts.text(index)[: work.texts.prompt_lengths[index]]
            row = Row(int(work.texts.sessions[index]), 0, prompt, quiet=len(prompt))
            request = _request(row, vocab, config.sampling, config.seed)
            traffic.uplink += len(encode_request(request))
            for token in made:
                reply = Reply((RowReply(Status.OK, token=int(token)),))
                traffic.downlink += len(encode_reply(reply, request))
        return traffic


def _request(row: Row, vocab: int, sampling: Sampling, seed: int) -> Request:
    greedy = sampling.decoding == "greedy"
    return Request(
        verifier="greedy" if greedy else "coupled",
        vocab=vocab,
        rows=(row,),
        seed=0 if greedy else seed,
        decoding=sampling.decoding,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
    )


def _route(router: Router, work: Work, traffic: Traffic) -> TokenRecords:
    if work.texts.given:
        return router.score(work.texts, work.first, traffic)
    return router.generate(work.texts, work.new_tokens, traffic)
