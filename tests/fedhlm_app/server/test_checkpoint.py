from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from fedhlm_app.results.runs import CHECKPOINT
from fedhlm_app.server.checkpoint import CheckpointError, Progress, load, save

PROGRESS = Progress(
    Counter({"tokens": 30, "kept-loss": 1.5}),
    {"round": 2, "accuracy": {"token": None}},
    Counter({"not-finite": 1}),
    failed=2,
    waited=0.5,
    seconds=3.25,
)


def test_what_is_saved_comes_back(tmp_path):
    state = {"round": 2, "policy": np.array([0.1, np.pi])}
    save(tmp_path, state, [0, 1, 0], PROGRESS)
    back, assignment, progress = load(tmp_path)
    assert back["round"] == 2 and np.array_equal(back["policy"], state["policy"])
    assert assignment == [0, 1, 0]
    assert progress == PROGRESS
    assert progress.totals["never-seen"] == 0


def test_a_crash_while_saving_leaves_the_old_checkpoint(tmp_path):
    save(tmp_path, {"round": 1}, [0], PROGRESS)
    with pytest.raises(ValueError, match="state: a object"):
        save(tmp_path, {"round": object()}, [0], PROGRESS)
    assert load(tmp_path)[0]["round"] == 1
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "has no checkpoint.json"),
        ("", "not readable"),
        ("[]", "not readable"),
        ('{"version": 4}', "not readable"),
        ('{"version": 3}', "version 3; allowed: 4; end the run with"),
    ],
)
def test_a_folder_without_a_readable_checkpoint_is_refused(tmp_path, text, message):
    if text is not None:
        (tmp_path / CHECKPOINT).write_text(text)
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path)
