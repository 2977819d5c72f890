"""Sums that clients send once."""

import numpy as np
import pytest

from clients.learning.feedback import Feedback
from clients.learning.sums import CertifiedLearning, LinearLearning
from hlm.line import LineSums
from hlm.risk import RiskSums, conformal_threshold, threshold_grid
from hlm.risk.curves import UNIT


def tokens(rows: int, seed: int, audit_rate: float = 1.0, prompts: int = 10) -> Feedback:
    rng = np.random.default_rng(seed)
    u = rng.random(rows)
    kept = u <= 0.5
    known = ~kept | (rng.random(rows) < audit_rate)
    return Feedback.create(
        u,
        (rng.random(rows) < u).astype(float),
        ratio_beta=np.clip(0.8 * u + 0.1 * rng.random(rows), 0, 1),
        kept=kept,
        known=known,
        weight=np.where(kept, 1 / audit_rate, 1.0),
        prompt=rng.integers(0, prompts, rows),
    )


def test_pooled_line_equals_least_squares_on_all_tokens() -> None:
    learning = LinearLearning()
    clients = [tokens(80, seed) for seed in range(5)]
    pooled = LineSums.from_array(np.sum([learning.sums(client) for client in clients], axis=0))
    everything = Feedback.concatenate(clients)
    slope, intercept = np.polyfit(everything.u, everything.ratio_beta, 1)
    line = pooled.fit()
    assert line.slope == pytest.approx(slope) and line.intercept == pytest.approx(intercept)
    assert line.lower_share == pytest.approx(everything.below.mean())


def test_line_of_the_decoding_loss_and_of_known_tokens_only() -> None:
    feedback = tokens(200, 3, audit_rate=0.4)
    known = feedback.select(feedback.known)
    slope, intercept = np.polyfit(known.u, known.beta, 1, w=np.sqrt(known.weight))
    line = LineSums.from_array(LinearLearning("loss").sums(feedback)).fit()
    assert line.slope == pytest.approx(slope) and line.intercept == pytest.approx(intercept)
    assert LinearLearning().examples(feedback) == len(known)


def test_pooled_curve_equals_brute_force() -> None:
    grid, learning = threshold_grid(33), CertifiedLearning()
    clients = [tokens(120, seed) for seed in range(4)]
    pooled = RiskSums.from_vector(np.sum([learning.sums(c, grid) for c in clients], axis=0))
    expected, count = np.zeros(33), 0
    for client in clients:
        for prompt in np.unique(client.prompt):
            rows = client.prompt == prompt
            count += 1
            for index, threshold in enumerate(grid):
                kept = client.u[rows] <= threshold
                expected[index] += np.mean(kept * client.beta[rows])
    # Each client rounds up.
    assert (pooled.risk >= expected - 1e-9).all()
    np.testing.assert_allclose(pooled.risk, expected, atol=len(clients) * UNIT)
    assert pooled.prompts == count


def test_a_token_without_answer_counts_as_wrong() -> None:
    feedback = Feedback.create(
        [0.2, 0.2, 0.9], [0.0, np.nan, 0.0], known=[True, False, True], prompt=[0, 0, 0]
    )
    sums = RiskSums.from_vector(CertifiedLearning().sums(feedback, np.array([0.1, 0.5, 1.0])))
    np.testing.assert_allclose(sums.risk, [0.0, 1 / 3, 1 / 3], atol=UNIT)


def test_audited_curve_is_unbiased() -> None:
    # Mean of 3,000 prompts of 20 tokens, loss in [0, 5]: SD of the audited mean below
    # sqrt(5 / 60,000) = .0092, so .05 is over five of them (false alarm below 1e-6 a point).
    grid = np.array([0.3, 0.6, 1.0])
    full = tokens(60_000, 1, 1.0, 3_000)
    rng = np.random.default_rng(2)
    audited = ~full.kept | (rng.random(len(full)) < 0.2)
    partial = Feedback.create(
        full.u,
        np.where(audited, full.beta, np.nan),
        ratio_beta=np.where(audited, full.ratio_beta, np.nan),
        kept=full.kept,
        known=audited,
        weight=np.where(full.kept, 5.0 * audited, 1.0),
        prompt=full.prompt,
    )
    learning = CertifiedLearning(audit_rate=0.2)
    assert learning.bound == 5.0
    exact = CertifiedLearning().risk_sums(full, grid)
    estimate = learning.risk_sums(partial, grid)
    np.testing.assert_allclose(estimate.risk / 3_000, exact.risk / 3_000, atol=0.05)
    assert conformal_threshold(estimate.risk, 3_000, grid, 0.3, learning.bound) in (0.3, 0.6)


def test_weights_beyond_the_bound_are_refused() -> None:
    with pytest.raises(ValueError, match="audit_rate"):
        CertifiedLearning(audit_rate=0.5).sums(tokens(50, 0, audit_rate=0.2), np.array([0.5, 1.0]))
    with pytest.raises(ValueError, match="audit_rate"):
        CertifiedLearning(audit_rate=0.0)
    with pytest.raises(ValueError, match="beta"):
        LinearLearning("eq3")  # type: ignore[arg-type]


def test_no_tokens_give_zero_sums() -> None:
    grid = threshold_grid(5)
    assert not CertifiedLearning().sums(Feedback.empty(), grid).any()
    assert not LinearLearning().sums(Feedback.empty()).any()
