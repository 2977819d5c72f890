from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks._risk_curves import personal_thresholds
from hlm.risk import RiskSums, conformal_threshold, risk_sums, threshold_grid
from hlm.risk.betting import log_terms
from hlm.state import state_from_bytes, state_to_bytes
from strategies.calibrated import CalibrationOptions
from strategies.calibration import SequentialCalibration
from strategies.cluster_map import AssignedClusters
from strategies.hierarchical import Hierarchical
from strategies.pooled import PooledCalibration


def _load(name):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


fake = _load("fake_grid")

GRID = threshold_grid(32)
ALPHA = 0.2


def threshold_of(vector):
    return conformal_threshold(RiskSums.from_vector(vector).risk, vector[0], GRID, ALPHA)


def pooled(rounds=1):
    return PooledCalibration("risk-curve", 33, threshold_of, -1.0, rounds)


def curve_of(seed, prompts=40):
    """Sums of a client whose drafts are the worse the larger the seed."""
    rng = np.random.default_rng(seed)
    u = rng.random(prompts * 5)
    wrong = (rng.random(len(u)) < u * (0.5 + 0.15 * seed)).astype(float)
    return risk_sums(u, wrong, np.repeat(np.arange(prompts), 5), GRID).as_vector()


def clients_sending(curves, **lists):
    def client(number):
        def reply(message):
            policy = fake.received(message)
            metrics = {"risk_curve": curves[number].tolist(), **lists}
            return fake.answer(message, policy, client=number, **metrics)

        return reply

    return {10 + number: client(number) for number in range(len(curves))}


def run(strategy, curves, rounds=1, **lists):
    grid = fake.FakeGrid(clients_sending(curves, **lists))
    strategy.start(grid, fake.initial(-1.0), rounds)
    return grid


def two_clusters(count=4):
    return AssignedClusters({10 + i: i for i in range(count)}, [i % 2 for i in range(count)], 2)


def calibrated(tier="global", calibration=None, **options):
    rule = pooled() if calibration is None else calibration
    return Hierarchical(
        two_clusters(),
        calibration=CalibrationOptions(rule, tier, array="policy", **options),
        bounds=(-1.0, 1.0),
        fraction_evaluate=0.0,
    )


@pytest.mark.parametrize("tier", ["global", "cluster", "local", "shrunk"])
def test_thresholds_equal_those_of_all_curves_in_one_place(tier):
    curves = [curve_of(seed) for seed in range(4)]
    strategy = calibrated(tier, pseudo=30.0)
    run(strategy, curves)
    expected = personal_thresholds(
        np.stack([RiskSums.from_vector(curve).risk for curve in curves]),
        np.array([curve[0] for curve in curves]),
        GRID,
        ALPHA,
        tier,
        np.array([0, 1, 0, 1]),
        pseudo_prompts=30.0,
    )
    found = [strategy.client_values[client][0] for client in range(4)]
    assert np.allclose(found, expected)
    assert len(set(found)) >= {"global": 1, "cluster": 2, "local": 3, "shrunk": 2}[tier]
    assert np.allclose(strategy.cluster_policies[:, 0], [np.mean(found[::2]), np.mean(found[1::2])])


def test_clients_are_told_when_sums_are_wanted_and_sent_the_threshold():
    strategy = calibrated()
    grid = run(strategy, [curve_of(seed) for seed in range(4)], rounds=2)
    first, second = grid.sent[0], grid.sent[4]
    assert fake.settings(first)["calibrate"] and not fake.settings(second)["calibrate"]
    assert fake.received(first)[0] == -1.0
    assert fake.received(second)[0] == strategy.policy[0] > 0


def test_rounds_are_pooled():
    once, twice = calibrated(), calibrated(calibration=pooled(2))
    curves = [curve_of(seed, 10) for seed in range(4)]
    run(once, curves)
    run(twice, curves, rounds=3)
    assert twice.calibration.rule.sums[0][0] == 2 * once.calibration.rule.sums[0][0] == 80


@pytest.mark.parametrize(
    "bad", [[1.0], [float("nan")] * 33, "missing"], ids=["short", "nan", "missing"]
)
def test_a_bad_curve_does_not_move_the_threshold(bad):
    curves = [curve_of(seed) for seed in range(4)]
    alone, together = calibrated(), calibrated()
    run(alone, curves[:3])
    grid_clients = clients_sending(curves)

    def liar(message):
        lists = {} if bad == "missing" else {"risk_curve": bad}
        return fake.answer(message, fake.received(message), client=3, **lists)

    grid_clients[13] = liar
    together.start(fake.FakeGrid(grid_clients), fake.initial(-1.0), 1)
    assert together.policy[0] == alone.policy[0]
    assert [refusal.client for refusal in together.history[0].refused] == [3]


def test_impossible_sums_are_refused_by_the_check():
    strategy = calibrated(check=lambda sums: "too many" if sums["risk-curve"][0] > 1000 else "")
    curves = [curve_of(seed) for seed in range(4)]
    curves[2] = curves[2] * 1000
    run(strategy, curves)
    assert strategy.history[0].refused[0].detail == "too many"
    assert strategy.calibration.rule.sums[0][0] == 120


# --- candidate by candidate ---------------------------------------------------------------


def texts_at(threshold, risk_of, prompts, seed):
    """Sums of text made at a threshold where keeping at u <= th costs risk_of(th) per token."""
    rng = np.random.default_rng(seed)
    u = rng.random((prompts, 10))
    # d risk / d th = chance of being wrong at u.
    step = 1e-4
    chance = (risk_of(np.minimum(u + step, 1)) - risk_of(u)) / step
    wrong = (rng.random(u.shape) < np.clip(chance, 0, 1)).astype(float)
    sums = risk_sums(u.ravel(), wrong.ravel(), np.repeat(np.arange(prompts), 10), GRID)
    lost = (wrong * (u <= threshold)).mean(axis=1)
    return {"risk-curve": sums.as_vector(), "wealth": log_terms(lost, ALPHA)}


def chain_of(risk_of, rounds, seed, delta=0.1, prompts=60):
    chain = SequentialCalibration(GRID, ALPHA, delta)
    for number in range(rounds):
        if not chain.active(0):
            break
        chain.absorb(0, {0: texts_at(chain.trial(0), risk_of, prompts, [seed, number])}, {0})
    return chain


def test_the_first_candidate_needs_no_test_and_the_next_is_foretold():
    chain = SequentialCalibration(GRID, ALPHA, 0.1)
    assert chain.trial(0) == chain.result(0) == -1.0
    chain.absorb(0, {0: texts_at(-1.0, lambda u: u**2 / 2, 400, 1)}, {0})
    # Risk at th is th^2 / 2, so half of alpha is foretold at th = sqrt(alpha).
    assert chain.trial(0) == pytest.approx(math.sqrt(ALPHA), abs=0.12)
    assert chain.result(0) == -1.0


def test_a_chain_comes_close_to_the_budget_and_settles():
    chain = chain_of(lambda u: u**2 / 2, 40, 2)
    assert not chain.active(0)
    assert 0.5 * ALPHA < chain.result(0) ** 2 / 2 <= ALPHA
    assert chain.trial(0) == chain.result(0)


def test_the_guarantee_holds_over_many_runs():
    """P(risk > alpha) <= delta. False-alarm rate below 1e-6: 300 runs, 5 standard errors."""
    delta = 0.1
    above = [
        chain_of(lambda u: u**2 / 2, 12, seed, delta, prompts=20).result(0) ** 2 / 2 > ALPHA
        for seed in range(300)
    ]
    assert np.mean(above) <= delta + 5 * math.sqrt(delta * (1 - delta) / 300)


def test_text_worse_than_foretold_is_not_certified():
    chain = SequentialCalibration(GRID, ALPHA, 0.1)
    chain.absorb(0, {0: texts_at(-1.0, lambda u: u**2 / 2, 200, 1)}, {0})
    # With its own drafts in the text the small model goes astray: every kept token is wrong.
    for number in range(20):
        chain.absorb(0, {0: texts_at(chain.trial(0), lambda u: u, 60, number)}, {0})
    assert chain.result(0) == -1.0
    assert not chain.active(0)


def test_a_chain_goes_on_from_its_state():
    whole, cut = (SequentialCalibration(GRID, ALPHA, 0.1) for _ in range(2))
    for number in range(6):
        sums = texts_at(whole.trial(0), lambda u: u**2 / 2, 60, number)
        whole.absorb(0, {0: sums}, {0})
        cut.absorb(0, {0: sums}, {0})
        again = SequentialCalibration(GRID, ALPHA, 0.1)
        again.load_state_dict(state_from_bytes(state_to_bytes(cut.state_dict())))
        cut = again
    assert cut.result(0) == whole.result(0) and cut.trial(0) == whole.trial(0)


def test_a_strategy_goes_on_from_its_state():
    curves = [curve_of(seed, 10) for seed in range(4)]
    whole = calibrated("local", pooled(3))
    run(whole, curves, rounds=3)
    cut = calibrated("local", pooled(3))
    run(cut, curves, rounds=2)
    again = calibrated("local", pooled(3))
    again.load_state_dict(state_from_bytes(state_to_bytes(cut.state_dict())))
    again.start(fake.FakeGrid(clients_sending(curves)), fake.initial(-1.0), 3)
    assert {c: v[0] for c, v in again.client_values.items()} == {
        c: v[0] for c, v in whole.client_values.items()
    }
    assert np.array_equal(again.policy, whole.policy)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tier": "mine"}, "tier"),
        ({"pseudo": -1.0}, "pseudo"),
        ({"tier": "shrunk", "calibration": SequentialCalibration(GRID, 0.1, 0.1)}, "shrunk"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        calibrated(**options)


# ---- Training first; such rounds are run in tests/fedhlm_app/learning/test_router.py ----


def options(**changes):
    return CalibrationOptions(pooled(), array="policy", **changes)


def test_methods_and_rules_belong_to_the_training_rounds():
    strategy = Hierarchical(
        calibration=options(training_rounds=3, tier="cluster"), edge_rule="fedmedian"
    )
    assert strategy.state.rules.edge_rule == "fedmedian"
    assert options(tier="cluster").start(None).personalisation == "cluster"
    assert options(training_rounds=1).start(None).personalisation == "global"


def test_bad_options_of_two_phases_are_refused():
    with pytest.raises(ValueError, match="training_rounds: -1"):
        options(training_rounds=-1)
    with pytest.raises(ValueError, match="tier"):
        options(training_rounds=1, tier="local")
    with pytest.raises(ValueError, match="personalisation: 'local'"):
        Hierarchical(calibration=options(), personalisation="local")
