"""Optimistic drafting: while one token is being verified, draft on as if it will be accepted.

The text, the stages and the messages are those of the plain router: a request is sent only once
all tokens before it are decided, so nothing that turns out wrong ever leaves the device. What
changes is when the small model works: while the link is busy rather than after it. Drafts made
behind a token that is rejected are thrown away and counted.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from clients.policy import Policy
from clients.records import TextBatch, TokenRecords, Traffic
from clients.resolving import Escalation, Resolution, Resolver, resolve_in_turn
from clients.rollback import RollbackDecoder
from clients.routing import Drafter, Router, RouterConfig
from clients.slm import Step

_TEXT = np.zeros(1, np.int64)  # the only row


class AcceptanceOdds:
    """How often drafts of about one probability turned out right, learned as answers come.

    Uncertain drafts are the ones that are verified, so many are rejected, and a small model that
    is busy with a lost cause when the answer comes is late for the next token.

    Parameters
    ----------
    bins : int
        Equal bins of the small model's probability, >= 1.
    """

    def __init__(self, bins: int = 10) -> None:
        # One success in two trials, before any.
        self._right = np.full(bins, 1.0)
        self._asked = np.full(bins, 2.0)

    def _bin(self, probability: float) -> int:
        return min(int(probability * len(self._asked)), len(self._asked) - 1)

    def chance(self, probability: float) -> float:
        """Estimated chance that a draft of this probability (0 to 1) is accepted."""
        index = self._bin(probability)
        return float(self._right[index] / self._asked[index])

    def learn(self, probability: float, accepted: bool) -> None:
        """Take in what became of a draft."""
        index = self._bin(probability)
        self._right[index] += accepted
        self._asked[index] += 1


@dataclass
class OptimisticStats:
    """What drafting ahead brought, since the router was made.

    Attributes
    ----------
    verifications, accepted : int
        Escalated tokens of single texts, and those whose draft stood.
    ahead : int
        Drafts made while a verification was under way.
    wasted : int
        Those of them that were thrown away because it ended in another token.
    waited : float
        Seconds in which there was nothing to do but to wait.
    """

    verifications: int = 0
    accepted: int = 0
    ahead: int = 0
    wasted: int = 0
    waited: float = 0.0


@dataclass
class _Place:
    """One routed token that is not part of the text yet."""

    index: int
    token: int
    records: TokenRecords  # one entry
    escalation: Escalation | None  # None: kept


@dataclass
class _Flight:
    """A verification under way, and what was drafted behind it."""

    place: _Place
    probability: float
    goes_on: bool  # whether acceptance is likely enough to draft on
    answer: Future[Resolution]
    traffic: Traffic  # written by the thread that waits for the answer
    behind: list[_Place] = field(default_factory=list)

    @property
    def is_due(self) -> bool:
        """Whether there is nothing better to do than to settle it."""
        return not self.goes_on or self.answer.done()


class _Note:
    """Stands in for the resolvers while drafting: notes what should be asked."""

    def __init__(self, needs_hidden: bool) -> None:
        self.needs_hidden = needs_hidden
        self.noted: Escalation | None = None

    def resolve(self, escalation: Escalation, traffic: Traffic) -> Resolution:
        self.noted = escalation
        return Resolution.none(len(escalation.rows))

    def learn(self, escalation: Escalation, resolution: Resolution, traffic: Traffic) -> None:
        """Nothing is decided yet."""

    def take(self) -> Escalation | None:
        noted, self.noted = self.noted, None
        return noted


class OptimisticRouter(Router):
    """A router that does not stand still during verification when it works on one text.

    With several texts it is the plain router: in lockstep, one message carries the uncertain
    tokens of all of them. Resolvers are called from another thread, one call at a time.

    Parameters
    ----------
    model, config, policy, drafter, resolvers
        As for `Router`.
    least_chance : float
        Draft on only behind drafts that are accepted with at least this chance, as far as
        `AcceptanceOdds` knows, in [0, 1]; 0 always drafts on. Drafting n tokens on saves n passes
        of the small model if they stand and costs about half a pass otherwise, so it pays from
        1 / (2 n + 1) on: the default is for n between one and two.

    Raises
    ------
    ValueError
        When `least_chance` is outside [0, 1].

    Attributes
    ----------
    stats : OptimisticStats
        Work done ahead, and how much of it was for nothing.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        config: RouterConfig,
        policy: Policy,
        drafter: Drafter,
        resolvers: Sequence[Resolver],
        least_chance: float = 0.25,
    ) -> None:
        if not 0 <= least_chance <= 1:
            raise ValueError(f"least_chance = {least_chance}: must lie in 0 .. 1")
        super().__init__(model, config, policy, drafter, resolvers)
        self.least_chance = least_chance
        self.odds = AcceptanceOdds()
        self.stats = OptimisticStats()

    def generate(self, texts: TextBatch, new_tokens: int, traffic: Traffic) -> TokenRecords:
        """Continue every text by up to `new_tokens` tokens; see `Router.generate`.

        ``traffic.waited`` counts only the time in which the device had nothing else to do.
        """
        if len(texts.lengths) != 1:
            return super().generate(texts, new_tokens, traffic)
        with ThreadPoolExecutor(1, "verification") as thread:
            return _Decode(self, texts, new_tokens, traffic, thread).run()


class _Decode:
    """One text on its way. `texts` and `records` hold only what is certain: while a verification
    is under way they belong to the thread that waits for it.
    """

    def __init__(
        self,
        router: OptimisticRouter,
        texts: TextBatch,
        new_tokens: int,
        traffic: Traffic,
        thread: ThreadPoolExecutor,
    ) -> None:
        self.router = router
        self.texts = texts
        self.new_tokens = new_tokens
        self.traffic = traffic
        self.thread = thread
        self.records = TokenRecords(1, new_tokens, router.config.feature_count)
        self.prompt = int(texts.lengths[0])
        self.note = _Note(router._hidden)
        self.drafting = Router(
            router.model, router.config, router.policy, router.drafter, [self.note]
        )
        self.decoder = RollbackDecoder(router.model, [texts.text(0)], router._hidden)
        self.flight: _Flight | None = None

    def run(self) -> TokenRecords:
        step, index = self._timed(self.decoder.start), 0
        while True:
            place = self._draft(step, index)
            if self.flight is not None:
                self.router.stats.ahead += 1
            corrected: int | None = None
            if place.escalation is not None and self.flight is not None:
                # Before this one can be asked about, everything before it has to be certain.
                corrected = self._land(place)
            if corrected is None:
                self._take(place)
                index, token = place.index, place.token
                if self._ends(index, token):
                    if self.flight is None:
                        break
                    corrected = self._land()
                    if corrected is None:
                        break
                elif self.flight is not None and self.flight.is_due:
                    corrected = self._land()
            if corrected is not None:
                index = self._next - 1
                token = corrected
                if self._ends(index, token):
                    break
            step = self._timed(self.decoder.step, np.array([token], np.int64))
            index += 1
        return self.records

    @property
    def _next(self) -> int:
        """The first place that is not certain yet."""
        return int(self.texts.lengths[0]) - self.prompt

    def _ends(self, index: int, token: int) -> bool:
        return index + 1 == self.new_tokens or token in self.router.config.end_tokens

    def _timed(self, work: Any, *arguments: Any) -> Step:
        begin = time.perf_counter()
        step: Step = work(*arguments)
        self.traffic.slm += time.perf_counter() - begin
        return step

    def _draft(self, step: Step, index: int) -> _Place:
        """Route one token without asking anyone."""
        alone = TokenRecords(1, 1, self.router.config.feature_count)
        position = np.array([self.prompt + index], np.int64)
        tokens = self.drafting._route(step, self.texts, alone, _TEXT, _TEXT, self.traffic, position)
        return _Place(index, int(tokens[0]), alone, self.note.take())

    def _take(self, place: _Place) -> None:
        """Ask about a place, or keep it: in the text, or behind the verification under way."""
        if place.escalation is not None:
            self._send(place)
        elif self.flight is not None:
            self.flight.behind.append(place)
        else:
            self._keep(place)

    def _keep(self, place: _Place) -> None:
        self._write(place)
        self.texts.append(_TEXT, np.array([place.token], np.int64))

    def _write(self, place: _Place) -> None:
        for name, values in vars(self.records).items():
            if values is not None:
                values[0, place.index] = getattr(place.records, name)[0, 0]

    def _send(self, place: _Place) -> None:
        """Have a place decided in the other thread."""
        assert place.escalation is not None
        self._write(place)
        self.records.token[0, place.index] = self.records.stage[0, place.index] = -1
        asked = replace(place.escalation, records=self.records, steps=np.array([place.index]))
        traffic = Traffic()
        answer = self.thread.submit(resolve_in_turn, self.router.resolvers, asked, traffic)
        probability = float(place.records.probability[0, 0])
        goes_on = self.router.odds.chance(probability) >= self.router.least_chance
        self.flight = _Flight(place, probability, goes_on, answer, traffic)
        self.router.stats.verifications += 1

    def _land(self, queued: _Place | None = None) -> int | None:
        """Wait for the verification and settle what is behind it.

        Returns the token that takes the draft's place if it is another one; then the small model
        has gone back to before it, and `queued`, like all that was drafted behind, is void.
        """
        flight = self.flight
        assert flight is not None
        begin = time.perf_counter()
        resolution = flight.answer.result()
        flight.traffic.waited = time.perf_counter() - begin
        self.router.stats.waited += flight.traffic.waited
        for name, value in vars(flight.traffic).items():
            setattr(self.traffic, name, getattr(self.traffic, name) + value)
        self.flight = None
        token, place = int(resolution.tokens[0]), flight.place
        self.records.token[0, place.index] = token
        self.records.stage[0, place.index] = resolution.stages[0]
        self.texts.append(_TEXT, resolution.tokens)
        self.router.odds.learn(flight.probability, token == place.token)
        if token == place.token:
            self.router.stats.accepted += 1
            for kept in flight.behind:
                self._keep(kept)
            return None
        self.router.stats.wasted += len(flight.behind) + (queued is not None)
        position = self.prompt + place.index
        self.decoder.take_back(self.decoder.lengths - position)
        return token
