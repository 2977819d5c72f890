"""The privacy benchmark on made-up curves: it must show what noise costs, and no broken promise."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import privacy
from benchmarks._risk_curves import prompt_curves


@pytest.fixture(scope="module")
def found():
    rng = np.random.default_rng(0)
    u = rng.random(2000 * 5)
    wrong = (rng.random(len(u)) < u**2 / 2).astype(float)
    risk, kept = prompt_curves(u, wrong, np.repeat(np.arange(2000), 5), privacy.GRID)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(privacy, "CLIENTS", (20, 2000))
        patch.setattr(privacy, "ALPHAS", (0.1,))
        return privacy.figures_of(risk, kept, runs=20, seed=0)


def test_less_privacy_and_more_clients_keep_more(found):
    for rule in ("certified", "certified-high-probability"):
        kept = [
            found[f"2000 clients, alpha 0.1, {case}"][rule]["trr"]
            for case in ("local, epsilon 1", "central, epsilon 1", "central, epsilon 8", "none")
        ]
        assert kept == sorted(kept) and kept[0] < kept[1]
        few = found["20 clients, alpha 0.1, central, epsilon 1"][rule]
        assert few["trr"] < kept[1] and few["threshold"] == -1


def test_risk_stays_within_the_budget(found):
    for rules in found.values():
        assert rules["certified"]["risk"] <= 0.1
        # At 20 runs 6 violations have a probability below 1e-3 where .05 are allowed.
        assert rules["certified-high-probability"]["violations"] <= 0.25
