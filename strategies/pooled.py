"""One threshold from summed curves, for contexts that do not depend on the threshold."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hlm.arrays import FloatArray
from hlm.state import State
from strategies.attendance import Attendance, best_level, heard_at_least
from strategies.shortfall import fewest

ThresholdOf = Callable[[FloatArray], float]
"""Reads a threshold from a group's summed vector float64 [m], whose first entry is a count."""

Noise = Callable[[FloatArray], FloatArray]
"""Adds noise to one round's sums of a group, float64 [m]."""


@dataclass(frozen=True)
class Unread:
    """What stands for a contribution that has not come.

    Attributes
    ----------
    vector : float64 [m]
        The worst sums a client could send: all its prompts wrong at every threshold.
    budget : float
        Share of such contributions that would use up all the risk that is allowed, > 0.
    """

    vector: FloatArray
    budget: float


@dataclass
class Gathered:
    """Sums of a group by contribution: the k-th ones of all clients together.

    Attributes
    ----------
    whole : float64 [m]
        Sums of the first `wholes` contributions, which every client has made.
    levels : list of float64 [m]
        Sums of each further contribution.
    """

    whole: FloatArray
    wholes: int = 0
    levels: list[FloatArray] = field(default_factory=list)
    attendance: Attendance = field(default_factory=Attendance)


class PooledCalibration:
    """One threshold from the sums of all rounds so far.

    With `unread` the threshold speaks about all clients of the group with equal weight, whoever
    has answered. A client's k-th contribution is about texts that were fixed when it drew their
    order, so the sums over all clients' first n contributions are a sample of fixed size. What is
    missing of it counts as wrong in every prompt. That can only raise the sums, so a test which is
    valid for the whole sample is valid for this one, whatever made answers fail; n is chosen from
    the pattern of answers alone (`best_level`). What lies beyond n waits for the others.

    Parameters
    ----------
    metric : str
        Name of the list metric.
    length : int
        Its length m; entry 0 is the number of prompts (or tokens) behind the others.
    threshold_of : callable
        See `ThresholdOf`; called again after every round, with the sums of all.
    initial : float
        Threshold before any sums.
    rounds : int
        Rounds whose sums are gathered, >= 1.
    noise : callable, optional
        Central differential privacy: see `Noise`.
    unread : Unread, optional
        What a missing contribution counts as. Without it the sums of those who answered are
        pooled as they are, and the threshold speaks about their mixture.
    """

    def __init__(
        self,
        metric: str,
        length: int,
        threshold_of: ThresholdOf,
        initial: float,
        rounds: int = 1,
        noise: Noise | None = None,
        unread: Unread | None = None,
    ) -> None:
        self.metric, self.length, self.threshold_of = metric, length, threshold_of
        self.initial, self.rounds, self.noise, self.unread = initial, rounds, noise, unread
        self.sums: dict[int, FloatArray] = {}
        self.results: dict[int, float] = {}
        self.seen: dict[int, int] = {}
        self.gathered: dict[int, Gathered] = {}
        self.caps: dict[int, float] = {}

    def lengths(self) -> Mapping[str, int]:
        """The one list metric."""
        return {self.metric: self.length}

    def active(self, group: int) -> bool:
        """For the first `rounds` rounds that brought sums."""
        return self.seen.get(group, 0) < self.rounds

    def trial(self, group: int) -> float:
        """The threshold in force: contexts do not depend on it."""
        return self.result(group)

    def result(self, group: int) -> float:
        """Threshold of the sums so far, or the learned one if that is lower.

        The sums tell of all thresholds of given texts at once, and the risk rises with them: what
        lies below a certified one is certified.
        """
        return min(self.results.get(group, self.initial), self.caps.get(group, math.inf))

    def begin(self, group: int, learned: float) -> None:
        """See `Calibration`."""
        self.caps.setdefault(group, learned)

    def learned(self, group: int) -> float | None:
        """See `Calibration`."""
        return self.caps.get(group)

    def heard(self, group: int) -> int:
        """Prompts (or tokens) that the threshold rests on."""
        return int(self.sums[group][0]) if group in self.sums else 0

    def lacking(self, group: int) -> int:
        """See `Calibration`."""
        sums = self.sums.get(group, np.zeros(self.length))
        one = np.eye(1, self.length)[0]
        return fewest(lambda more: self.threshold_of(sums + more * one) > self.initial)

    def attendance(self, group: int) -> Attendance:
        """Who has contributed how often."""
        if group not in self.gathered:
            self.gathered[group] = Gathered(np.zeros(self.length))
        return self.gathered[group].attendance

    def absorb(
        self,
        group: int,
        replies: Mapping[int, Mapping[str, FloatArray]],
        members: Collection[int],
    ) -> None:
        """Add a round's sums of each client and read the threshold again."""
        attendance = self.attendance(group)
        new: dict[int, FloatArray] = {}
        for client, sums in replies.items():
            level = attendance.heard[client] if self.unread is not None else 0
            new[level] = new.get(level, np.zeros(self.length)) + sums[self.metric]
            attendance.answer(client)
        if self.noise is not None:
            # A client is in one of these sums, so each has the noise of a release of its own.
            new = {level: self.noise(vector) for level, vector in sorted(new.items())}
        gathered = self.gathered[group]
        if self.unread is None:
            gathered.whole = gathered.whole + new.get(0, np.zeros(self.length))
            self.sums[group] = gathered.whole
        else:
            self.sums[group] = self._evened_out(gathered, new, self.unread, members)
        self.seen[group] = self.seen.get(group, 0) + 1
        self.results[group] = self.threshold_of(self.sums[group])

    def _evened_out(
        self,
        gathered: Gathered,
        new: Mapping[int, FloatArray],
        unread: Unread,
        members: Collection[int],
    ) -> FloatArray:
        """Sums of everybody's first contributions, missing ones replaced by `unread`."""
        heard = gathered.attendance.heard
        everybody = set(members) | {client for client, count in heard.items() if count}
        most = max(heard.values(), default=0)
        while gathered.wholes + len(gathered.levels) < most:
            gathered.levels.append(np.zeros(self.length))
        for level, vector in new.items():
            # None of these is whole: one of its clients was missing until now.
            gathered.levels[level - gathered.wholes] += vector
        answers = heard_at_least(heard.values(), most)
        while gathered.levels and answers[gathered.wholes] == len(everybody):
            gathered.whole = gathered.whole + gathered.levels.pop(0)
            gathered.wholes += 1
        last = best_level(answers, len(everybody), unread.budget)
        if last < gathered.wholes or not last:
            # Too much is missing, or clients came after everybody else's sums were joined.
            return np.zeros(self.length)
        missing = sum(len(everybody) - count for count in answers[:last])
        parts = gathered.levels[: last - gathered.wholes]
        return np.asarray(sum(parts, gathered.whole) + missing * unread.vector)

    def shrink(self, clusters: Mapping[int, int], pseudo: float) -> None:
        """Draw single clients towards their cluster by joining its mean to their own sums.

        Parameters
        ----------
        clusters : mapping of client (the groups here) to cluster
        pseudo : float
            Count of the cluster's mean that is added to each client's own sums, >= 0.
        """
        totals: dict[int, FloatArray] = {}
        for client, sums in self.sums.items():
            cluster = clusters[client]
            totals[cluster] = totals.get(cluster, np.zeros(self.length)) + sums
        for client, sums in self.sums.items():
            total = totals[clusters[client]]
            if total[0] > 0:
                self.results[client] = self.threshold_of(sums + pseudo * total / total[0])

    def state_dict(self) -> State:
        """Sums, thresholds and contributions by group."""
        return {
            "sums": {str(group): value.copy() for group, value in self.sums.items()},
            "results": {str(group): value for group, value in self.results.items()},
            "caps": {str(group): value for group, value in self.caps.items()},
            "seen": {str(group): value for group, value in self.seen.items()},
            "gathered": {
                str(group): {
                    "whole": kept.whole.copy(),
                    "wholes": kept.wholes,
                    "levels": [level.copy() for level in kept.levels],
                    "attendance": kept.attendance.state_dict(),
                }
                for group, kept in self.gathered.items()
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`'s value."""
        self.sums = {int(g): np.array(v, dtype=np.float64) for g, v in state["sums"].items()}
        self.results = {int(g): float(v) for g, v in state["results"].items()}
        self.caps = {int(g): float(v) for g, v in state["caps"].items()}
        self.seen = {int(g): int(v) for g, v in state["seen"].items()}
        self.gathered = {
            int(group): Gathered(
                np.array(kept["whole"], dtype=np.float64),
                int(kept["wholes"]),
                [np.array(level, dtype=np.float64) for level in kept["levels"]],
                Attendance.from_state(kept["attendance"]),
            )
            for group, kept in state["gathered"].items()
        }
