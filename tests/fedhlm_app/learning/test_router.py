"""The learned router in runs: every strategy trains it, then its threshold is set."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from clients.learning.feedback import Feedback
from clients.learning.router_model import RouterLearning, RouterModel, rescored
from fedhlm_app.learning.gradients import initial_policy, learn_locally, policy_bounds
from fedhlm_app.learning.router import (
    RouterRule,
    escalates_all,
    router_columns,
    router_features,
    router_model,
    texts_of_round,
    trains_router,
)
from fedhlm_app.learning.rules.balanced import Balanced
from fedhlm_app.models.load import load_slm
from fedhlm_app.settings import Settings, SettingsError
from hlm.arrays import joined


def _in_process():
    if "in_process" not in sys.modules:
        path = Path(__file__).parents[1].joinpath("in_process.py")
        spec = importlib.util.spec_from_file_location("in_process", path)
        module = importlib.util.module_from_spec(spec)
        sys.modules["in_process"] = module
        spec.loader.exec_module(module)
    return sys.modules["in_process"]


def settings_of(**changes) -> Settings:
    return _in_process().settings_of(policy="router", **changes)


@pytest.fixture(scope="module")
def runner():
    with pytest.MonkeyPatch.context() as patch:
        yield _in_process().Runner(patch)


def feedback(rows: int = 60, features: int = 5, seed: int = 0) -> Feedback:
    rng = np.random.default_rng(seed)
    table = rng.standard_normal((rows, features)).astype(np.float32)
    beta = (table[:, 0] + 0.5 * rng.standard_normal(rows) > 0).astype(float)
    return Feedback.create(rng.random(rows), beta, features=table)


def test_both_parts_of_the_gradient() -> None:
    learning = RouterLearning(RouterModel(5, 3))
    balanced = Balanced(settings_of(learning="balanced", rounds=30))
    rule = RouterRule(learning, balanced, 3.0)
    rows = feedback()
    parameters = np.random.default_rng(1).standard_normal(learning.model.size)
    policy = np.append(0.4, parameters)
    gradient = rule.gradient(policy, rows)
    scored = rescored(learning.model, parameters, rows)
    assert gradient[0] == pytest.approx(3.0 * balanced.gradient(policy[:1], scored)[0]) != 0
    np.testing.assert_array_equal(gradient[1:], learning.gradient(parameters, rows))
    assert RouterRule(learning).gradient(policy, rows)[0] == 0
    low, high = rule.bounds
    assert (low[0], high[0]) == (0, 1) and low[1] == -high[1] == -50
    # The model's own bounds are not changed by joining them.
    assert RouterRule(learning).bounds[0][0] == -1


def test_server_and_device_agree_on_the_size() -> None:
    settings = settings_of(learning="certified", rounds=3, router_rounds=2, router_hidden=4)
    policy = initial_policy(settings)
    model = load_slm(settings.slm)
    features = router_features(settings, model)
    width = model.config.hidden_size
    tokens = np.array([[1, 9, 9, 5], [1, 7, 0, 0]])
    table = features(
        torch.randn(2, model.config.vocab_size),
        torch.randn(2, width),
        torch.tensor([4, 5]),
        np.array([3, 2]),
        tokens,
        np.full((2, 4, 3), 0.5, np.float32),
    )
    assert table.shape == (2, router_columns(settings).count)
    assert list(policy) == ["threshold", "router"] and policy["threshold"] == [-1]
    assert np.isfinite(router_model(settings).score(policy["router"], table)).all()
    low, high = policy_bounds(settings)
    assert (low <= joined(policy)).all() and (joined(policy) <= high).all()


def test_tokens_after_the_draft_do_not_count() -> None:
    settings = settings_of(learning="certified", rounds=3, router_rounds=2)
    model = load_slm(settings.slm)
    features = router_features(settings, model)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, model.config.vocab_size, generator=generator)
    hidden = torch.randn(1, model.config.hidden_size, generator=generator)
    seen = np.array([[1, 8, 9, 8, 9, 8]])
    later = seen.copy()
    later[0, 4:] = 77
    step = (logits, hidden, logits.argmax(1), np.array([4]))
    trace = np.full((1, 6, 3), 0.5, np.float32)
    later_trace = trace.copy()
    later_trace[0, 4:] = 9.0
    expected = features(*step, seen, trace)
    np.testing.assert_array_equal(expected, features(*step, later, later_trace))
    earlier, earlier_trace = seen.copy(), trace.copy()
    earlier[0, 2], earlier_trace[0, 2] = 77, 9.0
    assert not np.array_equal(expected, features(*step, earlier, trace))
    assert not np.array_equal(expected, features(*step, seen, earlier_trace))


def test_training_and_calibration_share_no_text() -> None:
    settings = settings_of(learning="certified", rounds=9, router_rounds=4)
    rows = np.arange(100, 117)
    training, turn = texts_of_round(settings, rows, 0, 4)
    again, _ = texts_of_round(settings, rows, 0, 1)
    calibrating, first = texts_of_round(settings, rows, 0, 5)
    assert turn == 4 and first == 1
    np.testing.assert_array_equal(training, again)
    assert sorted([*training, *calibrating]) == rows.tolist()
    assert len(set(training) & set(calibrating)) == 0
    # Nothing is calibrated under a gradient rule: all texts serve in all rounds.
    plain = settings_of(learning="balanced", rounds=9, router_rounds=4)
    assert len(texts_of_round(plain, rows, 0, 5)[0]) == len(rows)


def test_who_trains_when() -> None:
    certified = settings_of(learning="certified", rounds=9, router_rounds=4)
    balanced = settings_of(learning="balanced", rounds=9, router_rounds=4)
    for settings, after in ((certified, False), (balanced, True)):
        assert trains_router(settings, 4) and escalates_all(settings, 4)
        assert trains_router(settings, 5) is after and not escalates_all(settings, 5)


@pytest.mark.parametrize(
    "changes",
    [
        {"learning": "linear", "rounds": 30},
        {"learning": "certified", "rounds": 3, "router_rounds": 3},
        {"learning": "certified", "rounds": 30, "personalisation": "local"},
        {"learning": "certified", "rounds": 30, "privacy": "local"},
        {"rounds": 30, "router_optimizer": "adam", "strategy": "scaffold"},
    ],
)
def test_what_a_router_cannot_do_is_refused(changes) -> None:
    with pytest.raises(SettingsError, match=r"router|privacy"):
        settings_of(**changes)


@pytest.mark.parametrize(
    "strategy",
    [
        "fedavg",
        pytest.param("fedprox", marks=pytest.mark.slow),
        pytest.param("scaffold", marks=pytest.mark.slow),
        pytest.param("fednova", marks=pytest.mark.slow),
    ],
)
def test_certified_after_training(runner, tmp_path, strategy) -> None:
    federation, folder, _ = runner.run(
        tmp_path,
        policy="router",
        strategy=strategy,
        learning="certified",
        fidelity_budget=0.3,
        workload="score",
        rounds=4,
        router_rounds=2,
        calibration_rounds=1,
        tokens_per_round=40,
    )
    lines = folder.metrics()
    assert [line["resolution"]["local"] > 0 for line in lines] == [False, False, False, True]
    assert lines[1]["loss"] < lines[0]["loss"] == pytest.approx(np.log(2))
    models = [np.array(line["policy"]["router"]) for line in lines]
    assert not np.array_equal(models[0], models[1])
    # Frozen from then on, so that the guarantee is about the model in use.
    np.testing.assert_array_equal(models[1], models[3])
    assert [line["threshold"]["global"] for line in lines[:2]] == [-1, -1]
    assert lines[3]["threshold"]["global"] == federation.strategy.calibration.rule.result(0) > 0


@pytest.mark.parametrize("strategy", ["fedavg", "fedprox"])
def test_adam_takes_its_steps_towards_less_loss(strategy) -> None:
    chosen = settings_of(
        learning="balanced",
        rounds=9,
        router_rounds=4,
        router_optimizer="adam",
        router_steps=25,
        router_penalty=0.0,
        strategy=strategy,
    )
    rows = feedback(features=router_columns(chosen).count)
    start = joined(initial_policy(chosen))
    start[1:] = np.random.default_rng(2).standard_normal(len(start) - 1) / 10
    config = {"round": 2, "local-method": strategy, "proximal-mu": 0.3}
    step = learn_locally(chosen, start, rows, config, {})
    pull = 0.3 if strategy == "fedprox" else 0.0
    learning = RouterLearning(router_model(chosen), "loss", 0.0)
    weights = torch.nn.Parameter(torch.tensor(start[1:]))
    optimizer = torch.optim.Adam([weights], lr=0.01 / 1.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - 0.9 * step / 25)
    for _ in range(25):
        at = weights.detach().numpy()
        weights.grad = torch.tensor(learning.gradient(at, rows) + pull * (at - start[1:]))
        optimizer.step()
        schedule.step()
    np.testing.assert_allclose(step.result.policy[1:], weights.detach().numpy(), atol=1e-9)
    assert step.result.policy[0] == start[0] and step.loss_after < step.loss_before
    # Once the threshold learns too, both take plain steps: Adam would lose their proportion.
    later = learn_locally(chosen, start, rows, {**config, "round": 5}, {})
    assert later.result.policy[0] != start[0]


def test_clusters_have_routers_of_their_own(runner, tmp_path) -> None:
    federation, _, _ = runner.run(
        tmp_path,
        policy="router",
        learning="certified-high-probability",
        fidelity_budget=0.4,
        confidence=0.3,
        personalisation="cluster",
        rounds=4,
        router_rounds=2,
    )
    one, other = federation.strategy.cluster_policies
    assert not np.array_equal(one[1:], other[1:])
    chains = federation.strategy.calibration.rule.chains
    assert [one[0], other[0]] == [chains[0].certified, chains[1].certified]


def test_balanced_moves_the_threshold_once_the_router_has_learned(runner, tmp_path) -> None:
    _, folder, _ = runner.run(
        tmp_path,
        policy="router",
        learning="balanced",
        rounds=4,
        router_rounds=2,
        initial_threshold=0.45,
    )
    lines = folder.metrics()
    assert [line["resolution"]["local"] > 0 for line in lines[:2]] == [False, False]
    assert [line["threshold"]["global"] for line in lines[:2]] == [0.45, 0.45]
    assert lines[3]["threshold"]["global"] < 0.45
    assert lines[3]["policy"]["router"] != lines[1]["policy"]["router"]


def test_a_resumed_run_ends_like_an_uninterrupted_one(runner, tmp_path) -> None:
    changes = {
        "policy": "router",
        "strategy": "scaffold",
        "learning": "certified",
        "fidelity_budget": 0.3,
        "workload": "score",
        "rounds": 4,
        "router_rounds": 3,
    }
    whole, _, _ = runner.run(tmp_path / "whole", **changes)
    with pytest.raises(KeyboardInterrupt):
        runner.run(tmp_path / "cut", stop_after=2, **changes)
    cut = next((tmp_path / "cut").iterdir())
    resumed, _, _ = runner.run(tmp_path, resume=str(cut), **changes)
    # The server knows a client's control variate as a sum of changes: the last bit may differ.
    np.testing.assert_allclose(whole.strategy.policy, resumed.strategy.policy, rtol=0, atol=1e-12)
    assert whole.strategy.policy[0] == resumed.strategy.policy[0]
