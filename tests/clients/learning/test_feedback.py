"""Columns of feedback of drafted tokens."""

import numpy as np
import pytest

from clients.learning.feedback import Feedback


def sample(rows: int, seed: int = 0, prompt: int = 0, features: int | None = 3) -> Feedback:
    rng = np.random.default_rng(seed)
    kept = rng.random(rows) < 0.6
    known = ~kept | (rng.random(rows) < 0.5)
    return Feedback.create(
        rng.random(rows),
        np.where(known, rng.random(rows), np.nan),
        ratio_beta=np.where(known, rng.random(rows), np.nan),
        kept=kept,
        known=known,
        weight=np.where(kept, 2.0, 1.0),
        prompt=np.full(rows, prompt),
        below=known & (rng.random(rows) < 0.5),
        features=None if features is None else rng.standard_normal((rows, features)),
    )


def assert_same(left: Feedback, right: Feedback) -> None:
    for name in ("u", "kept", "known", "weight", "prompt", "below"):
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name), err_msg=name)
    for name in ("beta", "ratio_beta"):
        np.testing.assert_array_equal(
            getattr(left, name)[left.known], getattr(right, name)[right.known], err_msg=name
        )
    if left.features is None or right.features is None:
        assert left.features is right.features
    else:
        np.testing.assert_array_equal(left.features, right.features)


def test_columns_get_their_dtypes() -> None:
    feedback = sample(5)
    assert feedback.u.dtype == np.float64
    assert feedback.kept.dtype == np.bool_
    assert feedback.prompt.dtype == np.int64
    assert feedback.features is not None and feedback.features.dtype == np.float32


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"u": [0.1, 1.5]}, "u"),
        ({"u": [0.1, np.nan]}, "u"),
        ({"beta": [0.1, -0.1]}, "beta"),
        ({"beta": [0.1, np.nan]}, "beta"),
        ({"weight": [1.0, -1.0]}, "weight"),
        ({"weight": [1.0, np.inf]}, "weight"),
        ({"kept": [True]}, "kept"),
        ({"features": np.zeros((3, 2))}, "features"),
    ],
)
def test_bad_columns_are_refused_by_name(change: dict[str, object], named: str) -> None:
    columns: dict[str, object] = {"u": [0.1, 0.2], "beta": [0.0, 1.0]} | change
    with pytest.raises(ValueError, match=named):
        Feedback.create(**columns)  # type: ignore[arg-type]


def test_unknown_beta_may_be_nan_and_weighs_nothing() -> None:
    feedback = Feedback.create([0.1, 0.2], [np.nan, 0.5], known=[False, True], weight=[4.0, 4.0])
    np.testing.assert_array_equal(feedback.weighted_beta, [0.0, 2.0])


def test_audit_weights_make_the_sum_unbiased() -> None:
    # 400,000 draws of a bounded variable: SD of the mean is sqrt(E[w beta^2]) / sqrt(n) < .004,
    # so a gap of .02 has a false-alarm probability below 1e-6.
    rng = np.random.default_rng(7)
    beta = rng.random(400_000)
    audited = rng.random(len(beta)) < 0.1
    feedback = Feedback.create(
        np.zeros(len(beta)),
        beta,
        kept=np.ones(len(beta), bool),
        known=audited,
        weight=beta * 0 + 10,
    )
    assert abs(feedback.weighted_beta.mean() - beta.mean()) < 0.02


def test_concatenate_and_select() -> None:
    first, second = sample(4, 1), sample(3, 2)
    joined = Feedback.concatenate([first, second])
    assert len(joined) == 7
    assert_same(joined.select(slice(0, 4)), first)
    assert_same(joined.select(np.arange(7) >= 4), second)
    assert_same(joined.select(np.array([4, 5, 6])), second)
    assert_same(Feedback.concatenate([Feedback.empty(), first, Feedback.empty()]), first)
    assert len(Feedback.concatenate([])) == 0


def test_features_survive_only_if_all_rows_have_them() -> None:
    assert Feedback.concatenate([sample(4), sample(2, features=None)]).features is None
    with pytest.raises(ValueError, match="width"):
        Feedback.concatenate([sample(4, features=3), sample(2, features=5)])


def test_with_scores_replaces_u_alone() -> None:
    feedback = sample(4)
    scored = feedback.with_scores([0.0, 0.1, 0.2, 0.3])
    np.testing.assert_array_equal(scored.u, [0.0, 0.1, 0.2, 0.3])
    np.testing.assert_array_equal(scored.kept, feedback.kept)
    with pytest.raises(ValueError, match="u"):
        feedback.with_scores([2.0, 0.1, 0.2, 0.3])
