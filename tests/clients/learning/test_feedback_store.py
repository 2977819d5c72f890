"""The store of feedback on a device."""

import sqlite3
import threading

import numpy as np
import pytest

from clients.learning.feedback import Feedback
from clients.learning.feedback_reader import FeedbackReader
from clients.learning.feedback_store import FeedbackStore


def sample(rows: int, seed: int = 0, features: int | None = 3) -> Feedback:
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
        prompt=np.zeros(rows),
        below=known & (rng.random(rows) < 0.5),
        features=None if features is None else rng.standard_normal((rows, features)),
    )


def assert_same(left: Feedback, right: Feedback) -> None:
    """All but the number of the text, which is the store's to give."""
    for name in ("u", "kept", "known", "weight", "below"):
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
    first, second = sample(6, 1, features), sample(5, 2, features)
    with FeedbackStore(path) as store:
        assert store.newest() == 0
        assert store.append(first, "one") == 1
        bookmark = store.newest()
        assert store.append(second, "two") == 2
    with FeedbackStore(path) as store:
        assert len(store) == 11
        everything, about = store.read()
        assert_same(everything, Feedback.concatenate([first, second]))
        assert everything.prompt.tolist() == [1] * 6 + [2] * 5
        assert about == {1: "one", 2: "two"}
        since, about = store.read(after=bookmark)
        assert_same(since, second)
        assert about == {2: "two"}
        assert store.newest() == 2
        nothing, about = store.read(after=2)
        assert len(nothing) == 0 and about == {}


def test_the_oldest_texts_leave_whole_and_numbers_go_on() -> None:
    store = FeedbackStore(max_rows=10)
    for number in range(4):
        store.append(sample(4, number), str(number))
    assert len(store) == 8
    feedback, about = store.read()
    assert set(feedback.prompt.tolist()) == {3, 4} == about.keys()
    assert store.append(sample(10)) == 5
    assert set(store.read()[1]) == {5}


def test_a_refused_append_changes_nothing() -> None:
    store = FeedbackStore(max_rows=10)
    store.append(sample(4, 0))
    with pytest.raises(ValueError, match="a text of 11 tokens: must be 1 to 10"):
        store.append(sample(11, 1))
    with pytest.raises(ValueError, match="a text of 0 tokens"):
        store.append(Feedback.empty())
    with pytest.raises(ValueError, match="7 features a token, the store 3"):
        store.append(sample(2, 1, features=7))
    assert_same(store.read()[0], sample(4, 0))
    assert store.newest() == 1


def test_bad_files_and_bounds_are_refused(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "not-a-store"
    path.write_bytes(b"this is certainly not a database file" * 50)
    with pytest.raises(ValueError, match="not a feedback store"):
        FeedbackStore(path)
    with pytest.raises(ValueError, match="not a feedback store"):
        FeedbackStore(tmp_path / "missing" / "feedback.sqlite")
    with pytest.raises(ValueError, match="max_rows"):
        FeedbackStore(max_rows=0)
    later = tmp_path / "later.sqlite"
    connection = sqlite3.connect(later)
    connection.execute("PRAGMA user_version = 7")
    connection.close()
    for kind in (FeedbackStore, FeedbackReader):
        with pytest.raises(ValueError, match="its layout is 7"):
            kind(later)


def test_threads_and_connections_share_one_file(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "feedback.sqlite"
    store = FeedbackStore(path)
    torn = []

    def write(seed: int) -> None:
        for _ in range(10):
            store.append(sample(3, seed), "whole")

    def watch() -> None:
        with FeedbackReader(path) as reader:
            while threading.active_count() > before + 1:
                feedback, about = reader.read()
                if set(feedback.prompt.tolist()) != set(about) or len(feedback) != 3 * len(about):
                    torn.append(about)

    before = threading.active_count()
    threads = [threading.Thread(target=write, args=(seed,)) for seed in range(4)]
    for thread in (*threads, watcher := threading.Thread(target=watch)):
        thread.start()
    for thread in (*threads, watcher):
        thread.join()
    assert torn == []
    assert len(store) == 120
    assert store.newest() == 40
