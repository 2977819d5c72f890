"""One method, ready to make texts.

Texts are made one at a time, as a device decodes for one user: every request pays the link's round
trip, and every frame of a stream the server's pace.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from copy import deepcopy

import numpy as np

from clients.decoding.routing import Router
from clients.decoding.speculative import SpeculativeDecoder
from clients.records import Stage, TextBatch, TokenRecords, Traffic
from clients.resolvers.link import Link as DeviceLink
from clients.resolvers.measuring import read_unseen
from clients.resolvers.messages import UplinkConfig
from clients.resolvers.stream import Spans
from clients.resolvers.uplink import LanguageModelUplink
from fedhlm_app.compare.methods import Method
from fedhlm_app.compare.tally import Tally, Took
from fedhlm_app.data.workload import WorkloadBatch, correct
from hlm.channels import Link, StreamTimes, Times
from hlm.transport import Frames, Transport
from hlm.verification import VERIFIERS, plain_verifier
from hlm.wire import Reply, Request, Rows, Status, encode_reply, encode_request
from hlm.wire.stream import decode_control, decode_opening

Clock = Callable[[], float]
"""Seconds from some moment on."""

WINDOW = 64
"""Tokens that the LLM alone may be ahead of the device."""


class Recorder:
    """A transport that keeps what it carried, and when it would have come over links.

    Parameters
    ----------
    transport : Transport
        Carries the bytes.
    clock : callable
        Measures the answers, and what lies between them: the device's work.
    links : sequence of Link
        Whose times are told.

    Attributes
    ----------
    requests : list of bytes
        All messages that went up.
    round_trips : int
        Those whose answer was waited for.
    seconds, device_seconds : float
        Work of the server, and of the device.
    times : Times
        Since `clear`.
    """

    def __init__(self, transport: Transport, clock: Clock, links: Sequence[Link]) -> None:
        self._transport = transport
        self.links = links
        self.clock = clock
        self.clear()

    def clear(self) -> None:
        """Forget everything so far; the device begins to work."""
        self.requests: list[bytes] = []
        self.round_trips = 0
        self.seconds = self.device_seconds = 0.0
        self.times = Times(self.links)
        self._streams: dict[int, StreamTimes] = {}
        self._since = self.clock()

    def took(self) -> Took:
        """What has happened since `clear`, until now."""
        self.settle()
        # What goes up for a report alone comes later, and is counted by this recorder as well.
        return Took(
            deepcopy(self.times),
            self.seconds,
            self.device_seconds,
            self.round_trips,
            self.requests.copy(),
        )

    def settle(self) -> None:
        """Count the device's work until now."""
        now = self.clock()
        self.times.compute(now - self._since)
        self.device_seconds += now - self._since
        self._since = now

    def exchange(self, payload: bytes) -> bytes:
        """Send a request, return the reply."""
        self._asked(payload)
        answer = self._transport.exchange(payload)
        self.times.exchange(len(payload), len(answer), self._served())
        return answer

    def post(self, payload: bytes) -> None:
        """Send a control, whose answer nobody waits for."""
        self.settle()
        self.requests.append(payload)
        control = decode_control(payload)
        if control.stops:
            self._streams[control.key].stop(control.credit)
        self._transport.post(payload)
        self._served()

    def stream(self, payload: bytes) -> Frames:
        """Open a stream, return its frames."""
        self._asked(payload)
        key, times = decode_opening(payload).key, None
        with closing(self._transport.stream(payload)) as arriving:
            for frames in arriving:
                seconds = self._served()
                if times is None:
                    times = self.times.stream(len(payload), len(frames), seconds)
                    self._streams[key] = times
                else:
                    times.frame(len(frames), seconds)
                yield frames
                self.settle()
            self._served()

    def carried(self, traffic: Traffic) -> None:
        """An exchange with a server that is no service: its time has just passed."""
        self.round_trips += 1
        self.times.exchange(traffic.uplink, traffic.downlink, self._served())

    def _asked(self, payload: bytes) -> None:
        self.settle()
        self.requests.append(payload)
        self.round_trips += 1

    def _served(self) -> float:
        """Seconds of the server's work that has just ended."""
        now = self.clock()
        seconds, self._since = now - self._since, now
        self.seconds += seconds
        return seconds


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
        self.tally = Tally(recorder.links)

    def make(self, work: WorkloadBatch, counted: bool = True) -> TokenRecords:
        """Make or read one text, and count what it took."""
        self.recorder.clear()
        traffic = Traffic()
        records = self.route(work, traffic)
        took = self.recorder.took()
        # The report knows of every token what the LLM makes of it; the method pays for none of it.
        read_unseen(self.uplink.sender, work.texts, records, Traffic())
        if counted:
            greedy = self.router.config.sampling.decoding == "greedy"
            # Text of the small model alone is tied to no draw of the large one.
            race = (
                VERIFIERS[self.method.verifier].shared_draw and self.method.escalates != "nothing"
            )
            self.tally.add_text(records, traffic, took, greedy, race)
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
        Around the large model, keeping every draft: reads given texts.
    config : UplinkConfig
        Of requests.
    recorder : Recorder
        Has carried nothing yet.
    """

    def __init__(
        self, method: Method, router: Router, config: UplinkConfig, recorder: Recorder
    ) -> None:
        self.method = method
        self.router = router
        self.config = config
        self.recorder = recorder
        self.spans = Spans(DeviceLink(recorder, "llm"))
        self.tally = Tally(recorder.links)

    def make(self, work: WorkloadBatch, counted: bool = True) -> TokenRecords:
        """Make or read one text, and count what it took."""
        self.recorder.clear()
        made = self._read if work.texts.given else self.streamed
        records, traffic = made(work)
        records.stage[records.present] = Stage.LLM_ACCEPTED
        if counted:
            self.tally.add_text(records, traffic, self.recorder.took(), True, True)
        return records

    def answer(self, workload: str, work: WorkloadBatch) -> None:
        """Route texts whose right tokens are known, and count how many come out right."""
        self.tally.add_answers(workload, *correct(work, _route(self.router, work, Traffic())))

    def _read(self, work: WorkloadBatch) -> tuple[TokenRecords, Traffic]:
        """A given text: one request with it, and a reply for each place."""
        request = self._request(work.texts)
        begin = self.recorder.clock()
        records = _route(self.router, work, Traffic())
        reply = encode_reply(Reply(np.array([Status.OK]), tokens=np.ones(1, np.int64)), request)
        traffic = Traffic(
            messages=1,
            decoded=records.tokens,
            uplink=len(encode_request(request)),
            downlink=records.tokens * len(reply),
            waited=self.recorder.clock() - begin,
        )
        self.recorder.carried(traffic)
        return records, traffic

    def streamed(self, work: WorkloadBatch) -> tuple[TokenRecords, Traffic]:
        """One text, from a stream that is opened with its prompt."""
        texts, most = work.texts, work.new_tokens
        records = TokenRecords(1, most)
        stream = self.spans.open(self._request(texts), most, WINDOW)
        for step in range(most):
            token = stream.next([0])
            records.position[0, step] = texts.lengths[0]
            texts.append(np.zeros(1, np.int64), token)
            records.draft[0, step] = records.token[0, step] = token[0]
            records.present[0, step] = records.escalated[0, step] = True
            if int(token[0]) in self.router.config.end_tokens:
                break
        self.spans.leave(stream)
        self.spans.finish()
        return records, self.spans.collect()

    def _request(self, texts: TextBatch) -> Request:
        config, prompt = self.config, texts.text(0)
        length = np.array([len(prompt)])
        return Request(
            verifier=plain_verifier(config.sampling.decoding),
            vocab=config.vocab,
            rows=Rows(texts.sessions, np.zeros(1, np.int64), length, prompt, quiet=length),
            seed=config.seed,
            client=config.client,
            decoding=config.sampling.decoding,
            temperature=config.sampling.temperature,
            top_p=config.sampling.top_p,
            identity=config.identity,
        )


Contender = RoutedMethod | LanguageModelAlone
"""A method as the comparison runs it."""


def _route(router: Router, work: WorkloadBatch, traffic: Traffic) -> TokenRecords:
    if work.texts.given:
        return router.score(work.texts, work.first, traffic)
    return router.generate(work.texts, work.new_tokens, traffic)
