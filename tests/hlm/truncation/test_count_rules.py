import numpy as np
import pytest
import torch

from hlm.truncation.count_rules import OfflineBudget, OnlineCount
from hlm.truncation.k_star import k_star_online
from tests.hlm.truncated_probs import deviations, random_probs, scale


def test_online_rule_takes_beta_from_the_line():
    probs = torch.from_numpy(random_probs(1, 40, 2.0))[None]
    rule = OnlineCount(0.05, slope=0.5, intercept=0.1)
    chance = torch.tensor([0.2]).double()
    assert rule.expected_rejection(chance).item() == pytest.approx(0.5)
    expected = k_star_online(probs, chance, torch.tensor([0.5]), 0.05)
    assert torch.equal(rule.choose(probs, chance), expected)


@pytest.mark.parametrize("theta", [0.0, 0.02, 0.2])
@pytest.mark.parametrize("rows", [1, 4])
def test_offline_mean_never_exceeds_the_budget(theta, rows):
    budget = OfflineBudget(theta)
    ratios = []
    for step in range(30):
        probs = torch.from_numpy(
            np.stack([random_probs(100 * step + row, 40, 0.3 + step % 4) for row in range(rows)])
        )
        chance = probs.amax(-1)
        counts = budget.choose(probs, chance)
        rejection = OnlineCount(theta).expected_rejection(chance)
        for row in range(rows):
            ratio = deviations(probs[row].tolist())[int(counts[row]) - 1]
            ratios.append(ratio / scale(chance[row].item(), rejection[row].item()))
        assert sum(ratios) / len(ratios) <= theta + 1e-9
        assert budget.mean == pytest.approx(sum(ratios) / len(ratios), abs=1e-9)
    if theta == 0.2 and rows == 1:
        # what easy tokens leave, hard ones use: more than the online rule would allow them
        assert max(ratios) > theta
