"""Events for TensorBoard: there while a run goes on, right after it was resumed."""

from __future__ import annotations

import importlib.util
import logging
import math
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fedhlm_app.results.events import EVENTS, event_log
from fedhlm_app.results.runs import RunFolder
from fedhlm_app.settings import Settings


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(Settings.from_sources({"run-dir": str(tmp_path)}, {}), {})


def scalars(folder: RunFolder, name: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder.path / EVENTS)).Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_a_round_can_be_read_before_the_run_ends(folder: RunFolder) -> None:
    with event_log(folder) as add:
        add({"round": 1, "threshold": {"global": 0.5}, "loss": None, "seconds": math.nan})
        assert scalars(folder, "threshold/global") == [(1, 0.5)]
        add({"round": 2, "threshold": {"global": 0.75}, "done": True})
        assert scalars(folder, "threshold/global") == [(1, 0.5), (2, 0.75)]
    events = EventAccumulator(str(folder.path / EVENTS)).Reload()
    assert events.Tags()["scalars"] == ["threshold/global"]


def test_rounds_that_are_run_again_count_once(folder: RunFolder) -> None:
    with event_log(folder) as add:
        for number in (1, 2, 3):
            add({"round": number, "trr": 0.25})
    with event_log(folder, rounds_done=2) as add:
        add({"round": 3, "trr": 0.5})
    assert scalars(folder, "trr") == [(1, 0.25), (2, 0.25), (3, 0.5)]


def test_without_tensorboard_a_line_says_what_brings_it(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with caplog.at_level(logging.INFO, "flwr"), event_log(folder) as add:
        add({"round": 1, "trr": 0.25})
    assert "pip install 'fedhlm[tensorboard]'" in caplog.text
    assert not (folder.path / EVENTS).exists()
