"""From summed curves to thresholds: once from pooled sums, or step by step on text of its own.

`PooledCalibration` is for contexts that do not depend on the threshold: sums of all rounds are
added, and one function reads the threshold from them. `SequentialCalibration` is for free-running
generation, where a threshold must be judged on text that was made with it.

With central differential privacy a round's sums get their noise before they are kept, so that
nothing that is stored, published or resumed from holds them without.

Both speak about all clients of a group with equal weight, although not all of them answer: the
first counts what is missing as wrong, the second divides by what unequal answers may have won.

Groups are whatever shares a threshold: all clients, the clusters, or single clients.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from hlm.arrays import FloatArray
from hlm.risk import ESCALATE_ALL, RiskSums
from hlm.risk.betting import FRACTIONS, log_imbalance, log_wealth, wealth_bounds
from hlm.state import State
from strategies.attendance import Attendance
from strategies.shortfall import fewest

NEAREST = 0.9
"""Share of alpha beyond which no candidate is tried: its test would hardly ever end."""


class Calibration(Protocol):
    """Turns what clients of a group sent into the group's threshold."""

    def lengths(self) -> Mapping[str, int]:
        """List metrics of a reply and their lengths."""
        ...

    def active(self, group: int) -> bool:
        """Whether the group still needs sums."""
        ...

    def trial(self, group: int) -> float:
        """Threshold its clients work with while sums are gathered."""
        ...

    def result(self, group: int) -> float:
        """Threshold reached so far."""
        ...

    def begin(self, group: int, learned: float) -> None:
        """Look for the largest threshold not above a learned one; without effect once begun."""
        ...

    def learned(self, group: int) -> float | None:
        """The one that `begin` was told."""
        ...

    def heard(self, group: int) -> int:
        """Prompts behind what is being gathered."""
        ...

    def lacking(self, group: int) -> int | None:
        """Prompts without a wrong token after which a threshold could be certified at the earliest.

        None where no further prompt helps: the search has ended.
        """
        ...

    def attendance(self, group: int) -> Attendance:
        """Who of the group has contributed how often to what is being gathered."""
        ...

    def absorb(
        self,
        group: int,
        replies: Mapping[int, Mapping[str, FloatArray]],
        members: Collection[int],
    ) -> None:
        """Take in one round's sums of a group.

        Parameters
        ----------
        group : int
        replies : mapping of client to its list metrics
        members : collection of int
            All clients that share the threshold, heard of or not: whom it speaks about. Clients
            that have contributed belong to them in any case.
        """
        ...

    def state_dict(self) -> State:
        """Everything needed to continue identically."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`'s value."""
        ...


@dataclass
class Chain:
    """Where one group's sequence of candidates stands.

    Attributes
    ----------
    certified : float
        Last threshold that passed its test.
    candidate : float
        The one under test.
    terms : float64 [K]
        Summed log-terms of the bets against it, from text made with it.
    curve : float64 [1 + G]
        Summed `RiskSums` of that text.
    prompts : Counter of client
        Prompts of each client behind the two.
    attendance : Attendance
        Of this candidate's rounds.
    settled : bool
        No further candidate is tried.
    learned : float or None
        Largest threshold that may be tried; None: any.
    surveys : bool
        The candidate is not under test: its text only foretells where to begin.
    """

    certified: float
    candidate: float
    terms: FloatArray
    curve: FloatArray
    prompts: Counter[int] = field(default_factory=Counter)
    attendance: Attendance = field(default_factory=Attendance)
    settled: bool = False
    learned: float | None = None
    surveys: bool = False


class SequentialCalibration:
    """Candidates one after the other, each judged on text that was made with it.

    Fixed-sequence testing, as in Learn-then-Test (arXiv 2110.01052): the null hypothesis "the
    risk of text made at this threshold is above alpha" is tested at level delta, and only if it
    is rejected does the next candidate begin. The first true null that is tested is rejected with
    probability at most delta, and nothing comes after an acceptance, so
    ``P(risk(result) <= alpha) >= 1 - delta``. Each test is a bet (`hlm.risk.betting`), valid at any
    time, so a candidate is tested for as many rounds as it takes. The first candidate escalates
    everything, has risk 0, and needs no test.

    The risk is that of the mixture in which every member of the group counts the same. Members
    need not answer equally often, or at all: the wealth is divided by what the pattern of answers
    could have won by itself (`hlm.risk.betting.log_imbalance`).

    Which candidate comes next is chosen from the curve of the last one, which foretells the risk
    of thresholds above it because escalated tokens show their loss too. The choice uses past data
    only and each candidate is tested on new text, so the guarantee does not rest on the forecast.

    Learn, then certify (`begin`): a threshold that gradients have learned is a limit of the same
    search. The first round's text is made with it and foretells where to begin; it tests nothing.
    Then candidates go up as ever, to the learned threshold itself if they get so far. What was
    learned depends on the texts of the learning rounds, and the first candidate on those of the
    first round after them, but every test begins with text drawn after its candidate was fixed:
    given all that came before, its wealth is a supermartingale under the null. So the level is
    kept whatever was learned, by whichever rule. Nothing is tested below a candidate that failed:
    a sequence that went down would need a share of the level for each of its steps.

    Parameters
    ----------
    grid : float64 [G]
        Ascending thresholds.
    alpha, delta : float
        Risk and failure probability, in (0, 1).
    careful : float
        Below 0: escalates everything.
    bound : float
        Largest possible risk of one prompt, >= 1.
    """

    def __init__(
        self,
        grid: FloatArray,
        alpha: float,
        delta: float,
        careful: float = ESCALATE_ALL,
        bound: float = 1.0,
    ) -> None:
        for name, value in (("alpha", alpha), ("delta", delta)):
            if not 0 < value < 1:
                raise ValueError(f"{name}: {value}; allowed: (0, 1)")
        self.grid, self.alpha, self.delta, self.careful = grid, alpha, delta, careful
        self.bound = bound
        self.chains: dict[int, Chain] = {}

    def lengths(self) -> Mapping[str, int]:
        """The curve, and a log-term for each bet."""
        return {"risk-curve": 1 + len(self.grid), "wealth": len(FRACTIONS)}

    def active(self, group: int) -> bool:
        """Until the chain has settled."""
        return not self._chain(group).settled

    def trial(self, group: int) -> float:
        """The candidate, or the result once settled."""
        chain = self._chain(group)
        return chain.certified if chain.settled else chain.candidate

    def result(self, group: int) -> float:
        """The last threshold that passed."""
        return self._chain(group).certified

    def begin(self, group: int, learned: float) -> None:
        """See `Calibration`."""
        chain = self._chain(group)
        if chain.learned is None:
            chain.learned = chain.candidate = max(learned, self.careful)
            chain.surveys = learned > self.careful

    def learned(self, group: int) -> float | None:
        """See `Calibration`."""
        return self.chains[group].learned if group in self.chains else None

    def heard(self, group: int) -> int:
        """Prompts behind the present candidate's test."""
        return self._chain(group).prompts.total()

    def lacking(self, group: int) -> int | None:
        """See `Calibration`."""
        chain, needed = self._chain(group), -math.log(self.delta)
        if chain.settled:
            return None
        # Text in which everything was escalated says nothing about a candidate.
        tests = chain.candidate > self.careful and not chain.surveys
        terms = chain.terms if tests else np.zeros_like(chain.terms)
        _, best = wealth_bounds(1, self.alpha, self.bound)
        return fewest(lambda more: log_wealth(terms + more * best) >= needed)

    def attendance(self, group: int) -> Attendance:
        """Who has contributed how often to the present candidate's test."""
        return self._chain(group).attendance

    def absorb(
        self,
        group: int,
        replies: Mapping[int, Mapping[str, FloatArray]],
        members: Collection[int],
    ) -> None:
        """Add a round of text made at the candidate; move on when its bet is won."""
        chain = self._chain(group)
        if chain.settled:
            return
        for client, sums in replies.items():
            chain.terms = chain.terms + sums["wealth"]
            chain.curve = chain.curve + sums["risk-curve"]
            chain.prompts[client] += int(sums["risk-curve"][0])
            chain.attendance.answer(client)
        if not chain.curve[0] > 0:
            return
        before, needed = log_wealth(chain.terms), -math.log(self.delta)
        if (
            chain.surveys
            or chain.candidate <= self.careful
            or (before >= needed and self.wealth(chain, members) >= needed)
        ):
            self._move_on(chain)
        elif before <= -needed:
            # Lost beyond hope: stop paying for readings. Stopping can only make it more careful.
            chain.settled = True

    def wealth(self, chain: Chain, members: Collection[int]) -> float:
        """Log-wealth of the bets on a candidate, less what unequal answers may have won."""
        everybody = set(members) | set(chain.prompts)
        counts = np.array([chain.prompts[client] for client in everybody], dtype=np.float64)
        return log_wealth(chain.terms - log_imbalance(counts, self.alpha, self.bound))

    def _move_on(self, chain: Chain) -> None:
        """Accept the candidate, unless it only surveys, and choose the next by its curve."""
        if not chain.surveys:
            chain.certified = chain.candidate
        chain.surveys = False
        curve = RiskSums.from_vector(chain.curve)
        grid, foretold = self._up_to(chain.learned, curve.risk / curve.prompts)
        above = grid > chain.certified
        now = float(foretold[~above][-1]) if (~above).any() else 0.0
        # Half of what is left: far from alpha a bet is won soon, close to it hardly ever.
        possible = above & (foretold <= NEAREST * self.alpha)
        if not possible.any():
            # With everything escalated nothing is under test, and looking again costs nothing: a
            # round of lost answers must not end the search.
            chain.settled = chain.certified > self.careful
            chain.surveys = not chain.settled and chain.candidate > self.careful
            return
        half = possible & (foretold <= (now + self.alpha) / 2)
        # Where the grid is coarse, half may lie between two points.
        step = np.flatnonzero(half)[-1] if half.any() else np.flatnonzero(possible)[0]
        chain.candidate = float(grid[step])
        chain.terms = np.zeros_like(chain.terms)
        chain.curve = np.zeros_like(chain.curve)
        chain.prompts, chain.attendance = Counter(), Attendance()

    def _up_to(self, learned: float | None, foretold: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Grid and forecast as far as they may be tried, the learned threshold as the last."""
        if learned is None:
            return self.grid, foretold
        below = self.grid < learned
        # Of the risk at a point between two of the grid the curve knows that it is no higher.
        beyond = foretold[~below][0] if not below.all() else foretold[-1]
        return np.append(self.grid[below], learned), np.append(foretold[below], beyond)

    def _chain(self, group: int) -> Chain:
        if group not in self.chains:
            terms, curve = (np.zeros(self.lengths()[name]) for name in ("wealth", "risk-curve"))
            self.chains[group] = Chain(self.careful, self.careful, terms, curve)
        return self.chains[group]

    def state_dict(self) -> State:
        """Every chain by group."""
        return {
            str(group): {
                **vars(chain),
                "prompts": {str(client): count for client, count in chain.prompts.items()},
                "attendance": chain.attendance.state_dict(),
            }
            for group, chain in self.chains.items()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`'s value."""
        self.chains = {
            int(group): Chain(
                float(kept["certified"]),
                float(kept["candidate"]),
                np.array(kept["terms"], dtype=np.float64),
                np.array(kept["curve"], dtype=np.float64),
                Counter({int(client): int(n) for client, n in kept["prompts"].items()}),
                Attendance.from_state(kept["attendance"]),
                bool(kept["settled"]),
                None if kept["learned"] is None else float(kept["learned"]),
                bool(kept["surveys"]),
            )
            for group, kept in state.items()
        }
