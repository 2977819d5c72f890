from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hlm.local_steps import local_steps, starting_point


def _gradient(y: np.ndarray) -> np.ndarray:
    return np.array([2.0, 0.5]) * (y - np.array([1.0, -1.0]))


def test_two_fedavg_steps_by_hand() -> None:
    # y1 = 0 - .1 * 2 * (0 - 1) = .2; y2 = .2 - .1 * 2 * (.2 - 1) = .36.
    result = local_steps(np.zeros(1), lambda y: 2 * (y - 1), 2, 0.1)
    np.testing.assert_allclose(result.policy, [0.36])
    assert (result.steps, result.arrays) == (2, {})


def test_fedprox_equals_sgd_on_the_proximal_loss(rng: np.random.Generator) -> None:
    start, mu = rng.normal(size=2), 0.7
    prox = local_steps(start, _gradient, 9, 0.05, method="fedprox", mu=mu)
    plain = local_steps(start, lambda y: _gradient(y) + mu * (y - start), 9, 0.05)
    np.testing.assert_allclose(prox.policy, plain.policy, rtol=1e-14)


def test_fedprox_stays_nearer_to_its_start_the_larger_mu() -> None:
    moved = [
        np.linalg.norm(
            local_steps(np.zeros(2), _gradient, 500, 0.05, method="fedprox", mu=mu).policy
        )
        for mu in (0.0, 0.5, 2.0, 10.0)
    ]
    assert moved == sorted(moved, reverse=True)
    # The proximal point of a quadratic: a b / (a + mu).
    limit = local_steps(np.zeros(2), _gradient, 500, 0.05, method="fedprox", mu=2.0)
    np.testing.assert_allclose(limit.policy, [2 / 4, -0.5 / 2.5], rtol=1e-9)


def test_scaffolds_new_control_is_the_mean_gradient_it_saw(rng: np.random.Generator) -> None:
    server, own = rng.normal(size=2), rng.normal(size=2)
    seen: list[np.ndarray] = []

    def gradient(y: np.ndarray) -> np.ndarray:
        seen.append(_gradient(y))
        return seen[-1]

    result = local_steps(
        rng.normal(size=2),
        gradient,
        5,
        0.1,
        method="scaffold",
        arrays={"control": server, "client_control": own, "policy": own},
    )
    # Option II: c_i - c + (x - y)/(K lr) = c_i - c + mean(g - c_i + c) = mean(g).
    assert list(result.arrays) == ["control_delta"]
    np.testing.assert_allclose(result.arrays["control_delta"], np.mean(seen, axis=0) - own)


def test_every_step_is_projected() -> None:
    seen: list[float] = []

    def gradient(y: np.ndarray) -> np.ndarray:
        seen.append(float(y[0]))
        return np.array([-5.0])

    result = local_steps(np.array([0.9]), gradient, 3, 0.1, clip=(0.0, 1.0))
    assert result.policy == 1.0
    assert seen == [0.9, 1.0, 1.0]


def test_every_entry_may_have_bounds_of_its_own() -> None:
    bounds = (np.array([0.0, -np.inf]), np.array([1.0, np.inf]))
    result = local_steps(np.zeros(2), lambda y: np.full(2, -50.0), 1, 0.1, clip=bounds)
    np.testing.assert_allclose(result.policy, [1.0, 5.0])


def test_the_start_is_not_modified() -> None:
    start = np.array([0.5])

    def gradient(y: np.ndarray) -> np.ndarray:
        y += 1.0  # a careless caller
        return np.ones(1)

    np.testing.assert_allclose(local_steps(start, gradient, 2, 0.1).policy, [0.3])
    assert start == 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"method": "sgd"}, "method"),
        ({"mu": -1.0}, "mu"),
        ({"clip": (1.0, 0.0)}, "clip"),
        ({"method": "scaffold", "arrays": {"control": np.zeros(3)}}, "control"),
        (
            {"method": "scaffold", "arrays": {"client_control": np.full(1, np.nan)}},
            "client_control",
        ),
        ({"gradient_fn": lambda y: np.array([np.inf])}, "gradient"),
        ({"gradient_fn": lambda y: np.zeros(2)}, "gradient"),
    ],
)
def test_bad_input_is_named(options: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "policy": np.zeros(1),
        "gradient_fn": lambda y: y,
        "steps": 1,
        "learning_rate": 0.1,
    }
    with pytest.raises(ValueError, match=message):
        local_steps(**(arguments | options))


def test_starting_points() -> None:
    policy, cluster, own = np.array([0.1]), np.array([0.2]), np.array([0.8])
    for kind in ("global", "cluster"):
        assert starting_point(kind, policy, cluster, own, 5, 5) == 0.1  # type: ignore[arg-type]
    for kind in ("local", "shrunk"):
        assert starting_point(kind, policy, cluster) == 0.2  # type: ignore[arg-type]
        assert starting_point(kind, policy) == 0.1  # type: ignore[arg-type]
    assert starting_point("local", policy, cluster, own, 5, 5) == 0.8
    # (30 * .8 + 10 * .2) / 40 = .65
    np.testing.assert_allclose(starting_point("shrunk", policy, cluster, own, 30, 10), [0.65])
    assert starting_point("shrunk", policy, cluster, own, 0, 10) == 0.2
    assert starting_point("shrunk", policy, cluster, own, 0, 0) == 0.8


def test_bad_starting_points_are_named() -> None:
    with pytest.raises(ValueError, match="personalisation"):
        starting_point("own", np.zeros(1))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="own_weight"):
        starting_point("shrunk", np.zeros(1), own_weight=-1)
    with pytest.raises(ValueError, match="own:"):
        starting_point("local", np.zeros(1), own=np.zeros(2))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)
