import pytest
import torch

from hlm.truncation.count_rules import OnlineCount
from hlm.truncation.k_star import k_star_online
from tests.hlm.truncated_probs import random_probs


def test_online_rule_takes_beta_from_the_line():
    probs = torch.from_numpy(random_probs(1, 40, 2.0))[None]
    rule = OnlineCount(0.05, slope=0.5, intercept=0.1)
    chance = torch.tensor([0.2]).double()
    assert rule.expected_rejection(chance).item() == pytest.approx(0.5)
    expected = k_star_online(probs, chance, torch.tensor([0.5]), 0.05)
    assert torch.equal(rule.choose(probs, chance), expected)
