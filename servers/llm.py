"""The LLM as a service: bytes in, bytes out, whatever carries them.

A request names the tokens the server does not have and the drafts it must decide. All requests
that wait at the same time are answered from the same forward passes, long ones in slices
(`servers.schedule`). For every token that is read
on the way the device gets one byte of the LLM's opinion, at no extra pass ("free feedback").
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from typing import Any

from hlm.verifiers import served_verifiers
from hlm.wire import (
    Limits,
    Request,
    WireError,
    decode_request,
    encode_reply,
)
from hlm.wire.stream import decode_opening, is_control
from servers.backend import Backend, check_served
from servers.job import Job
from servers.metrics import SIZES, Histogram
from servers.origin import NOBODY, Caller, Origin
from servers.schedule import Schedule
from servers.stream import Stream
from servers.streams import Streams
from servers.texts import HeldTexts


class LanguageModelService:
    """Decides drafts with one backend.

    Parameters
    ----------
    engine : Backend
        The large model.
    limits : Limits
        Largest message that is read.

    Attributes
    ----------
    verdicts : int
        Drafts decided.
    batches : Histogram
        Of requests that shared a turn.
    """

    def __init__(self, engine: Backend, limits: Limits | None = None) -> None:
        self.engine = engine
        self.limits = Limits() if limits is None else limits
        self.texts = HeldTexts(engine)
        self.streams = Streams(self)
        self.lock = threading.Lock()
        self.verdicts = 0
        self.batches = Histogram(SIZES)
        # Of streams that are written as they are read: those that one thread reads go on together.
        self._schedules: dict[tuple[Caller, int], Schedule] = {}

    def handle(self, payload: bytes) -> bytes:
        """Answer one request.

        Raises
        ------
        WireError
            When the bytes are no valid request.
        """
        (answer,) = self.handle_each([payload])
        if isinstance(answer, Exception):
            raise answer
        return answer

    def handle_each(self, payloads: Sequence[bytes]) -> list[bytes | Exception]:
        """Answer several requests of different callers from shared forward passes.

        Returns
        -------
        list of bytes or Exception
            A reply each; what was wrong where there is none. One caller's error is its own.
        """
        schedule = Schedule(self, max(1, len(payloads)))
        jobs: list[Job | bytes | WireError] = []
        for payload in payloads:
            try:
                if is_control(payload):
                    jobs.append(self.control(payload))
                else:
                    jobs.append(schedule.add(self.begin(payload)))
            except WireError as error:
                jobs.append(error)
        while schedule.busy:
            schedule.turn()
        return [self.written(job) if isinstance(job, Job) else job for job in jobs]

    def stream(self, payload: bytes) -> Generator[bytes, None, None]:
        """Frames of one stream, each written when it is asked for.

        Whoever asks is not reading controls meanwhile: where the credit is used up it ends.

        Raises
        ------
        WireError
            When the bytes are no valid opening.
        """
        asking = True
        stream = self.open(payload, wanted=lambda: asking)
        reader = stream.caller, threading.get_ident()
        schedule = self._schedules.setdefault(reader, Schedule(self, 1))
        schedule.add(stream)
        try:
            while True:
                with self.lock:
                    frames = stream.frames()
                if frames:
                    asking = False
                    yield frames
                    asking = True
                elif stream.error is not None:
                    raise stream.error
                elif stream.finished:
                    return
                else:
                    schedule.turn()
        finally:
            schedule.drop(stream)
            if not schedule.busy:
                self._schedules.pop(reader, None)

    def open(
        self,
        payload: bytes,
        abandoned: Callable[[], bool] = lambda: False,
        steady: bool = False,
        wanted: Callable[[], bool] | None = None,
        origin: Origin = NOBODY,
    ) -> Stream:
        """A stream, ready to take turns (see `Stream`).

        Raises
        ------
        WireError
            When the bytes are no valid opening.
        """
        opening = decode_opening(payload, self.limits)
        self._check(opening.request)
        return Stream(self, opening, abandoned, steady, wanted, origin)

    def control(self, payload: bytes, origin: Origin = NOBODY) -> bytes:
        """Do as a device says of its stream; the answer.

        Raises
        ------
        WireError
            When the bytes are no valid control.
        """
        with self.lock:
            return self.streams.control(payload, origin.device)

    def begin(
        self,
        payload: bytes,
        abandoned: Callable[[], bool] = lambda: False,
        origin: Origin = NOBODY,
    ) -> Job:
        """A request, ready to take turns; `abandoned` says when nobody waits for it any more.

        Raises
        ------
        WireError
            When the bytes are no valid request.
        """
        return Job(self, self.read(payload), abandoned, origin)

    def written(self, job: Job) -> bytes | Exception:
        """The bytes of a finished request's reply, or why there are none."""
        if job.reply is None:
            return job.error or RuntimeError("the request is not finished")
        try:
            return encode_reply(job.reply, job.request)
        except Exception as error:  # the caller must hear of it, whatever it is
            return error

    def read(self, payload: bytes) -> Request:
        """Decode a request and check it against the model.

        Raises
        ------
        WireError
            When the bytes are no valid request, or none that this model can serve.
        """
        request = decode_request(payload, self.limits)
        self._check(request)
        return request

    def _check(self, request: Request) -> None:
        if request.vocab > self.engine.vocab:
            raise WireError(
                f"vocab={request.vocab}: the model's vocabulary has {self.engine.vocab} tokens"
            )
        check_served(request, self.engine)
        check_askable(request)

    def describe(self) -> dict[str, Any]:
        """What the model is: vocabulary, longest text, verifiers served, way of reading."""
        return {
            "vocab": self.engine.vocab,
            "max_context": self.engine.max_context,
            "verifiers": served_verifiers(self.engine.offers),
            "reading": self.engine.reading,
        }


def check_askable(request: Request) -> None:
    """Refuse a request that reads well and cannot be served.

    Raises
    ------
    WireError
        For a draft with nothing before it, and rows of one text that do not go on from each other:
        one forward pass reads them all.
    """
    rows = request.rows
    alone = rows.drafted & (rows.ends == 0)
    if alone.any():
        session = rows.sessions[alone.argmax()]
        raise WireError(f"session {session}: a draft needs at least one token before it")
    if len(rows) == 1:
        return
    wrong = (rows.block[:-1] | (rows.starts[1:] != rows.ends[:-1])) & ~(rows.first | rows.block)[1:]
    if wrong.any():
        at = int(wrong.argmax())
        raise WireError(
            f"session {rows.sessions[at]}: start={rows.starts[at + 1]} must be {rows.ends[at]}, "
            "where the row before it ends, and that one in no block"
        )
