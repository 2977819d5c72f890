"""Central differential privacy around summed curves: where the noise goes, and what is counted."""

from __future__ import annotations

import importlib.util
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from hlm.privacy import gaussian_epsilon
from hlm.risk import ESCALATE_ALL, CurveRelease, private_conformal_threshold, threshold_grid
from hlm.risk.private import square_root_sums
from hlm.state import state_from_bytes, state_to_bytes
from strategies.calibrated import CalibrationOptions
from strategies.cluster_map import AssignedClusters
from strategies.hierarchical import Hierarchical
from strategies.pooled import PooledCalibration
from strategies.privacy import CentralPrivacy


def _load(name):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


fake = _load("fake_grid")

POINTS, PROMPTS, CLIENTS, ALPHA = 16, 5, 4, 0.2
GRID = threshold_grid(POINTS)
RELEASE = CurveRelease(POINTS, PROMPTS, 1.0, ALPHA, 0.5)
CURVES = [np.linspace(0, 0.3 + 0.1 * client, POINTS) for client in range(CLIENTS)]


def private(seed=0, rounds=1, tier="global", **options):
    calibration = PooledCalibration(
        "risk-curve",
        RELEASE.length,
        lambda vector: private_conformal_threshold(RELEASE.read(vector), GRID, ALPHA),
        ESCALATE_ALL,
        rounds,
        partial(RELEASE.add_noise, generator=np.random.default_rng(seed)),
    )
    return Hierarchical(
        AssignedClusters({10 + i: i for i in range(CLIENTS)}, [i % 2 for i in range(CLIENTS)], 2),
        calibration=CalibrationOptions(
            calibration,
            tier,
            check=lambda sums: RELEASE.problem(sums["risk-curve"], 0),
            array="policy",
        ),
        bounds=(-1.0, 1.0),
        fraction_evaluate=0.0,
        privacy=CentralPrivacy(0.05, 0.5, 1e-6),
        **options,
    )


def run(strategy, rounds=1, changed=None):
    def client(number):
        def reply(message):
            vector = RELEASE.encode(CURVES[number], PROMPTS)
            if number == changed:
                vector = RELEASE.encode(np.full(POINTS, float(PROMPTS)), PROMPTS)
            policy = fake.received(message)
            return fake.answer(message, policy, client=number, risk_curve=vector.tolist())

        return reply

    grid = fake.FakeGrid({10 + number: client(number) for number in range(CLIENTS)})
    return strategy.start(grid, fake.initial(-1.0), rounds)


def exact():
    return sum(RELEASE.encode(curve, PROMPTS) for curve in CURVES)


def test_each_round_brings_one_noise_of_its_own():
    strategy = private(rounds=3)
    run(strategy, rounds=5)
    found = strategy.calibration.rule.sums[0]
    assert found[:2].tolist() == [3 * CLIENTS * PROMPTS, 3]
    generator, noise = np.random.default_rng(0), np.zeros(RELEASE.length)
    for _ in range(3):
        noise = RELEASE.add_noise(noise, generator)
    np.testing.assert_allclose(found, 3 * exact() + noise, atol=1e-9)
    assert RELEASE.read(found).deviation[-1] == pytest.approx(
        0.5 * RELEASE.sensitivity * np.sqrt(3) * np.linalg.norm(square_root_sums(POINTS)[-1])
    )


def test_the_noise_differs_between_runs_on_the_same_data():
    sums = []
    for seed in (1, 2):
        strategy = private(seed)
        run(strategy)
        sums.append(strategy.calibration.rule.sums[0][2:])
    assert (sums[0] != sums[1]).all()
    assert np.abs(sums[0] - exact()[2:]).max() > 0.1


def test_one_client_moves_the_sums_by_no_more_than_the_sensitivity():
    strategies = [private(), private()]
    for strategy, changed in zip(strategies, (None, 2), strict=True):
        run(strategy, changed=changed)
    one, other = (strategy.calibration.rule.sums[0] for strategy in strategies)
    assert 0 < np.linalg.norm(one - other) <= RELEASE.sensitivity + 1e-9


def test_nothing_that_is_kept_holds_the_sums_without_noise():
    strategy = private()
    result = run(strategy)
    assert "risk-curve" not in strategy.history[0].sums
    assert "risk-curve" not in result.train_metrics_clientapp[1]
    kept = strategy.state_dict()["calibration"]["sums"]["0"]
    assert not np.allclose(kept[2:], exact()[2:], atol=1e-3)


def test_every_round_in_which_sums_were_asked_for_is_paid_for():
    strategy = private(rounds=2)
    run(strategy, rounds=4)
    assert strategy.state.releases == 2
    assert strategy.epsilon == gaussian_epsilon(0.5, 2, 1e-6)
    spent = [record.epsilon for record in strategy.history]
    assert spent[0] < spent[1] == spent[2] == spent[3]
    again = private(rounds=2)
    again.load_state_dict(state_from_bytes(state_to_bytes(strategy.state_dict())))
    assert again.state.releases == 2


def test_a_round_whose_replies_do_not_count_is_paid_for_too():
    strategy = private(min_clients=CLIENTS + 1, min_nodes=1)
    run(strategy, rounds=2)
    assert not strategy.calibration.rule.sums
    assert strategy.state.releases == 2


def test_clusters_get_noise_of_their_own():
    strategy = private(tier="cluster")
    run(strategy)
    noises = []
    for cluster in (0, 1):
        found = strategy.calibration.rule.sums[cluster]
        assert found[:2].tolist() == [2 * PROMPTS, 1]
        members = [CURVES[client] for client in range(CLIENTS) if client % 2 == cluster]
        noises.append(found - sum(RELEASE.encode(curve, PROMPTS) for curve in members))
    assert not np.allclose(noises[0], noises[1])


@pytest.mark.parametrize("bad", [[1e30] * RELEASE.length, [0.0] * 3, [float("nan")]])
def test_impossible_vectors_are_refused(bad):
    strategy = private()

    def liar(message):
        return fake.answer(message, fake.received(message), client=3, risk_curve=bad)

    def honest(number):
        vector = RELEASE.encode(CURVES[number], PROMPTS).tolist()
        return lambda message: fake.answer(
            message, fake.received(message), client=number, risk_curve=vector
        )

    nodes = {10 + number: honest(number) for number in range(3)} | {13: liar}
    strategy.start(fake.FakeGrid(nodes), fake.initial(-1.0), 1)
    assert [refusal.client for refusal in strategy.history[0].refused] == [3]
    assert strategy.calibration.rule.sums[0][0] == 3 * PROMPTS
