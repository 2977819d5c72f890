"""Who is served next: requests take turns, one slice at a time, and devices share alike.

Who asks under many client numbers still gets the turns of one (`servers.origin`), and all devices
of a tenant share those of one. A stream takes turns like a request; each writes a token of its
rows. A pass of the engine reads at most `SLICE_TOKENS` tokens and yields logits at no more
positions than `LOGIT_VALUES` allows, whatever the messages ask for. A long text is read over many
turns, between which other devices get theirs; a request or stream whose caller has gone gets no
further turn. Where several origins or tenants ask, none has more of a turn than all others
together, or than `OWN_TOKENS` and `OWN_JOBS`: however much one asks, it does not make the turns of
the others much longer. (Who has asked little lately may have a slice: a long text now and then is
read at once.)
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict, deque
from collections.abc import Collection, Hashable, Iterable, Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, TypeVar

import torch

from hlm.wire.frames import End
from servers.job import Job
from servers.next_tokens import write
from servers.origin import Caller, Origin
from servers.shares import Lately, alternating, fair_shares
from servers.stream import Stream
from servers.texts import TextName

if TYPE_CHECKING:
    from servers.llm import LanguageModelService

SLICE_TOKENS = 1024
"""Most tokens that one turn reads: how long others wait for it, and the memory of its pass."""
LOGIT_VALUES = 1 << 26
"""Most logits (positions times vocabulary) that one turn yields: 256 MiB of float32."""

OWN_TOKENS, OWN_JOBS = 64, 8
"""What of a turn one may have beside others that ask less: tokens (positions), requests."""

LONGEST_PAUSE = 60.0
"""Seconds after which somebody looks whether devices have gone."""

Anyone = TypeVar("Anyone", bound=Job | Stream)
Key = TypeVar("Key", bound=Hashable)


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
        # Of origins without a tenant the two are one.
        self._tenants, self._origins = Lately(OWN_TOKENS), Lately(OWN_TOKENS)

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
        if jobs:
            self.service.batches.observe(len(jobs))
        taken = [(job, tokens) for job, tokens, _ in parts]
        self._tenants.take(_summed((job.origin.shares[0], n) for job, n in taken), SLICE_TOKENS)
        self._origins.take(_summed((job.origin, n) for job, n in taken), SLICE_TOKENS)
        for job in jobs:
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
        """What each request has of a turn: tenants share alike, and then origins and requests.

        0 for those of one that has less than one for each.
        """
        of: dict[Hashable, dict[Origin, list[int]]] = {}
        for index, job in enumerate(jobs):
            of.setdefault(job.origin.shares[0], {}).setdefault(job.origin, []).append(index)
        asked = _summed((job.origin, need) for job, need in zip(jobs, needs, strict=True))
        own = self._origins.limited(asked, SLICE_TOKENS)
        together = _summed((origin.shares[0], need) for origin, need in asked.items())
        together = self._tenants.limited(together, SLICE_TOKENS)
        wanted = [
            min(together[tenant], sum(own[origin] for origin in its)) for tenant, its in of.items()
        ]
        shares = [0] * len(jobs)
        for origins, share in zip(of.values(), fair_shares(wanted, total), strict=True):
            parts = fair_shares([own[origin] for origin in origins], share)
            for its, part in zip(origins.values(), parts, strict=True):
                found = fair_shares([needs[index] for index in its], part)
                for index, tokens in zip(its, found, strict=True):
                    shares[index] = tokens
        return shares

    def _jobs(self) -> Iterator[Job | Stream]:
        return chain.from_iterable(self._callers.values())

    def _next(self) -> list[Job | Stream]:
        """Requests of the next turn: each caller's first, then each caller's second, and so on.

        Streams that ride with those come on top.
        """
        found = alternating([_without_conflict(jobs) for jobs in self._in_turn()])
        if self._origins.several:
            found = _with_room(found, [job.origin for job in found])
        if self._tenants.several:
            found = _with_room(found, [job.origin.shares[0] for job in found])
        found = found[: self.most]
        for job in [job for job in found if isinstance(job, Stream) and job.rides]:
            beside = [one for one in self._callers[job.caller] if isinstance(one, Stream)]
            found += [one for one in beside if one.rides and one not in found]
        return found

    def _in_turn(self) -> list[deque[Job | Stream]]:
        """What each caller asks: one of every tenant, then one more of each, and so on."""
        of: dict[Hashable, dict[Origin, list[deque[Job | Stream]]]] = {}
        for jobs in self._callers.values():
            origin = jobs[0].origin
            of.setdefault(origin.shares[0], {}).setdefault(origin, []).append(jobs)
        self._tenants.wait(of)
        self._origins.wait([origin for origins in of.values() for origin in origins])
        return alternating(
            [
                alternating([its[origin] for origin in sorted(its, key=self._origins.since)])
                for its in (of[tenant] for tenant in sorted(of, key=self._tenants.since))
            ]
        )

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


def _summed(parts: Iterable[tuple[Key, int]]) -> dict[Key, int]:
    """Sums by their keys."""
    found: Counter[Key] = Counter()
    for key, part in parts:
        found[key] += part
    return dict(found)


def _with_room(asking: list[Job | Stream], whose: Sequence[Hashable]) -> list[Job | Stream]:
    """Requests of a turn, of one no more than of all others together, or than its own least."""
    room = {one: max(OWN_JOBS, len(asking) - count) for one, count in Counter(whose).items()}
    found = []
    for job, one in zip(asking, whose, strict=True):
        if room[one]:
            room[one] -= 1
            found.append(job)
    return found


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
