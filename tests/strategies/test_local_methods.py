"""FedProx, SCAFFOLD and FedNova on a heterogeneous quadratic, against plain NumPy, step by step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, Message

from hlm.local_steps import LOCAL_METHODS, local_steps
from strategies import (
    AssignedClusters,
    Hierarchical,
    build_strategy,
    state_from_bytes,
    state_to_bytes,
)
from strategies.factory import METHODS, build_method
from tests.strategies.fake_grid import FakeGrid, answer, initial, received, settings

RATE = 0.05
CURVATURE = np.array([[4.0, 1.0], [0.5, 3.0], [1.0, 0.2], [2.0, 2.0], [0.3, 5.0], [3.0, 0.7]])
CENTRE = np.array([[1.0, 0.0], [-2.0, 1.0], [3.0, 2.0], [0.0, -1.0], [5.0, 0.5], [-1.0, 4.0]])
STEPS = [10, 10, 10, 10, 10, 10]
UNEQUAL = [2, 30, 5, 12, 1, 20]
NODES = {700 + index: index for index in range(6)}
FLAT = [0] * 6
TWO = [0, 0, 0, 0, 1, 1]
PATH: list[np.ndarray] = []
"""The policy after every round of the last `_train`."""


@dataclass
class Device:
    """A client that really trains."""

    index: int
    steps: int
    weight: float = 1.0

    def __call__(self, message: Message) -> Message:
        if message.metadata.message_type != "train":
            return answer(message, [], client=self.index)
        config = settings(message)
        method = str(config["local-method"])
        arrays = message.content.array_records["arrays"]
        result = local_steps(
            received(message),
            lambda y: CURVATURE[self.index] * (y - CENTRE[self.index]),
            self.steps,
            RATE,
            method,
            mu=float(config.get("proximal-mu", 0.0)),  # type: ignore[arg-type]
            arrays={name: received(message, name) for name in arrays if name != "policy"},
        )
        return answer(
            message,
            result.policy,
            client=self.index,
            weight=self.weight,
            arrays=result.arrays,
            local_steps=result.steps,
        )


def _grid(steps: list[int], weights: list[float] | None = None) -> FakeGrid:
    weights = weights or [1.0] * 6
    return FakeGrid(
        {node: Device(index, steps[index], weights[index]) for node, index in NODES.items()}
    )


def _train(
    name: str, rounds: int, clusters: list[int], grid: FakeGrid, **options: Any
) -> Hierarchical:
    table = AssignedClusters(NODES, clusters)
    PATH.clear()
    strategy = build_strategy(
        name,
        cluster_map=table,
        fraction_evaluate=0,
        on_round=lambda _: PATH.append(strategy.policy.copy()),
        **options,
    )
    strategy.start(grid, initial(0.0, 0.0), num_rounds=rounds)  # type: ignore[arg-type]
    return strategy


def _optimum(clusters: list[int]) -> np.ndarray:
    """Minimum of the mean over clusters of the mean inside each."""
    share = np.array([1 / clusters.count(c) / len(set(clusters)) for c in clusters])[:, None]
    return (share * CURVATURE * CENTRE).sum(0) / (share * CURVATURE).sum(0)


# --- plain references, written without the code under test ------------------------------------


def _descend(
    x: np.ndarray, i: int, steps: int, mu: float = 0.0, shift: np.ndarray | float = 0.0
) -> np.ndarray:
    y = x
    for _ in range(steps):
        y = y - RATE * (CURVATURE[i] * (y - CENTRE[i]) + mu * (y - x) + shift)
    return y


def _mean_of_means(rows: list[np.ndarray], weights: list[float], groups: list[int]) -> np.ndarray:
    """Eq. 7, then eq. 8."""
    means = []
    for group in sorted(set(groups)):
        mine = [i for i in range(len(rows)) if groups[i] == group]
        total = sum(weights[i] for i in mine)
        means.append(sum(weights[i] * rows[i] for i in mine) / total)
    return sum(means) / len(means)  # type: ignore[no-any-return]


def _reference_fedprox(
    rounds: int, groups: list[int], mu: float, steps: list[int], weights: list[float]
) -> list[np.ndarray]:
    x, path = np.zeros(2), []
    for _ in range(rounds):
        x = _mean_of_means([_descend(x, i, steps[i], mu) for i in range(6)], weights, groups)
        path.append(x)
    return path


def _reference_scaffold(rounds: int, groups: list[int], server_rate: float) -> list[np.ndarray]:
    x, c, own, path = np.zeros(2), np.zeros(2), [np.zeros(2)] * 6, []
    for _ in range(rounds):
        ends = [_descend(x, i, STEPS[i], shift=c - own[i]) for i in range(6)]
        new = [own[i] - c + (x - ends[i]) / (STEPS[i] * RATE) for i in range(6)]
        c = c + _mean_of_means([new[i] - own[i] for i in range(6)], [1.0] * 6, groups)
        x = x + server_rate * _mean_of_means([end - x for end in ends], [1.0] * 6, groups)
        own = new
        path.append(x)
    return path


def _reference_fednova(
    rounds: int, groups: list[int], steps: list[int], weights: list[float]
) -> list[np.ndarray]:
    x, path = np.zeros(2), []
    for _ in range(rounds):
        ends = [_descend(x, i, steps[i]) for i in range(6)]
        direction = _mean_of_means([(ends[i] - x) / steps[i] for i in range(6)], weights, groups)
        effective = _mean_of_means([np.array(float(s)) for s in steps], weights, groups)
        x = x + effective * direction
        path.append(x)
    return path


WEIGHTS = [3.0, 1.0, 2.0, 5.0, 4.0, 1.5]


@pytest.mark.parametrize("clusters", [FLAT, TWO])
@pytest.mark.parametrize("mu", [0.0, 0.8])
def test_fedprox_equals_the_reference_step_by_step(clusters: list[int], mu: float) -> None:
    _train("fedprox", 8, clusters, _grid(UNEQUAL, WEIGHTS), proximal_mu=mu)
    expected = _reference_fedprox(8, clusters, mu, UNEQUAL, WEIGHTS)
    for policy, reference in zip(PATH, expected, strict=True):
        np.testing.assert_allclose(policy, reference, rtol=1e-12)


@pytest.mark.parametrize("clusters", [FLAT, TWO])
@pytest.mark.parametrize("server_rate", [1.0, 0.6])
def test_scaffold_equals_the_reference_step_by_step(
    clusters: list[int], server_rate: float
) -> None:
    _train("scaffold", 8, clusters, _grid(STEPS), server_learning_rate=server_rate)
    expected = _reference_scaffold(8, clusters, server_rate)
    for policy, reference in zip(PATH, expected, strict=True):
        np.testing.assert_allclose(policy, reference, rtol=1e-11)


@pytest.mark.parametrize("clusters", [FLAT, TWO])
def test_fednova_equals_the_reference_step_by_step(clusters: list[int]) -> None:
    _train("fednova", 8, clusters, _grid(UNEQUAL, WEIGHTS))
    expected = _reference_fednova(8, clusters, UNEQUAL, WEIGHTS)
    for policy, reference in zip(PATH, expected, strict=True):
        np.testing.assert_allclose(policy, reference, rtol=1e-12)


@pytest.mark.parametrize("clusters", [FLAT, TWO])
def test_scaffold_reaches_the_optimum_where_fedavg_does_not(clusters: list[int]) -> None:
    best = _optimum(clusters)
    drifted = np.abs(_train("fedavg", 20, clusters, _grid(STEPS)).policy - best).max()
    exact = np.abs(_train("scaffold", 40, clusters, _grid(STEPS)).policy - best).max()
    assert exact < 1e-9
    assert drifted > 0.05


def test_scaffold_with_partial_participation_reaches_it_too() -> None:
    strategy = _train("scaffold", 110, FLAT, _grid(STEPS), fraction_train=0.5, seed=2)
    assert np.abs(strategy.policy - _optimum(FLAT)).max() < 1e-9
    # c = (1/N) sum of all c_i, whoever took part.
    controls = [strategy.method.client_arrays(i)["client_control"] for i in range(6)]  # type: ignore[attr-defined]
    np.testing.assert_allclose(
        strategy.method.control,
        np.mean(controls, axis=0),
        atol=1e-9,  # type: ignore[attr-defined]
    )


@pytest.mark.parametrize("clusters", [FLAT, TWO])
def test_fednova_removes_the_bias_of_unequal_steps(
    clusters: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Equal curvature and a small rate, so that unequal steps are the only thing to go wrong.
    monkeypatch.setitem(globals(), "CURVATURE", np.ones((6, 2)))
    monkeypatch.setitem(globals(), "RATE", 4e-3)
    best = _optimum(clusters)
    biased = np.abs(_train("fedavg", 60, clusters, _grid(UNEQUAL)).policy - best).max()
    fair = np.abs(_train("fednova", 60, clusters, _grid(UNEQUAL)).policy - best).max()
    assert biased > 1.5
    assert fair < 0.07 * biased


def test_fedprox_drifts_less_than_fedavg() -> None:
    best = _optimum(FLAT)
    errors = [
        np.abs(_train("fedprox", 30, FLAT, _grid(STEPS), proximal_mu=mu).policy - best).max()
        for mu in (0.0, 1.0, 5.0)
    ]
    assert errors[2] < errors[1] < errors[0]


def test_a_resumed_scaffold_equals_an_uninterrupted_one() -> None:
    options = {"fraction_train": 0.5, "seed": 4}
    whole = _train("scaffold", 12, TWO, _grid(STEPS), **options)
    first = _train("scaffold", 6, TWO, _grid(STEPS), **options)
    table = AssignedClusters(NODES, TWO)
    second = build_strategy("scaffold", cluster_map=table, fraction_evaluate=0, **options)
    second.load_state_dict(state_from_bytes(state_to_bytes(first.state_dict())))
    # New devices: all that they knew has to come back from the server.
    second.start(_grid(STEPS), initial(0.0, 0.0), num_rounds=12)  # type: ignore[arg-type]
    # The server adds differences up, so c_i differs from the client's own in the last bits.
    np.testing.assert_allclose(second.policy, whole.policy, rtol=1e-13)


def _scaffold_after(trouble: Callable[[Message, Message], Message | None], rounds: int) -> float:
    """Distance to the optimum after 200 rounds of `trouble` with replies and 60 without."""
    grid = _grid(STEPS)
    table = AssignedClusters(NODES, FLAT)
    strategy = build_strategy("scaffold", cluster_map=table, fraction_evaluate=0)
    honest = dict(grid.clients)

    def troubled(node: int) -> Callable[[Message], Message | None]:
        return lambda message: trouble(message, honest[node](message))  # type: ignore[arg-type]

    grid.clients = {node: troubled(node) for node in honest}
    strategy.start(grid, initial(0.0, 0.0), num_rounds=200)  # type: ignore[arg-type]
    grid.clients = honest
    strategy.start(grid, initial(0.0, 0.0), num_rounds=200 + rounds)  # type: ignore[arg-type]
    return float(np.abs(strategy.policy - _optimum(FLAT)).max())


def test_scaffold_forgets_replies_that_were_lost() -> None:
    rng = np.random.default_rng(7)
    lost = _scaffold_after(lambda _, reply: None if rng.random() < 0.2 else reply, 60)
    assert lost < 1e-9


def test_scaffold_forgets_replies_that_were_refused() -> None:
    rng = np.random.default_rng(8)

    def broken(message: Message, reply: Message) -> Message:
        if rng.random() < 0.2:
            reply.content.array_records["arrays"]["policy"] = Array(np.array([np.nan, 0.0]))
        return reply

    assert _scaffold_after(broken, 60) < 1e-9


def test_a_resumed_scaffold_forgets_what_its_clients_did_meanwhile() -> None:
    """The server dies before it has the replies of round 7; the clients live on."""
    grid, table = _grid(STEPS), AssignedClusters(NODES, TWO)
    first = _train("scaffold", 6, TWO, grid)
    state = state_to_bytes(first.state_dict())
    first.start(grid, initial(0.0, 0.0), num_rounds=7)  # type: ignore[arg-type]
    second = build_strategy("scaffold", cluster_map=table, fraction_evaluate=0)
    second.load_state_dict(state_from_bytes(state))
    second.start(grid, initial(0.0, 0.0), num_rounds=12)  # type: ignore[arg-type]
    whole = _train("scaffold", 12, TWO, _grid(STEPS))
    np.testing.assert_allclose(second.policy, whole.policy, rtol=1e-13)


def test_own_policies_are_those_last_accepted() -> None:
    """A reply that was lost leaves no trace in where the client starts from."""
    lost, sent = {2, 3}, []

    def client(message: Message) -> Message | None:
        config, arrays = settings(message), message.content.array_records["arrays"]
        sent.append(
            (config["accepted-round"], received(message, "own")[0] if "own" in arrays else 0)
        )
        step = float(config["round"])  # type: ignore[arg-type]
        return None if config["round"] in lost else answer(message, [step], client=0)

    strategy = build_strategy("fedavg", personalisation="local", fraction_evaluate=0)
    others = {2: lambda message: answer(message, [0.5], client=1)}
    grid = FakeGrid({1: client, **others})
    strategy.start(grid, initial(0.0), num_rounds=5)  # type: ignore[arg-type]
    assert [(a, float(own)) for a, own in sent] == [(0, 0), (1, 1), (1, 1), (1, 1), (4, 4)]


def test_scaffold_personalised_by_cluster_reaches_each_clusters_optimum() -> None:
    strategy = _train("scaffold", 45, TWO, _grid(STEPS), personalisation="cluster")
    for cluster in (0, 1):
        mine = [i for i in range(6) if TWO[i] == cluster]
        best = (CURVATURE[mine] * CENTRE[mine]).sum(0) / CURVATURE[mine].sum(0)
        np.testing.assert_allclose(strategy.cluster_policies[cluster], best, atol=1e-9)


@pytest.mark.parametrize("name", ["scaffold", "fednova"])
def test_own_starts_travel_with_the_reply(name: str) -> None:
    """With local policies the server cannot know the start, so it must be sent."""
    options: dict[str, Any] = {"personalisation": "local"}
    if name == "scaffold":
        options["server_learning_rate"] = 0.5
    starts = {index: np.full(2, float(index)) for index in range(6)}

    def device(index: int) -> Any:
        def reply(message: Message) -> Message:
            extra = {"start": starts[index]}
            if name == "scaffold":
                extra["control_delta"] = np.zeros(2)
            return answer(message, starts[index] + 1, client=index, arrays=extra, local_steps=4)

        return reply

    grid = FakeGrid({node: device(index) for node, index in NODES.items()})
    strategy = _train(name, 1, FLAT, grid, **options)
    step = 0.5 if name == "scaffold" else 1.0
    np.testing.assert_allclose(strategy.policy, np.full(2, 2.5 + step))


def test_a_lying_step_count_is_refused() -> None:
    def liar(message: Message) -> Message:
        return answer(message, [1.0, 1.0], client=0, local_steps=10**9)

    grid = FakeGrid({**_grid(STEPS).clients, 700: liar})
    strategy = _train("fednova", 1, FLAT, grid)
    assert strategy.history[0].refused_by_reason == {"bad-metric": 1}


def test_a_lying_control_is_refused() -> None:
    def liar(message: Message) -> Message:
        return answer(message, [1.0, 1.0], client=0, arrays={"control_delta": np.full(2, 1e30)})

    grid = FakeGrid({**_grid(STEPS).clients, 700: liar})
    strategy = _train("scaffold", 1, FLAT, grid)
    assert strategy.history[0].refused_by_reason == {"out-of-bounds": 1}


def test_every_method_runs_with_every_pair_of_rules() -> None:
    for name in ("fedavg", "fedprox", "scaffold", "fednova"):
        for edge, cloud in [
            ("fedmedian", "fedadam"),
            ("fedyogi", "krum"),
            ("multikrum", "weighted-mean"),
        ]:
            strategy = _train(name, 3, TWO, _grid(UNEQUAL), edge_rule=edge, cloud_rule=cloud)
            assert np.isfinite(strategy.policy).all()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("fedprox", {"proximal_mu": -1.0}),
        ("scaffold", {"server_learning_rate": 0.0}),
        ("scaffold", {"weighting": "tokens"}),
        ("scaffold", {"max_control": 0.0}),
        ("fednova", {"max_local_steps": 0}),
    ],
)
def test_bad_options_are_named(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        build_strategy(name, **options)


def test_both_halves_of_each_method_stand_in_their_registries() -> None:
    assert list(METHODS) == list(LOCAL_METHODS)
    for name, kind in LOCAL_METHODS.items():
        half = build_method(name)
        assert half.adds_up == kind.plain
        assert set(half.reply_extras) == set(
            local_steps(np.ones(2), lambda y: y, 1, 1, name).arrays
        )
