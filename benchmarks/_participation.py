"""Runs of a calibration in which not every client answers, without models: losses are drawn.

The calibrations and the choice of clients are those of the strategies; only Flower's messages are
left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhlm_app.learning.rules.certified import CURVE, GRID, CertifiedHighProbability
from fedhlm_app.settings import Settings
from hlm.risk import RiskSums, risk_sums
from hlm.risk.betting import log_terms
from strategies.calibration import Calibration, SequentialCalibration
from strategies.sampling import Node, choose

Floats = NDArray[np.float64]
Reply = Callable[[int, int, float, np.random.Generator], dict[str, Floats]]
"""Client, contribution, threshold of the text and randomness to the client's list metrics."""

TEST_GRID = np.array([0.5, 1.0])


@dataclass(frozen=True)
class Pattern:
    """Who answers.

    Attributes
    ----------
    clients, rounds : int
    fraction : float
        Share of clients asked in a round.
    dropout : float
        Chance that a client that is asked does not answer.
    away : int
        The last so many clients never connect.
    in_turn : bool
        Those heard least are asked first, as the strategy does; otherwise by chance alone.
    """

    clients: int = 20
    rounds: int = 30
    fraction: float = 1.0
    dropout: float = 0.0
    away: int = 0
    in_turn: bool = True


def play(calibration: Calibration, pattern: Pattern, reply: Reply, seed: int) -> list[float]:
    """One run; the result in force after each round."""
    rng = np.random.default_rng(seed)
    nodes = [Node(client, client, 0) for client in range(pattern.clients - pattern.away)]
    members = range(pattern.clients)
    results = []
    for number in range(1, pattern.rounds + 1):
        if calibration.active(0):
            attendance = calibration.attendance(0)
            turns = [attendance.turn(node.client) for node in nodes] if pattern.in_turn else None
            asked = choose(nodes, pattern.fraction, 1, seed, number, 0, turns)
            given = {}
            for client in (node.client for node in asked):
                attendance.ask(client)
                if rng.random() >= pattern.dropout:
                    place = calibration.trial(0)
                    given[client] = reply(client, attendance.heard[client], place, rng)
            if given:
                calibration.absorb(0, given, members)
        results.append(calibration.result(0))
    return results


# --- is anything certified whose risk is not below alpha? ----------------------------------


def two_kinds(clients: int, alpha: float, worst_last: bool = False) -> Floats:
    """Risks 0 and 2 alpha, whose mean is alpha, float64 [clients]."""
    risks = np.where(np.arange(clients) % 2 == 0, 0.0, 2 * alpha)
    return np.sort(risks) if worst_last else risks


def false_certificates(
    pattern: Pattern,
    runs: int,
    *,
    prompts: int = 10,
    alpha: float = 0.05,
    delta: float = 0.05,
    worst_last: bool = False,
    coins: bool = False,
    risks: Floats | None = None,
    lies: Mapping[int, dict[str, Floats]] | None = None,
    seed: int = 0,
) -> float:
    """Share of runs of generation that certify a candidate whose risk over all clients is alpha.

    All prompts of a client have its risk, which leaves the pattern of answers alone to chance; with
    `coins` a prompt is wholly wrong or wholly right. `lies` are the replies of clients that do not
    tell the truth; `risks` float64 [clients] are by default those of `two_kinds`.
    """
    means = two_kinds(pattern.clients, alpha, worst_last) if risks is None else risks
    right, wrong = log_terms(np.array([0.0]), alpha), log_terms(np.array([1.0]), alpha)
    alike = [log_terms(np.full(prompts, mean), alpha) for mean in means]
    curve = np.array([float(prompts), 0.0, 0.0])

    def reply(client: int, number: int, place: float, rng: np.random.Generator) -> dict[str, Any]:
        if place < 0:
            # With everything escalated nothing is lost; the first candidate comes from here.
            return {"risk-curve": curve, "wealth": prompts * right}
        if lies is not None and client in lies:
            return lies[client]
        if not coins:
            return {"risk-curve": curve, "wealth": alike[client]}
        lost = rng.binomial(prompts, means[client])
        return {"risk-curve": curve, "wealth": lost * wrong + (prompts - lost) * right}

    pattern = replace(pattern, rounds=pattern.rounds + 1)
    certified = [
        play(SequentialCalibration(TEST_GRID, alpha, delta), pattern, reply, seed + run)[-1] > 0
        for run in range(runs)
    ]
    return float(np.mean(certified))


def false_thresholds(
    pattern: Pattern,
    runs: int,
    settings: Settings,
    worst_last: bool = False,
    seed: int = 0,
) -> float:
    """Share of runs with given texts whose threshold has a risk over all clients of alpha."""
    alpha, prompts = settings.fidelity_budget, CertifiedHighProbability(settings).prompts
    means, risky = two_kinds(pattern.clients, alpha, worst_last), GRID >= 0.5

    def reply(client: int, number: int, place: float, rng: np.random.Generator) -> dict[str, Any]:
        lost = float(rng.binomial(prompts, means[client]))
        return {CURVE: RiskSums(np.where(risky, lost, 0.0), float(prompts)).as_vector()}

    bold = [
        play(CertifiedHighProbability(settings).calibration(), pattern, reply, seed + run)[-1]
        >= 0.5
        for run in range(runs)
    ]
    return float(np.mean(bold))


# --- what does it cost? -------------------------------------------------------------------


def tokens_of(
    threshold: float, prompts: int, each: int, rng: np.random.Generator, alpha: float | None
) -> dict[str, Floats]:
    """Sums of texts whose draft of uncertainty u is wrong with chance u: risk is th^2 / 2."""
    u = rng.random((prompts, each))
    wrong = (rng.random(u.shape) < u).astype(np.float64)
    rows = np.repeat(np.arange(prompts), each)
    found = {CURVE: risk_sums(u.ravel(), wrong.ravel(), rows, GRID).as_vector()}
    if alpha is not None:
        found["wealth"] = log_terms((wrong * (u <= threshold)).mean(axis=1), alpha)
    return found


def power(
    pattern: Pattern, runs: int, settings: Settings, each: int = 10, seed: int = 0
) -> dict[str, float]:
    """How soon a first threshold is certified, and what is kept in the end (u is uniform).

    Where everything is kept whose risk is allowed, the share is sqrt(2 alpha).
    """
    prompts = CertifiedHighProbability(settings).prompts
    calibration = CertifiedHighProbability(settings).calibration()
    sequential = isinstance(calibration, SequentialCalibration)
    alpha = CertifiedHighProbability(settings).levels[0] if sequential else None

    def reply(client: int, number: int, place: float, rng: np.random.Generator) -> dict[str, Any]:
        return tokens_of(place, prompts, each, rng, alpha)

    first, kept = [], []
    for run in range(runs):
        results = np.array(
            play(CertifiedHighProbability(settings).calibration(), pattern, reply, seed + run)
        )
        # Keeping nothing comes as -1, or as the grid's 0.
        sure = np.flatnonzero(results > 0)
        first.append(int(sure[0]) + 1 if len(sure) else pattern.rounds + 1)
        kept.append(max(float(results[-1]), 0.0))
    return {
        "first certified in round, median": float(np.median(first)),
        "runs with a certificate": float(np.mean(np.array(first) <= pattern.rounds)),
        "share kept in the end": float(np.mean(kept)),
    }


PATTERNS = {
    "all answer": Pattern(),
    "fraction .5": Pattern(fraction=0.5),
    "fraction .25": Pattern(fraction=0.25),
    "fraction .5, by chance": Pattern(fraction=0.5, in_turn=False),
    "fraction .25, by chance": Pattern(fraction=0.25, in_turn=False),
    "fraction .5 of 4": Pattern(clients=4, fraction=0.5),
    "30 % drop out, 50 rounds": Pattern(rounds=50, dropout=0.3),
    "half away for good": Pattern(away=10),
}
"""Who answers, where wrong certificates are counted; 20 clients and 30 rounds unless said."""

COSTS = {
    **{name: PATTERNS[name] for name in list(PATTERNS)[:5]},
    "30 % drop out": Pattern(dropout=0.3),
    "fraction .5 and 30 % drop out": Pattern(fraction=0.5, dropout=0.3),
    "one of 20 away for good": Pattern(away=1),
    "200 clients": Pattern(clients=200),
    "one of 200 away for good": Pattern(clients=200, away=1),
    "200 clients, 30 % drop out": Pattern(clients=200, dropout=0.3),
}
"""Who answers, where the price is measured."""


def participation(runs: int) -> dict[str, Any]:
    """Wrong certificates and power where not everybody answers.

    Wrong ones: clients of risk 0 and 2 alpha, alpha = delta = .05; a tenth of the runs for power.
    """
    rule = {"learning": "certified-high-probability"}
    given = Settings.from_sources({**rule, "workload": "classify"}, {})
    wrong: dict[str, Any] = {}
    for name, pattern in PATTERNS.items():
        wrong[name] = {
            "generation": false_certificates(pattern, runs, worst_last=bool(pattern.away)),
            "generation, coins": false_certificates(
                pattern, runs, worst_last=bool(pattern.away), coins=True
            ),
            "given texts": false_thresholds(
                replace(pattern, rounds=5), runs, given, worst_last=bool(pattern.away)
            ),
        }
    price: dict[str, Any] = {}
    for name, pattern in COSTS.items():
        for workload in ("generate", "score"):
            settings = Settings.from_sources({**rule, "workload": workload}, {})
            few = max(runs // 10 * 20 // pattern.clients, 5)
            price[f"{name} | {workload}"] = power(pattern, few, settings)
    return {"runs": runs, "wrong certificates": wrong, "price": price}
