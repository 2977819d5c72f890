"""Who is served next: requests take turns, one slice at a time, and devices share alike.

Who asks under many client numbers still gets the turns of one (`servers.origin`). A stream takes
turns like a request; each writes a token of its rows. A pass of the engine reads at
most `SLICE_TOKENS` tokens and yields logits at no more positions than `LOGIT_VALUES` allows,
whatever the messages ask for. A long text is read over many turns, between which other devices get
theirs; a request or stream whose caller has gone gets no further turn. Where several origins ask,
none has more of a turn than all others together, or than `OWN_TOKENS` and `OWN_JOBS`: however much
one asks, it does not make the turns of the others much longer. (Who has asked little lately may
have a slice: a long text now and then is read at once.)
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict, deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import chain, zip_longest
from typing import TYPE_CHECKING, TypeVar

import torch

from hlm.wire.frames import End
from servers.job import Job
from servers.next_tokens import write
from servers.origin import Caller, Origin
from servers.stream import Stream
from servers.texts import TextName

if TYPE_CHECKING:
    from servers.llm import LanguageModelService

SLICE_TOKENS = 1024
"""Most tokens that one turn reads: how long others wait for it, and the memory of its pass."""
LOGIT_VALUES = 1 << 26
"""Most logits (positions times vocabulary) that one turn yields: 256 MiB of float32."""

OWN_TOKENS, OWN_JOBS = 64, 8
"""What of a turn an origin may have beside others that ask less: tokens (positions), requests."""
LATELY = 256
"""Turns for which an origin that asks nothing more still counts as one beside others."""

LONGEST_PAUSE = 60.0
"""Seconds after which somebody looks whether devices have gone."""

Anyone = TypeVar("Anyone", bound=Job | Stream)
Thing = TypeVar("Thing")


class Schedule:
    """Requests in work with one service.

    Parameters
    ----------
    service : LanguageModelService
        Does the work.
    most : int
        Most requests that share a pass, >= 1.

    Attributes
    ----------
    abandoned : int
        Requests that were dropped because nobody waited for them any more.
    """

    def __init__(self, service: LanguageModelService, most: int = 64) -> None:
        self.service = service
        self.most = most
        self.abandoned = 0
        # Whose turn it is comes first.
        self._callers: OrderedDict[Caller, deque[Job | Stream]] = OrderedDict()
        self._turns = 0
        self._served: dict[Origin, int] = {}  # the last turn of each that waits, or asked lately
        self._left: dict[Origin, int] = {}  # tokens that each had left after that turn

    @property
    def busy(self) -> bool:
        """Whether anything is left to do."""
        return bool(self._callers)

    @property
    def pause(self) -> float:
        """Seconds until there may be something to do, unless a device says something before."""
        if any(not isinstance(job, Stream) or job.ready for job in self._jobs()):
            return 0.0
        streams = [job for job in self._jobs() if isinstance(job, Stream)]
        first = min((stream.deadline for stream in streams), default=0.0)
        return min(max(0.0, first - time.monotonic()), LONGEST_PAUSE)

    def add(self, job: Anyone) -> Anyone:
        """Let a request or a stream take turns; returns it."""
        self._callers.setdefault(job.caller, deque()).append(job)
        return job

    def turn(self) -> list[Job | Stream]:
        """Run one slice; the requests and streams that it finished."""
        self._drop_abandoned()
        with self.service.lock:
            self._end_unheard()
        jobs = self._next()
        rows = max(1, LOGIT_VALUES // self.service.engine.vocab)
        jobs = jobs[: min(rows, SLICE_TOKENS)]
        # Several schedules may share the engine: what is held is looked at under its lock as well.
        with self.service.lock, torch.inference_mode():
            needs = [job.need(max(rows, SLICE_TOKENS)) for job in jobs]
            tokens_each = self._shares(jobs, [tokens for tokens, _ in needs], SLICE_TOKENS)
            rows_each = self._shares(jobs, [places for _, places in needs], rows)
            parts = [
                part for part in zip(jobs, tokens_each, rows_each, strict=True) if all(part[1:])
            ]
            jobs = [job for job, _, _ in parts]
            for job, tokens, most in parts:
                try:
                    job.plan(tokens, most)
                except Exception as error:  # whoever asked must hear of it, and nobody else
                    job.error = error
            self._run([job for job in jobs if not job.finished])
            streams = [job for job in jobs if isinstance(job, Stream)]
            write([stream for stream in streams if not stream.finished])
            for stream in streams:
                stream.settle()
        self._turns += 1
        if jobs:
            self.service.batches.observe(len(jobs))
        left = {job.origin: self._saved(job.origin) for job in jobs}
        for job, tokens, _ in parts:
            left[job.origin] = max(0, left[job.origin] - tokens)
        self._left.update(left)
        for job in jobs:
            self._served[job.origin] = self._turns
            self._callers.move_to_end(job.caller)
            if isinstance(job, Stream):
                # The device's other requests need not wait for its end.
                self._callers[job.caller].remove(job)
                self._callers[job.caller].append(job)
        return [job for job in list(self._jobs()) if job.finished and self._remove(job)]

    def _run(self, jobs: Sequence[Job | Stream]) -> None:
        """One pass for all of them; if it fails, one for each, so that an error is its owner's."""
        try:
            found = self.service.engine.score([feed for job in jobs for feed in job.feeds])
        except Exception as error:
            if len(jobs) == 1:
                jobs[0].error = error
                return
            for job in jobs:
                self._run([job])
            return
        begin = 0
        for job in jobs:
            end = begin + len(job.feeds)
            try:
                job.take(found[begin:end])
            except Exception as error:
                job.error = error
            begin = end

    def _shares(self, jobs: Sequence[Job | Stream], needs: Sequence[int], total: int) -> list[int]:
        """What each request has of a turn: origins share alike, and each one's requests do.

        0 for those of an origin that has less than one for each.
        """
        of: dict[Origin, list[int]] = {}
        for index, job in enumerate(jobs):
            of.setdefault(job.origin, []).append(index)
        asked = [sum(needs[index] for index in its) for its in of.values()]
        if len(self._served) > 1:
            asked = [
                min(own, max(OWN_TOKENS, self._saved(origin), sum(asked) - own))
                for origin, own in zip(of, asked, strict=True)
            ]
        shares = [0] * len(jobs)
        for its, share in zip(of.values(), fair_shares(asked, total), strict=True):
            its = its[:share]
            for index, part in zip(its, fair_shares([needs[i] for i in its], share), strict=True):
                shares[index] = part
        return shares

    def _saved(self, origin: Origin) -> int:
        """Tokens that an origin may have in this turn: a slice, if it has asked little lately."""
        since = self._turns - self._served.get(origin, self._turns)
        saved = self._left.get(origin, SLICE_TOKENS) + since * SLICE_TOKENS // LATELY
        return min(SLICE_TOKENS, saved)

    def _jobs(self) -> Iterator[Job | Stream]:
        return chain.from_iterable(self._callers.values())

    def _next(self) -> list[Job | Stream]:
        """Requests of the next turn: each caller's first, then each caller's second, and so on.

        Streams that ride with those come on top.
        """
        found = _alternating([_without_conflict(jobs) for jobs in self._in_turn()])
        if len(self._served) > 1:
            asked = Counter(job.origin for job in found)
            room = Counter({one: max(OWN_JOBS, len(found) - count) for one, count in asked.items()})
            asking, found = found, []
            for job in asking:
                if room[job.origin]:
                    room[job.origin] -= 1
                    found.append(job)
        found = found[: self.most]
        for job in [job for job in found if isinstance(job, Stream) and job.rides]:
            beside = [one for one in self._callers[job.caller] if isinstance(one, Stream)]
            found += [one for one in beside if one.rides and one not in found]
        return found

    def _in_turn(self) -> list[deque[Job | Stream]]:
        """What each caller asks: a caller of every origin, then their second ones, and so on."""
        of: dict[Origin, list[deque[Job | Stream]]] = {}
        for jobs in self._callers.values():
            of.setdefault(jobs[0].origin, []).append(jobs)
        # Who comes anew is behind those that wait.
        lately = {
            origin: turn for origin, turn in self._served.items() if turn > self._turns - LATELY
        }
        self._served = lately | {origin: self._served.get(origin, self._turns) for origin in of}
        self._left = {one: left for one, left in self._left.items() if one in self._served}
        return _alternating([of[origin] for origin in sorted(of, key=self._served.__getitem__)])

    def drop(self, job: Job | Stream) -> None:
        """Give no more turns to a request or stream, if it still gets any."""
        if job in self._callers.get(job.caller, ()):
            self._remove(job)

    def _drop_abandoned(self) -> None:
        for job in [job for job in self._jobs() if job.abandoned()]:
            self._remove(job)
            self.abandoned += 1

    def _end_unheard(self) -> None:
        now = time.monotonic()
        for job in self._jobs():
            if isinstance(job, Stream) and job.deadline <= now:
                job.end_all(End.UNHEARD)

    def _remove(self, job: Job | Stream) -> bool:
        if isinstance(job, Stream):
            with self.service.lock:
                self.service.streams.remove(job)
        jobs = self._callers[job.caller]
        jobs.remove(job)
        if not jobs:
            del self._callers[job.caller]
        return True


def _alternating(lists: Collection[Iterable[Thing]]) -> list[Thing]:
    """The first of each list, then the second of each, and so on."""
    return [one for level in zip_longest(*lists) for one in level if one is not None]


def _without_conflict(jobs: Collection[Job | Stream]) -> Iterator[Job | Stream]:
    """What of one caller can have a turn: no request about a text that one before it is about."""
    writing = [job for job in jobs if isinstance(job, Stream) and job.writing]
    taken = set[TextName]().union(*(stream.names for stream in writing))
    for job in jobs:
        if isinstance(job, Stream) and job.writing:
            if job.ready:
                yield job
            continue
        if taken.isdisjoint(job.names):
            yield job
        taken |= job.names


def fair_shares(needs: Sequence[int], total: int) -> list[int]:
    """Share out `total`: nobody gets more than it needs, nor less than another but by need.

    Parameters
    ----------
    needs : sequence of int
        At least 1 each; at most `total` of them.
    total : int
        What there is.

    Returns
    -------
    list of int
        At least 1 each, together at most `total`.
    """
    if sum(needs) <= total:
        return list(needs)
    shares, left = [1] * len(needs), total
    order = sorted(range(len(needs)), key=needs.__getitem__)
    for rank, index in enumerate(order):
        shares[index] = min(needs[index], left // (len(needs) - rank))
        left -= shares[index]
    return shares
