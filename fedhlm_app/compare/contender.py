"""One method, ready to make texts.

Texts are made one at a time, as a device decodes for one user: every escalated token is a message
of its own and pays the link's round trip.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

import numpy as np

from clients.decoding.routing import Router
from clients.decoding.speculative import SpeculativeDecoder
from clients.records import Stage, TokenRecords, Traffic
from clients.resolvers.measuring import read_unseen
from clients.resolvers.uplink import LanguageModelUplink
from fedhlm_app.compare.methods import Method
from fedhlm_app.compare.tally import Tally, payload_bytes
from fedhlm_app.data.workload import WorkloadBatch, correct
from hlm.sampling import Sampling
from hlm.transport import Frames, Transport
from hlm.verification import VERIFIERS, plain_verifier
from hlm.wire import (
    IDENTITY_BYTES,
    Reply,
    Request,
    Rows,
    Status,
    encode_reply,
    encode_request,
)

__all__ = ["Clock", "Contender", "LanguageModelAlone", "Recorder", "RoutedMethod", "Speculative"]


Clock = Callable[[], float]
"""Seconds from some moment on."""


class Recorder:
    """A transport that keeps what it carried, and how long the answers took.

    Parameters
    ----------
    transport : Transport
        Carries the bytes.
    clock : callable
        Measures the answers.
    """

    def __init__(self, transport: Transport, clock: Clock) -> None:
        self._transport = transport
        self.clock = clock
        self.requests: list[bytes] = []
        self.seconds = 0.0

    def exchange(self, payload: bytes) -> bytes:
        """Send a request, return the reply."""
        self.requests.append(payload)
        begin = self.clock()
        answer = self._transport.exchange(payload)
        self.seconds += self.clock() - begin
        return answer

    def post(self, payload: bytes) -> None:
        """Send a message whose answer nobody waits for."""
        self.requests.append(payload)
        self._transport.post(payload)

    def stream(self, payload: bytes) -> Frames:
        """Open a stream, return its frames."""
        self.requests.append(payload)
        begin = self.clock()
        with closing(self._transport.stream(payload)) as arriving:
            for frames in arriving:
                self.seconds += self.clock() - begin
                yield frames
                begin = self.clock()

    def clear(self) -> None:
        """Forget everything so far."""
        self.requests.clear()
        self.seconds = 0.0


class RoutedMethod:
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

    def make(self, work: WorkloadBatch, counted: bool = True) -> TokenRecords:
        """Make or read one text, and count what it took."""
        self.recorder.clear()
        traffic = Traffic()
        begin = self.recorder.clock()
        records = self.route(work, traffic)
        seconds = self.recorder.clock() - begin
        traffic.waited = self.recorder.seconds
        requests = self.recorder.requests.copy()
        # The report knows of every token what the LLM makes of it; the method pays for none of it.
        read_unseen(self.uplink.sender, work.texts, records, Traffic())
        if counted:
            greedy = self.router.config.sampling.decoding == "greedy"
            # Text of the small model alone is tied to no draw of the large one.
            race = (
                VERIFIERS[self.method.verifier].shared_draw and self.method.escalates != "nothing"
            )
            self.tally.add_text(records, traffic, seconds, greedy, race)
            self.tally.payload += sum(payload_bytes(request) for request in requests)
        return records

    def answer(self, workload: str, work: WorkloadBatch) -> None:
        """Route texts whose right tokens are known, and count how many come out right."""
        records = self.route(work, Traffic())
        self.tally.add_answers(workload, *correct(work, records))
        self.recorder.clear()

    def route(self, work: WorkloadBatch, traffic: Traffic) -> TokenRecords:
        """Make or read texts."""
        return _route(self.router, work, traffic)


class Speculative(RoutedMethod):
    """Blocks of drafts, all of them verified.

    A given text is read place by place: there is nothing to draft ahead in it.

    Parameters
    ----------
    decoder : SpeculativeDecoder
        Makes texts.
    others : as for `RoutedMethod`
        `router` reads given texts.
    """

    def __init__(
        self,
        decoder: SpeculativeDecoder,
        method: Method,
        router: Router,
        uplink: LanguageModelUplink,
        recorder: Recorder,
    ) -> None:
        super().__init__(method, router, uplink, recorder)
        self.decoder = decoder

    def route(self, work: WorkloadBatch, traffic: Traffic) -> TokenRecords:
        """Make or read texts."""
        if work.texts.given:
            return super().route(work, traffic)
        return self.decoder.generate(work.texts, work.new_tokens, traffic)


class LanguageModelAlone:
    """The LLM decodes by itself: the prompt goes up, and tokens are streamed down.

    Parameters
    ----------
    method : Method
        What it is.
    router : Router
        Around the large model, keeping every draft.
    clock : callable
        Measures its work.
    """

    def __init__(self, method: Method, router: Router, clock: Clock) -> None:
        self.method = method
        self.router = router
        self.clock = clock
        self.tally = Tally()

    def make(self, work: WorkloadBatch, counted: bool = True) -> TokenRecords:
        """Make or read one text, and count what it took."""
        begin = self.clock()
        records = _route(self.router, work, Traffic())
        seconds = self.clock() - begin
        records.stage[records.present] = Stage.LLM_ACCEPTED
        if counted:
            self.tally.add_text(records, self._traffic(work, records, seconds), seconds, True, True)
        return records

    def answer(self, workload: str, work: WorkloadBatch) -> None:
        """Route texts whose right tokens are known, and count how many come out right."""
        self.tally.add_answers(workload, *correct(work, _route(self.router, work, Traffic())))

    def _traffic(self, work: WorkloadBatch, records: TokenRecords, seconds: float) -> Traffic:
        """One request with the prompt, and a reply for each token; they wait for one round trip."""
        config = self.router.config
        vocab = int(self.router.model.config.get_text_config().vocab_size)
        traffic = Traffic(messages=len(work.first), waited=seconds)
        for index in range(len(work.first)):
            made = records.token[index][records.present[index]]
            prompt = work.texts.text(index)[: work.texts.prompt_lengths[index]]
            session, length = work.texts.sessions[[index]], np.array([len(prompt)])
            rows = Rows(session, np.zeros(1, np.int64), length, prompt, quiet=length)
            request = _request(rows, vocab, config.sampling, config.seed)
            traffic.uplink += len(encode_request(request))
            for token in made:
                reply = Reply(np.array([Status.OK]), tokens=np.array([token]))
                traffic.downlink += len(encode_reply(reply, request))
        return traffic


Contender = RoutedMethod | LanguageModelAlone
"""A method as the comparison runs it."""


def _request(rows: Rows, vocab: int, sampling: Sampling, seed: int) -> Request:
    greedy = sampling.decoding == "greedy"
    return Request(
        verifier=plain_verifier(sampling.decoding),
        vocab=vocab,
        rows=rows,
        seed=0 if greedy else seed,
        decoding=sampling.decoding,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        identity=bytes(IDENTITY_BYTES),  # its length is all that counts here
    )


def _route(router: Router, work: WorkloadBatch, traffic: Traffic) -> TokenRecords:
    if work.texts.given:
        return router.score(work.texts, work.first, traffic)
    return router.generate(work.texts, work.new_tokens, traffic)
