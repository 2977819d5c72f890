"""Options of the two-phase strategy; its rounds are run in tests/fedhlm_app/test_router.py."""

import pytest

from strategies.calibration import PooledCalibration
from strategies.trained import TrainedThenCalibrated


def calibration() -> PooledCalibration:
    return PooledCalibration("curve", 3, lambda sums: float(sums[1]), -1.0)


def test_methods_and_rules_belong_to_the_training_rounds() -> None:
    strategy = TrainedThenCalibrated(
        calibration(), training_rounds=3, tier="cluster", edge_rule="fedmedian"
    )
    assert strategy.state.edge_rule == "fedmedian"
    assert strategy.outbox.personalisation == "cluster"
    shared = TrainedThenCalibrated(calibration(), training_rounds=1)
    assert shared.outbox.personalisation == "global"


def test_bad_options_are_refused() -> None:
    with pytest.raises(ValueError, match="training_rounds"):
        TrainedThenCalibrated(calibration(), training_rounds=0)
    with pytest.raises(ValueError, match="tier"):
        TrainedThenCalibrated(calibration(), training_rounds=1, tier="local")  # type: ignore[arg-type]
