import numpy as np
import pytest

from benchmarks._noise import noise_for_epsilon
from benchmarks._risk_curves import personal_thresholds, risk_at
from hlm.privacy import gaussian_epsilon
from hlm.risk import ESCALATE_ALL, conformal_threshold

GRID = np.linspace(0, 1, 21)
CLUSTERS = np.repeat([0, 1], 4)


def two_groups() -> tuple[np.ndarray, np.ndarray]:
    """Eight clients in two clusters; the second cluster is three times as risky."""
    slope = np.array([0.1, 0.12, 0.08, 0.1, 0.3, 0.32, 0.28, 0.3])
    prompts = np.array([400.0, 50, 400, 400, 400, 400, 50, 400])
    return slope[:, None] * GRID[None] * prompts[:, None], prompts


def test_tiers_of_personal_thresholds() -> None:
    sums, prompts = two_groups()
    thresholds = {
        tier: personal_thresholds(sums, prompts, GRID, 0.12, tier, CLUSTERS)
        for tier in ("global", "cluster", "local")
    }
    pooled = conformal_threshold(sums.sum(0), prompts.sum(), GRID, 0.12)
    assert (thresholds["global"] == pooled).all()
    for cluster in (0, 1):
        mine = cluster == CLUSTERS
        own = conformal_threshold(sums[mine].sum(0), prompts[mine].sum(), GRID, 0.12)
        assert (thresholds["cluster"][mine] == own).all()
    for client in range(8):
        own = conformal_threshold(sums[client], prompts[client], GRID, 0.12)
        assert thresholds["local"][client] == own


def test_shrinking_runs_from_local_to_cluster() -> None:
    sums, prompts = two_groups()
    local = personal_thresholds(sums, prompts, GRID, 0.12, "local", CLUSTERS)
    near = personal_thresholds(sums, prompts, GRID, 0.12, "shrunk", CLUSTERS, 0.0)
    np.testing.assert_array_equal(near, local)
    far = personal_thresholds(sums, prompts, GRID, 0.12, "shrunk", CLUSTERS, 1e9)
    assert len(np.unique(far[:4])) == 1 and len(np.unique(far[4:])) == 1


def test_risk_of_escalating_everything_is_zero() -> None:
    curves = np.array([[0.3, 0.6], [0.3, 0.6], [0.3, 0.6]])
    values = risk_at(curves, np.array([0.2, 0.8]), np.array([ESCALATE_ALL, 0.2, 0.9]))
    np.testing.assert_array_equal(values, [0.0, 0.3, 0.6])


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 20.0])
@pytest.mark.parametrize("releases", [1, 100])
def test_noise_for_epsilon_inverts(epsilon: float, releases: int) -> None:
    multiplier = noise_for_epsilon(epsilon, releases, 1e-5)
    assert gaussian_epsilon(multiplier, releases, 1e-5) == pytest.approx(epsilon, rel=1e-9)
