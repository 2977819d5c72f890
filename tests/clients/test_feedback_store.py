"""The store of feedback on a device."""

import threading

import numpy as np
import pytest

from clients.feedback import Feedback
from clients.feedback_store import FeedbackStore


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


@pytest.mark.parametrize("features", [None, 3])
def test_store_round_trip_after_reopening(tmp_path, features) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "feedback.sqlite"
    first, second = sample(6, 1, 0, features), sample(5, 2, 1, features)
    with FeedbackStore(path) as store:
        store.append(first)
        bookmark = store.newest_id()
        store.append(second)
    with FeedbackStore(path) as store:
        assert len(store) == 11
        assert_same(store.read(), first.append(second))
        assert_same(store.read(after=bookmark), second)
        assert_same(store.read(limit=5), second)
        assert store.newest_id() == bookmark + 5


def test_memory_store_and_clear() -> None:
    store = FeedbackStore()
    store.append(sample(3))
    store.append(Feedback.empty())
    assert len(store) == 3
    store.clear()
    assert len(store) == 0 and len(store.read()) == 0 and store.newest_id() == 3


def test_oldest_prompts_leave_whole() -> None:
    store = FeedbackStore(max_rows=10)
    for prompt in range(4):
        store.append(sample(4, prompt, prompt))
    assert len(store) == 8
    assert set(store.read().prompt.tolist()) == {2, 3}


def test_a_refused_append_changes_nothing() -> None:
    store = FeedbackStore(max_rows=10)
    store.append(sample(4, 0, 0))
    with pytest.raises(ValueError, match="max_rows"):
        store.append(sample(11, 1, 1))
    with pytest.raises(ValueError, match="features"):
        store.append(sample(2, 1, 1, features=7))
    assert_same(store.read(), sample(4, 0, 0))


def test_bad_files_and_bounds_are_refused(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "not-a-store"
    path.write_bytes(b"this is certainly not a database file" * 50)
    with pytest.raises(ValueError, match="not a feedback store"):
        FeedbackStore(path)
    with pytest.raises(ValueError, match="max_rows"):
        FeedbackStore(max_rows=0)


def test_threads_share_one_store(tmp_path) -> None:  # type: ignore[no-untyped-def]
    store = FeedbackStore(tmp_path / "feedback.sqlite")

    def write(prompt: int) -> None:
        for _ in range(10):
            store.append(sample(3, prompt, prompt))

    threads = [threading.Thread(target=write, args=(prompt,)) for prompt in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store) == 120
