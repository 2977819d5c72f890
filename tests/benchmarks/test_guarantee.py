"""The guarantee on real text: AG News, the built-in pair, random splits of prompts."""

import numpy as np
import pytest
from scipy import stats

from benchmarks import guarantee
from benchmarks._teacher_forced import dirichlet_clients, shared_folder
from fedhlm_app.models.load import load_pair


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(
    shared_folder() is None,
    reason="AG News not found: set FEDHLM_SHARED to a folder with data/ag_news",
)
def test_guarantee_holds_on_ag_news() -> None:
    splits = 400
    figures = guarantee.run(load_pair(), articles=500, splits=splits, clients=50)
    # Mean risk: four standard errors of the mean over splits. Violations: the .9999 quantile of
    # Bin(400, delta). Splits share one pool, so both are approximate; the seed is fixed.
    allowed = stats.binom.ppf(0.9999, splits, guarantee.DELTA) / splits
    for workload in ("score", "classify"):
        entry = figures[f"{workload}, indicator"]
        for kind in ("splits", "audits only, rate .25"):
            for alpha in guarantee.ALPHAS:
                certified = entry[kind][f"alpha {alpha}"]["certified"]
                assert certified["mean_risk"] <= alpha + 4 * certified["standard_error"]
        for alpha in guarantee.ALPHAS:
            careful = entry["splits"][f"alpha {alpha}"]["certified-high-probability"]
            assert careful["violations_pool"] <= allowed
        # At a tenth a useful share of tokens stays on the device: the bound is not bought by
        # escalating everything.
        assert entry["splits"]["alpha 0.1"]["certified"]["trr"] > 0.2


@pytest.mark.parametrize(("alpha", "skewed"), [(0.1, True), (1000.0, False)])
def test_dirichlet_clients_are_skewed_by_alpha(alpha: float, skewed: bool) -> None:
    labels = np.repeat(np.arange(4), 1000)
    owner = dirichlet_clients(labels, 20, alpha, np.random.default_rng(0))
    table = np.zeros((20, 4))
    np.add.at(table, (owner, labels), 1)
    present = table[table.sum(axis=1) > 0]
    largest = (present.max(axis=1) / present.sum(axis=1)).mean()
    assert (largest > 0.7) if skewed else (largest < 0.4)
