"""A guarantee speaks about all clients, whoever answers: the strategies' own classes, many runs.

Numbers of runs are small here; `python -m benchmarks.guarantee --participation 2000` has more.
"""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from benchmarks._participation import Pattern, false_certificates, false_thresholds
from fedhlm_app.settings import Settings
from hlm.risk import RiskSums, learn_then_test
from hlm.risk.betting import log_terms
from hlm.state import state_from_bytes, state_to_bytes
from strategies.attendance import Attendance, best_level, heard_at_least
from strategies.calibrated import CalibrationOptions
from strategies.calibration import SequentialCalibration
from strategies.cluster_map import AssignedClusters
from strategies.hierarchical import Hierarchical
from strategies.pooled import PooledCalibration, Unread


def _load(name):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


fake = _load("fake_grid")
DELTA = 0.05


def most(runs):
    """More than so many of `runs` wrong certificates come by chance once in a million times."""
    return stats.binom.ppf(1 - 1e-6, runs, DELTA) / runs


PATTERNS = {
    "half of 20": Pattern(20, 30, 0.5),
    "a quarter of 20": Pattern(20, 30, 0.25),
    "half of 4": Pattern(4, 30, 0.5),
    "a third drops out": Pattern(20, 50, 1.0, dropout=0.3),
}


@pytest.mark.parametrize("in_turn", [True, False])
@pytest.mark.parametrize("name", PATTERNS)
def test_generation_certifies_nothing_of_risk_alpha(name, in_turn):
    pattern = Pattern(**{**vars(PATTERNS[name]), "in_turn": in_turn})
    assert false_certificates(pattern, 60) <= most(60)


def test_clients_that_stay_away_are_spoken_for_too():
    """Ten harmless clients always answer, ten bad ones never."""
    pattern = Pattern(20, 50, away=10)
    assert false_certificates(pattern, 30, worst_last=True) <= most(30)
    assert false_certificates(pattern, 30, worst_last=True, coins=True) <= most(30)


LTT = Settings.from_sources({"workload": "classify", "learning": "certified-high-probability"}, {})


@pytest.mark.parametrize(
    "pattern",
    [
        Pattern(20, 5, 0.25),
        Pattern(20, 5, 0.25, in_turn=False),
        Pattern(20, 5, dropout=0.3),
        Pattern(20, 5, away=10),
    ],
    ids=["in turn", "by chance", "dropouts", "half away"],
)
def test_given_texts_certify_nothing_of_risk_alpha(pattern):
    assert false_thresholds(pattern, 60, LTT, worst_last=True) <= most(60)


def test_liars_within_the_bounds_are_clients_of_risk_0():
    """One of twenty says that it loses nothing: the others' risk is alpha 20 / 19, and no more."""
    alpha, prompts = 0.05, 3
    lie = {
        "risk-curve": np.array([prompts, 0.0, 0.0]),
        "wealth": log_terms(np.zeros(prompts), alpha),
    }
    risks = np.full(20, alpha * 20 / 19)
    pattern = Pattern(20, 60)
    found = false_certificates(
        pattern, 60, prompts=prompts, coins=True, risks=risks, lies={19: lie}
    )
    assert found <= most(60)
    # Were it believed about thirty prompts, it would outweigh 1.2 alpha of all the others.
    lie = {
        "risk-curve": np.array([30.0, 0.0, 0.0]),
        "wealth": log_terms(np.zeros(30), alpha),
    }
    terms = 19 * log_terms(np.full(prompts, 1.2 * alpha), alpha) + lie["wealth"]
    assert (terms > 0).all()


def test_all_answering_equally_often_pays_nothing():
    calibration = SequentialCalibration(np.array([0.5, 1.0]), 0.05, DELTA)
    reply = {"risk-curve": np.array([3.0, 0.0, 0.0]), "wealth": log_terms(np.zeros(3), 0.05)}
    calibration.absorb(0, dict.fromkeys(range(4), reply), range(4))
    calibration.absorb(0, dict.fromkeys(range(4), reply), range(4))
    chain = calibration.chains[0]
    assert calibration.wealth(chain, range(4)) == pytest.approx(
        math.log(float((np.array([0.6, 0.25, 0.15]) * np.exp(chain.terms)).sum())), abs=1e-12
    )
    assert calibration.wealth(chain, range(5)) < 0.3 * calibration.wealth(chain, range(4))


# --- contributions --------------------------------------------------------------------------


def curve(prompts, risk):
    return {"sums": RiskSums(np.array([risk]), float(prompts)).as_vector()}


def pooled(prompts=10, budget=0.05, rounds=50):
    unread = Unread(RiskSums(np.array([float(prompts)]), float(prompts)).as_vector(), budget)
    seen = []

    def threshold_of(vector):
        seen.append(vector)
        sums = RiskSums.from_vector(vector)
        return learn_then_test(sums.risk, sums.prompts, np.array([0.5]), budget, DELTA)

    return PooledCalibration("sums", 2, threshold_of, -1.0, rounds, unread=unread), seen


@given(st.lists(st.sets(st.integers(0, 4), min_size=1), min_size=1, max_size=12), st.integers(5, 7))
def test_whatever_is_missing_the_sums_are_never_below_those_of_everybody(rounds, members):
    """Against keeping every contribution: risk and prompts at the level that was chosen."""
    calibration, seen = pooled(budget=0.5)
    rng = np.random.default_rng(len(rounds))
    losses = rng.random((members, len(rounds)))
    heard = np.zeros(members, int)
    for answering in rounds:
        replies = {c: curve(10, losses[c, heard[c]]) for c in answering}
        calibration.absorb(0, replies, range(members))
        heard[list(answering)] += 1
        level = best_level(heard_at_least(heard, heard.max()), members, 0.5)
        sums = RiskSums.from_vector(seen[-1])
        if not sums.prompts:
            continue
        whole = losses[:, :level]
        read = np.arange(level) < heard[:, None]
        assert sums.prompts == 10 * level * members
        assert sums.risk[0] == pytest.approx((whole * read).sum() + 10 * (~read).sum(), abs=1e-3)
        again = pooled()[0]
        again.load_state_dict(state_from_bytes(state_to_bytes(calibration.state_dict())))
        assert state_to_bytes(again.state_dict()) == state_to_bytes(calibration.state_dict())


def test_contributions_beyond_the_others_wait():
    calibration, seen = pooled()
    for _ in range(5):
        calibration.absorb(0, {0: curve(10, 0.0)}, range(2))
    assert not seen[-1].any() and calibration.result(0) == -1.0
    for number in range(1, 6):
        calibration.absorb(0, {1: curve(10, 0.0)}, range(2))
        assert seen[-1][0] == 20 * number
    assert len(calibration.gathered[0].levels) == 0


def test_one_missing_client_of_many_is_paid_for():
    calibration, seen = pooled()
    for _ in range(3):
        calibration.absorb(0, {client: curve(10, 0.0) for client in range(199)}, range(200))
    sums = RiskSums.from_vector(seen[-1])
    assert sums.prompts == 6000 and sums.risk[0] == pytest.approx(30, abs=0.1)
    assert calibration.result(0) == 0.5


@given(st.lists(st.integers(0, 6), min_size=1, max_size=12))
def test_the_level_depends_on_nothing_but_the_pattern(contributions):
    levels = max(contributions)
    heard = heard_at_least(contributions, levels)
    assert heard == [sum(c >= k for c in contributions) for k in range(1, levels + 1)]
    best = best_level(heard, len(contributions), 0.05)
    assert 0 <= best <= levels
    even = [len(contributions)] * levels
    assert best_level(even, len(contributions), 0.05) == levels


def test_the_level_is_worth_its_missing_answers():
    assert best_level([20, 20, 5], 20, 0.05) == 2
    assert best_level([199, 199, 199], 200, 0.05) == 3
    assert best_level([10, 10], 20, 0.05) == 0
    assert best_level([], 20, 0.05) == 0


def test_those_heard_least_are_asked_first_and_the_silent_do_not_block():
    attendance = Attendance()
    asked = dict.fromkeys(range(6), 0)
    for number in range(30):
        order = sorted(range(6), key=lambda client: (attendance.turn(client), client))
        for client in order[:2]:
            attendance.ask(client)
            asked[client] += 1
            if client != 0 and not (client == 1 and number % 2):
                attendance.answer(client)
    heard = [attendance.heard[client] for client in range(1, 6)]
    assert attendance.heard[0] == 0 and 8 <= asked[0] <= 12
    assert max(heard) - min(heard) <= 2


# --- the strategy ------------------------------------------------------------------------------


def clients_of(count, up, sums):
    """Nodes that answer where `up(client, round)`, with `sums(client, contribution)`."""

    def client(number):
        def reply(message):
            config = fake.settings(message)
            if not up(number, config["round"]):
                return None
            lists = {}
            if config["calibrate"]:
                found = sums(number, config["contribution"])
                lists = {key.replace("-", "_"): value.tolist() for key, value in found.items()}
            return fake.answer(message, fake.received(message), client=number, **lists)

        return reply

    return {10 + number: client(number) for number in range(count)}


def strategy_of(calibration, connected, clients, **options):
    tier = options.pop("tier", "global")
    return Hierarchical(
        AssignedClusters({10 + i: i for i in range(connected)}, [i % 2 for i in range(clients)], 2),
        calibration=CalibrationOptions(calibration, tier, clients=clients, array="policy"),
        bounds=(-1.0, 1.0),
        fraction_evaluate=0.0,
        **options,
    )


def test_the_strategy_asks_in_turn_and_for_the_same_contribution_again():
    """Half of six clients are asked; what was lost on the way is asked for again."""
    got = []

    def sums(client, contribution):
        got.append((client, contribution))
        return curve(10, 0.0)

    lost = {(2, 1), (2, 2), (3, 4)}
    calibration, seen = pooled(rounds=8)
    strategy = strategy_of(calibration, 6, 6, fraction_train=0.5)
    grid = fake.FakeGrid(clients_of(6, lambda c, r: (c, r) not in lost, sums))
    strategy.start(grid, fake.initial(-1.0), 8)
    heard = calibration.attendance(0).heard
    assert max(heard.values()) - min(heard.values()) <= 1
    for client in range(6):
        assert [k for c, k in got if c == client] == list(range(heard[client]))
    assert seen[-1][0] == 60 * min(heard.values())


@pytest.mark.parametrize(("tier", "expected"), [("global", 20), ("cluster", 10), ("local", 1)])
def test_clients_that_never_connected_belong_to_whom_it_speaks_about(tier, expected):
    calibration, seen = pooled(budget=0.9)
    strategy = strategy_of(calibration, 16, 20, tier=tier)
    grid = fake.FakeGrid(clients_of(16, lambda c, r: True, lambda c, k: curve(10, 0.0)))
    strategy.start(grid, fake.initial(-1.0), 1)
    assert {vector[0] for vector in seen} == {10.0 * expected}


def test_a_guarantee_goes_on_from_its_state_when_few_answer():
    def sums(client, contribution):
        rng = np.random.default_rng([client, contribution])
        return {
            "risk-curve": np.array([3.0, 0.0, 0.0]),
            "wealth": log_terms(rng.random(3) * 0.02, 0.2),
        }

    def up(client, number):
        return (client + number) % 3 > 0

    def run(strategy, rounds):
        grid = fake.FakeGrid(clients_of(6, up, sums))
        strategy.start(grid, fake.initial(-1.0), rounds)
        return strategy

    def fresh():
        grid = np.array([0.5, 1.0])
        return strategy_of(SequentialCalibration(grid, 0.2, 0.05), 6, 6, fraction_train=0.5)

    whole, cut, again = run(fresh(), 9), run(fresh(), 4), fresh()
    again.load_state_dict(state_from_bytes(state_to_bytes(cut.state_dict())))
    run(again, 9)
    assert state_to_bytes(again.calibration.rule.state_dict()) == state_to_bytes(
        whole.calibration.rule.state_dict()
    )
    assert again.policy == whole.policy


def test_once_nothing_is_gathered_all_clients_are_asked_alike():
    calibration, _ = pooled(rounds=1)
    strategy = strategy_of(calibration, 4, 4, fraction_train=0.5)
    grid = fake.FakeGrid(clients_of(4, lambda c, r: True, lambda c, k: curve(10, 0.0)))
    strategy.start(grid, fake.initial(-1.0), 40)
    asked = [sum(m.metadata.dst_node_id == 10 + c for m in grid.sent) for c in range(4)]
    assert min(asked) > 8


def test_options_of_who_is_spoken_about():
    with pytest.raises(ValueError, match="clients"):
        strategy_of(pooled()[0], 2, -1)
    with pytest.raises(ValueError, match="which client brought how many prompts"):
        strategy_of(pooled()[0], 2, 2).load_state_dict({"version": 1})
