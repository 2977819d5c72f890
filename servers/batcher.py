"""Requests to one LLM service that wait together, and streams: who asks, and the turns of all.

Requests that wait together are answered from the same forward passes, unless a run must repeat bit
for bit: float sums depend on the shape of a batch, so each request is then a batch of its own.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, TypeAlias

from hlm.wire.stream import is_control
from servers.origin import NOBODY, Origin

if TYPE_CHECKING:
    # The process that starts actors runs no model, and need not import what runs one.
    from servers.job import Job
    from servers.llm import LanguageModelService
    from servers.schedule import Schedule
    from servers.stream import Stream

READ_AT_ONCE = 1 << 14
"""Bytes up to which the thread that took a message reads it, while the engine's runs a pass."""

PATIENCE_SECONDS = 600.0
"""How long a stream that is written as it is read waits for its reader, on a busy machine."""


class StreamFrames:
    """What a stream has for its reader, whether there still is one, and whether it waits.

    Parameters
    ----------
    ahead : bool
        Frames are written before they are wanted.
    """

    def __init__(self, ahead: bool) -> None:
        self.arrived: asyncio.Queue[bytes | Exception | None] = asyncio.Queue()
        self.ahead = ahead
        self.over = False  # all has arrived
        self.gone = False
        self.wanted = True
        self.since = time.monotonic()

    def done(self) -> bool:
        """Whether nobody reads any more; who must ask for each frame has not for long."""
        idle = not self.ahead and not self.wanted
        return self.gone or (idle and time.monotonic() - self.since > PATIENCE_SECONDS)


Asker = asyncio.Future[bytes] | StreamFrames
Arrived: TypeAlias = "Job | Stream | bytes | None"
"""What is to take turns, what is still to be read, or None: a reader waits for more frames."""


class RequestBatcher:
    """Lets requests that arrive close together share passes, and long ones take turns.

    Parameters
    ----------
    service : LanguageModelService
        Does the work, in a thread of its own.
    wait : float
        Seconds a request waits for company, >= 0.
    most : int
        Most requests that share a pass; 1 keeps each request a batch of its own.
    """

    def __init__(self, service: LanguageModelService, wait: float = 0.0, most: int = 64) -> None:
        if wait < 0 or most < 1:
            raise ValueError(f"wait = {wait}, most = {most}: must be at least 0 and 1")
        self.service = service
        self.wait = wait
        self.most = most
        self.abandoned = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="llm")
        self._arrived = deque[tuple[Arrived, Asker, Origin]]()
        self._bell = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None

    async def exchange(self, payload: bytes) -> bytes:
        """Answer one request; cancelling the call drops what is left to do for it.

        Raises
        ------
        WireError
            When the bytes are no valid request.
        """
        return await self.submit(payload)

    async def stream(
        self, payload: bytes, frames: StreamFrames | None = None, origin: Origin = NOBODY
    ) -> AsyncGenerator[bytes, None]:
        """The frames of one stream; closing the generator drops what is left to do for it.

        Parameters
        ----------
        payload : bytes
            The opening.
        frames : StreamFrames, optional
            Where they go; by default some that are written ahead, as far as the credit goes.
        origin : Origin
            Who asks.

        Raises
        ------
        WireError
            When the bytes are no valid opening.
        """
        frames = frames or StreamFrames(ahead=True)
        self._put(payload, frames, origin)
        try:
            while (found := await frames.arrived.get()) is not None:
                if isinstance(found, Exception):
                    raise found
                yield found
                if not frames.ahead and frames.arrived.empty():
                    self._put(None, frames, origin)
        finally:
            frames.gone = True
            self._bell.set()

    def submit(self, payload: bytes, origin: Origin = NOBODY) -> asyncio.Future[bytes]:
        """The reply to come; cancel it when nobody waits for it any more."""
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._put(payload, answer, origin)
        return answer

    def _put(self, payload: bytes | None, asker: Asker, origin: Origin) -> None:
        """Take in a message; None: the reader of frames waits for more."""
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        found: Job | Stream | bytes | Exception | None = payload
        if payload is not None and len(payload) <= READ_AT_ONCE and not is_control(payload):
            found = self._begun(payload, asker, origin)
        if isinstance(found, Exception):
            _tell(asker, found)
            return
        self._arrived.append((found, asker, origin))
        self._bell.set()

    def _begun(self, payload: bytes, asker: Asker, origin: Origin) -> Job | Stream | Exception:
        """What is to take turns, or what is wrong with it: nothing of the engine is touched."""
        try:
            if not isinstance(asker, StreamFrames):
                return self.service.begin(payload, asker.done, origin)
            # Where a device asks for each frame, it speaks before: nothing hangs on time.
            wanted = None if asker.ahead else lambda: asker.wanted
            steady = asker.ahead and self.most == 1
            return self.service.open(payload, asker.done, steady, wanted, origin)
        except Exception as error:  # its caller must hear of it, and nobody else
            return error

    async def _work(self) -> None:
        from servers.schedule import Schedule

        loop, schedule = asyncio.get_running_loop(), Schedule(self.service, self.most)
        waiting: dict[Job | Stream, Asker] = {}
        while True:
            if not waiting:
                await self._bell.wait()
                if self.most > 1 and self.wait > 0 and len(self._arrived) == 1:
                    await asyncio.sleep(self.wait)
            elif pause := schedule.pause:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._bell.wait(), pause)
            self._bell.clear()
            fresh = list(self._arrived)
            self._arrived.clear()
            answers = await loop.run_in_executor(self._thread, self._turn, schedule, waiting, fresh)
            self.abandoned = schedule.abandoned
            for asker, answer in answers:
                _tell(asker, answer)
            # Who was answered may ask on in time for the next pass.
            await asyncio.sleep(0)

    def _turn(
        self,
        schedule: Schedule,
        waiting: dict[Job | Stream, Asker],
        fresh: list[tuple[Arrived, Asker, Origin]],
    ) -> list[tuple[Asker, bytes | Exception | None]]:
        """Take in what has arrived, run one slice; what is answered now (None ends a stream)."""
        from servers.job import Job
        from servers.stream import Stream

        answers: list[tuple[Asker, bytes | Exception | None]] = []
        for found, asker, origin in fresh:
            begun = self._answered(found, asker, origin) if isinstance(found, bytes) else found
            if isinstance(begun, Job | Stream):
                waiting[schedule.add(begun)] = asker
            elif begun is not None:
                answers.append((asker, begun))
            elif isinstance(asker, StreamFrames):
                asker.wanted = True
        finished = schedule.turn()
        for job, asker in waiting.items():
            if not isinstance(asker, StreamFrames) or isinstance(job, Job):
                continue
            due = asker.ahead or asker.wanted or job.finished
            if due and (frames := job.frames()):
                answers.append((asker, frames))
                asker.wanted, asker.since = False, time.monotonic()
        for job in finished:
            answer = self.service.written(job) if isinstance(job, Job) else job.error
            answers.append((waiting[job], answer))
        for job in [*finished, *(job for job, asker in waiting.items() if asker.done())]:
            waiting.pop(job, None)
        return answers

    def _answered(
        self, payload: bytes, asker: Asker, origin: Origin
    ) -> Job | Stream | bytes | Exception:
        """What is to take turns; of a control its answer, or what is wrong with it."""
        if isinstance(asker, StreamFrames) or not is_control(payload):
            return self._begun(payload, asker, origin)
        try:
            return self.service.control(payload, origin)
        except Exception as error:  # its caller must hear of it, and nobody else
            return error


def _tell(asker: Asker, answer: bytes | Exception | None) -> None:
    """Give whoever asked its answer; None ends a stream."""
    if asker.done():  # the caller has given up
        return
    if isinstance(asker, StreamFrames):
        asker.over = not isinstance(answer, bytes)
        asker.arrived.put_nowait(answer)
    elif isinstance(answer, Exception):
        asker.set_exception(answer)
    elif answer is not None:
        asker.set_result(answer)
