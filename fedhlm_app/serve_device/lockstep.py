"""Texts that come together are written in lockstep, later ones at once beside them."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress

from clients.records import Stage
from fedhlm_app.client.prompted import Ask, Continuation, Token
from fedhlm_app.serve_device.stops import StopSequences
from fedhlm_app.serve_device.texts import ServedTexts
from hlm.arrays import IntArray
from hlm.wire import WireError

logger = logging.getLogger(__name__)

TOGETHER_SECONDS = 0.01
"""Texts that come this soon after each other are written in lockstep."""

Event = list[Token] | Continuation | Exception
"""Further tokens, then the whole text, or what went wrong."""


class LlmAway(Exception):
    """A token needed the LLM, which was not reached, and nothing else was wanted."""


class ModelFailed(Exception):
    """The model failed."""


class Job:
    """A text that somebody waits for; made in the event loop, which hears of it.

    Parameters
    ----------
    prompt : numpy.ndarray
        int64 [length].
    most : int
        Most new tokens, >= 1.
    seed : int or None
        Of its random draws.
    stop : sequence of str
        Sequences before which it ends.

    Attributes
    ----------
    events : asyncio.Queue of Event
        What has come of it.
    left : bool
        Nobody waits any more.
    stopped : bool
        A stop sequence has come.
    """

    def __init__(
        self, prompt: IntArray, most: int, seed: int | None, stop: Sequence[str] = ()
    ) -> None:
        self.prompt, self.most, self.seed = prompt, most, seed
        self.events: asyncio.Queue[Event] = asyncio.Queue()
        self.left = self.stopped = False
        self._ended = False
        self._stop = StopSequences(stop)
        self._loop = asyncio.get_running_loop()

    def take(self, token: Token) -> bool:
        """Tell of a token; whether it is the last that is wanted."""
        shown, self.stopped = self._stop.add(token)
        if shown:
            self.tell(shown)
        return self.stopped or self.left

    def end(self, text: Continuation) -> None:
        """Tell of the whole text, once."""
        if self._ended:
            return
        self._ended = True
        if rest := self._stop.rest():
            self.tell(rest)
        self.tell(text)

    def tell(self, event: Event) -> None:
        """Hand something to the event loop, from any thread."""
        # A loop that is closed has nobody left who waits.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self.events.put_nowait, event)


class Lockstep:
    """Writes the texts of jobs, each batch in a thread of its own.

    Parameters
    ----------
    texts : ServedTexts
        Writes them.
    most : int
        Most texts at a time, of all batches, >= 1; further ones wait.
    needs_llm : bool
        A text ends with `LlmAway` at the first token that the LLM should have decided and did not.
    """

    def __init__(self, texts: ServedTexts, most: int, needs_llm: bool = False) -> None:
        self.texts = texts
        self.most = most
        self.needs_llm = needs_llm
        self.open = 0
        self._running = 0
        self._changed = threading.Condition()
        # A `SimpleQueue` can wait for ever where a short time limit has passed before it looks.
        self._waiting: queue.Queue[Job | None] = queue.Queue()
        self._thread = threading.Thread(target=self._run, name="batches")
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Have a text written."""
        with self._changed:
            self.open += 1
        self._waiting.put(job)

    def close(self) -> None:
        """Wait for the texts in work; those that wait are not begun."""
        self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        held: list[Job] = []
        while True:
            room = self._room()
            jobs: list[Job | None] = [*held] or [self._waiting.get()]
            with suppress(queue.Empty):
                while len(jobs) < room and jobs[-1] is not None:
                    jobs.append(self._waiting.get(timeout=TOGETHER_SECONDS))
            if None in jobs:
                break
            batch, held = _together([job for job in jobs if job is not None])
            with self._changed:
                self._running += len(batch)
            threading.Thread(target=self._write, args=(batch,), name="texts").start()
        with self._changed:
            self._changed.wait_for(lambda: not self._running)

    def _room(self) -> int:
        """How many texts may be begun, once that is any."""
        # What one text has put into a cache, the next one finds there.
        most = 1 if self.texts.in_turn else self.most
        with self._changed:
            self._changed.wait_for(lambda: self._running < most)
            return self.most - self._running

    def _write(self, batch: list[Job]) -> None:
        try:
            if jobs := [job for job in batch if not job.left]:
                self._answer(jobs)
        finally:
            with self._changed:
                self.open -= len(batch)
                self._running -= len(batch)
                self._changed.notify()

    def _answer(self, jobs: list[Job]) -> None:
        try:
            asks = [
                Ask(
                    job.prompt,
                    job.most,
                    self.texts.session(job.seed),
                    self._listener(job),
                    job.end,
                )
                for job in jobs
            ]
            for job, text in zip(jobs, self.texts.answer(asks), strict=True):
                job.end(text)
        except WireError as error:
            for job in jobs:
                job.tell(error)
        except Exception as error:  # one text's failure must not end the service for all
            logger.exception("the model failed")
            for job in jobs:
                job.tell(ModelFailed(f"the model failed: {type(error).__name__}: {error}"))

    def _listener(self, job: Job) -> Callable[[Token], bool]:
        def listen(token: Token) -> bool:
            if self.needs_llm and token.stage == Stage.UNRESOLVED:
                why = self.texts.link.problem or "it did not decide a token"
                job.tell(LlmAway(f"the LLM is not there: {why}"))
                return True
            return job.take(token)

        return listen


def _together(jobs: list[Job]) -> tuple[list[Job], list[Job]]:
    """Jobs of different seeds, and the others: in one batch their texts would be one to the LLM."""
    batch, held, seeds = list[Job](), list[Job](), set[int]()
    for job in jobs:
        (held if job.seed in seeds else batch).append(job)
        if job.seed is not None:
            seeds.add(job.seed)
    return batch, held
