"""From summed curves to thresholds: once from pooled sums, or step by step on text of its own.

`PooledCalibration` is for contexts that do not depend on the threshold: sums of all rounds are
added, and one function reads the threshold from them. `SequentialCalibration` is for free-running
generation, where a threshold must be judged on text that was made with it.

With central differential privacy a round's sums get their noise before they are kept, so that
nothing that is stored, published or resumed from holds them without.

Groups are whatever shares a threshold: all clients, the clusters, or single clients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from hlm.betting import FRACTIONS, log_wealth
from hlm.risk import ESCALATE_ALL, RiskSums
from strategies.aggregation import FloatArray
from strategies.rules import State

NEAREST = 0.9
"""Share of alpha beyond which no candidate is tried: its test would hardly ever end."""

ThresholdOf = Callable[[FloatArray], float]
"""Reads a threshold from a group's summed vector float64 [m], whose first entry is a count."""

Noise = Callable[[FloatArray], FloatArray]
"""Adds noise to one round's sums of a group, float64 [m]."""


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

    def absorb(self, group: int, sums: Mapping[str, FloatArray]) -> None:
        """Take in one round's sums of a group."""
        ...

    def state_dict(self) -> State:
        """Everything needed to continue identically."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`'s value."""
        ...


class PooledCalibration:
    """One threshold from the sums of all rounds so far.

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
    """

    def __init__(
        self,
        metric: str,
        length: int,
        threshold_of: ThresholdOf,
        initial: float,
        rounds: int = 1,
        noise: Noise | None = None,
    ) -> None:
        self.metric, self.length, self.threshold_of = metric, length, threshold_of
        self.initial, self.rounds, self.noise = initial, rounds, noise
        self.sums: dict[int, FloatArray] = {}
        self.results: dict[int, float] = {}
        self.seen: dict[int, int] = {}

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
        """Threshold of the sums so far."""
        return self.results.get(group, self.initial)

    def absorb(self, group: int, sums: Mapping[str, FloatArray]) -> None:
        """Add a round's sums and read the threshold again."""
        new = sums[self.metric] if self.noise is None else self.noise(sums[self.metric])
        self.sums[group] = self.sums.get(group, np.zeros(self.length)) + new
        self.seen[group] = self.seen.get(group, 0) + 1
        self.results[group] = self.threshold_of(self.sums[group])

    def shrink(self, clusters: Mapping[int, int], pseudo: float) -> None:
        """Draw single clients towards their cluster, as `hlm.risk.personal_thresholds` does.

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
        """Sums and thresholds by group."""
        return {
            "sums": {str(group): value.copy() for group, value in self.sums.items()},
            "results": {str(group): value for group, value in self.results.items()},
            "seen": {str(group): value for group, value in self.seen.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`'s value."""
        self.sums = {int(g): np.array(v, dtype=np.float64) for g, v in state["sums"].items()}
        self.results = {int(g): float(v) for g, v in state["results"].items()}
        self.seen = {int(g): int(v) for g, v in state["seen"].items()}


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
    settled : bool
        No further candidate is tried.
    """

    certified: float
    candidate: float
    terms: FloatArray
    curve: FloatArray
    settled: bool = False


class SequentialCalibration:
    """Candidates one after the other, each judged on text that was made with it.

    Fixed-sequence testing, as in Learn-then-Test (arXiv 2110.01052): the null hypothesis "the
    risk of text made at this threshold is above alpha" is tested at level delta, and only if it
    is rejected does the next candidate begin. The first true null that is tested is rejected with
    probability at most delta, and nothing comes after an acceptance, so
    ``P(risk(result) <= alpha) >= 1 - delta``. Each test is a bet (`hlm.betting`), valid at any
    time, so a candidate is tested for as many rounds as it takes. The first candidate escalates
    everything, has risk 0, and needs no test.

    Which candidate comes next is chosen from the curve of the last one, which foretells the risk
    of thresholds above it because escalated tokens show their loss too. The choice uses past data
    only and each candidate is tested on new text, so the guarantee does not rest on the forecast.

    Parameters
    ----------
    grid : float64 [G]
        Ascending thresholds.
    alpha, delta : float
        Risk and failure probability, in (0, 1).
    careful : float
        Below 0: escalates everything.
    """

    def __init__(
        self, grid: FloatArray, alpha: float, delta: float, careful: float = ESCALATE_ALL
    ) -> None:
        for name, value in (("alpha", alpha), ("delta", delta)):
            if not 0 < value < 1:
                raise ValueError(f"{name}: {value}; allowed: (0, 1)")
        self.grid, self.alpha, self.delta, self.careful = grid, alpha, delta, careful
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

    def absorb(self, group: int, sums: Mapping[str, FloatArray]) -> None:
        """Add a round of text made at the candidate; move on when its bet is won."""
        chain = self._chain(group)
        if chain.settled or not sums["risk-curve"][0] > 0:
            return
        chain.terms = chain.terms + sums["wealth"]
        chain.curve = chain.curve + sums["risk-curve"]
        wealth = log_wealth(chain.terms)
        if chain.candidate <= self.careful or wealth >= -math.log(self.delta):
            self._move_on(chain)
        elif wealth <= math.log(self.delta):
            # Lost beyond hope: stop paying for readings. Stopping can only make it more careful.
            chain.settled = True

    def _move_on(self, chain: Chain) -> None:
        """Accept the candidate and choose the next by its curve."""
        chain.certified = chain.candidate
        curve = RiskSums.from_vector(chain.curve)
        foretold = curve.risk / curve.prompts
        above = self.grid > chain.certified
        now = float(foretold[~above][-1]) if (~above).any() else 0.0
        # Half of what is left: far from alpha a bet is won soon, close to it hardly ever.
        possible = above & (foretold <= NEAREST * self.alpha)
        if not possible.any():
            chain.settled = True
            return
        half = possible & (foretold <= (now + self.alpha) / 2)
        # Where the grid is coarse, half may lie between two points.
        step = np.flatnonzero(half)[-1] if half.any() else np.flatnonzero(possible)[0]
        chain.candidate = float(self.grid[step])
        chain.terms = np.zeros_like(chain.terms)
        chain.curve = np.zeros_like(chain.curve)

    def _chain(self, group: int) -> Chain:
        if group not in self.chains:
            lengths = self.lengths()
            self.chains[group] = Chain(
                self.careful,
                self.careful,
                np.zeros(lengths["wealth"]),
                np.zeros(lengths["risk-curve"]),
            )
        return self.chains[group]

    def state_dict(self) -> State:
        """Every chain by group."""
        return {str(group): dict(vars(chain)) for group, chain in self.chains.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`'s value."""
        self.chains = {
            int(group): Chain(
                float(kept["certified"]),
                float(kept["candidate"]),
                np.array(kept["terms"], dtype=np.float64),
                np.array(kept["curve"], dtype=np.float64),
                bool(kept["settled"]),
            )
            for group, kept in state.items()
        }
