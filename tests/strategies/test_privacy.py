from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from flwr.app import Message
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideFixedClipping,
)

from hlm.privacy import gaussian_epsilon
from strategies import AssignedClusters, CentralPrivacy, Hierarchical, build_strategy
from tests.strategies.fake_grid import FakeGrid, answer, initial, received, sends

NODES = {10 + client: client for client in range(6)}
CLUSTERS = AssignedClusters(NODES, [0, 0, 0, 0, 1, 1])


def _grid(values: list[float], weight: float = 1) -> FakeGrid:
    return FakeGrid(
        {
            node: sends([values[client]], client=client, weight=weight * (client + 1))
            for node, client in NODES.items()
        }
    )


def test_without_noise_the_clipped_uniform_mean_is_left() -> None:
    privacy = CentralPrivacy(clip=0.1, noise_multiplier=1e-12)
    strategy = Hierarchical(CLUSTERS, privacy=privacy)
    strategy.start(_grid([0.55, 0.9, 0.1, 0.5, 0.58, 0.0]), initial(0.5), 1)  # type: ignore[arg-type]
    # Changes clipped to .1: .05, .1, -.1, 0 | .08, -.1; weights do not count.
    np.testing.assert_allclose(strategy.cluster_policies[:, 0], [0.5125, 0.49], atol=1e-9)


def test_the_noise_has_the_stated_size_in_every_cluster() -> None:
    values, heard, replies = np.full((3, 1), 0.5), np.array([True, True, False]), [4.0, 2.0, 0.0]
    draws = [
        CentralPrivacy(clip=0.1, noise_multiplier=2.0, seed=seed).add_noise(
            values, heard, np.array(replies), server_round=1
        )[:, 0]
        - 0.5
        for seed in range(400)
    ]
    # 2 * .1 * 2 / m = .1 with m = 4 and .2 with m = 2. Relative standard error of a deviation
    # from 400 draws is 3.5 %; 18 % is over five of them (false alarm below 1e-6).
    np.testing.assert_allclose(np.std(draws, axis=0), [0.1, 0.2, 0.0], rtol=0.18)


def test_one_client_moves_a_cluster_by_no_more_than_the_sensitivity() -> None:
    results = []
    for value in (1e5, -1e5):
        privacy = CentralPrivacy(clip=0.1, noise_multiplier=1.0, seed=3)
        strategy = Hierarchical(CLUSTERS, privacy=privacy)
        strategy.start(_grid([value, 0.5, 0.5, 0.5, 0.5, 0.5], 1000), initial(0.5), 1)  # type: ignore[arg-type]
        results.append(strategy.cluster_policies[:, 0])
    np.testing.assert_allclose(results[0] - results[1], [2 * 0.1 / 4, 0.0], atol=1e-12)


def test_epsilon_is_reported_and_survives_a_resume() -> None:
    privacy = CentralPrivacy(clip=0.1, noise_multiplier=5.0, delta=1e-4)
    strategy = Hierarchical(CLUSTERS, privacy=privacy)
    strategy.start(_grid([0.5] * 6), initial(0.5), 3)  # type: ignore[arg-type]
    assert [record.epsilon for record in strategy.history] == [
        gaussian_epsilon(5.0, releases, 1e-4) for releases in (1, 2, 3)
    ]
    again = Hierarchical(CLUSTERS, privacy=privacy)
    again.load_state_dict(strategy.state_dict())
    again.start(_grid([0.5] * 6), initial(0.5), 4)  # type: ignore[arg-type]
    assert again.epsilon == gaussian_epsilon(5.0, 4, 1e-4)
    assert Hierarchical().epsilon is None


@pytest.mark.parametrize(
    ("name", "rule"),
    [("scaffold", "weighted-mean"), ("fednova", "weighted-mean"), ("fedavg", "median")],
)
def test_what_has_no_known_sensitivity_is_refused(name: str, rule: str) -> None:
    with pytest.raises(ValueError, match="allowed with privacy"):
        build_strategy(name, rule, privacy=CentralPrivacy(0.1, 1.0))


def test_a_clients_own_start_cannot_widen_its_influence() -> None:
    """Clipping is around what the server sent, whatever a client says it began from."""

    def liar(message: Message) -> Message:
        extra = {"start": np.array([0.99])} if message.metadata.message_type == "train" else {}
        return answer(message, [1.0], client=0, arrays=extra)

    privacy = CentralPrivacy(clip=0.1, noise_multiplier=1e-12)
    strategy = Hierarchical(privacy=privacy, personalisation="local")
    strategy.start(FakeGrid({10: liar}), initial(0.5), 1)  # type: ignore[arg-type]
    np.testing.assert_allclose(strategy.policy, [0.6])


@pytest.mark.parametrize("options", [{"clip": 0.0}, {"noise_multiplier": 0.0}, {"delta": 0.0}])
def test_bad_options_are_named(options: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {"clip": 1.0, "noise_multiplier": 1.0} | options
    with pytest.raises(ValueError, match=next(iter(options))):
        CentralPrivacy(**arguments)


def test_flowers_server_side_clipping_wraps_it() -> None:
    """Flower clips each reply, we average, Flower adds noise, and that is what goes down next."""
    inner = Hierarchical(CLUSTERS, bounds=(0.0, 1.0))
    wrapped = DifferentialPrivacyServerSideFixedClipping(
        inner, noise_multiplier=1e-9, clipping_norm=0.1, num_sampled_clients=6
    )
    grid = _grid([0.55, 0.9, 0.1, 0.51, 0.58, 0.3])
    result = wrapped.start(grid, initial(0.5), num_rounds=1)  # type: ignore[arg-type]
    # eq. 7 on the clipped values .55 .6 .4 .51 (weights 1..4) and .58 .4 (5, 6); then eq. 8.
    edge = [(0.55 + 1.2 + 1.2 + 2.04) / 10, (2.9 + 2.4) / 11]
    np.testing.assert_allclose(result.arrays["policy"].numpy(), [np.mean(edge)], atol=1e-8)

    noisy = DifferentialPrivacyServerSideFixedClipping(
        Hierarchical(CLUSTERS, bounds=(0.0, 1.0)), 1.0, 0.1, 6
    )
    grid = _grid([0.5 + 1e-3] * 6)
    result = noisy.start(grid, initial(0.5), num_rounds=2)  # type: ignore[arg-type]
    second = [m for m in grid.sent if m.metadata.message_type == "train"][6:]
    starts = {float(received(message)[0]) for message in second}
    assert len(starts) == 1
    assert starts != {0.501}


def test_flowers_client_side_clipping_wraps_it() -> None:
    seen: list[float] = []

    def client(index: int) -> Any:
        def reply(message: Message) -> Message:
            config = message.content.config_records["config"]
            if message.metadata.message_type == "train":
                seen.append(float(next(v for k, v in config.items() if "clipping" in k)))  # type: ignore[arg-type]
            return answer(message, [0.6], client=index)

        return reply

    wrapped = DifferentialPrivacyClientSideFixedClipping(Hierarchical(CLUSTERS), 1e-9, 0.25, 6)
    grid = FakeGrid({node: client(index) for node, index in NODES.items()})
    result = wrapped.start(grid, initial(0.5), num_rounds=1)  # type: ignore[arg-type]
    np.testing.assert_allclose(result.arrays["policy"].numpy(), [0.6], atol=1e-6)
    assert seen == [0.25] * 6
