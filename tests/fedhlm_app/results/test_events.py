"""Events for TensorBoard: there while a run goes on, right after it was resumed."""

from __future__ import annotations

import importlib.util
import logging
import math
import sys
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fedhlm_app.results.events import EVENTS, event_log, trackers_of
from fedhlm_app.results.runs import RunFolder
from fedhlm_app.settings import Settings, SettingsError


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


@pytest.fixture
def trackers(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """MLflow and W&B as modules that note what they are told; W&B fails in its second round."""
    told: list[tuple[Any, ...]] = []
    known: list[Any] = []

    @contextmanager
    def start_run(**names: str) -> Any:
        told.append(("mlflow", names))
        known.append(SimpleNamespace(info=SimpleNamespace(run_id="abc")))
        yield

    class Run:
        def __enter__(self) -> Run:
            return self

        def __exit__(self, *_: object) -> None:
            told.append(("wandb", "end"))

        def log(self, figures: dict[str, float], step: int) -> None:
            if step == 2:
                raise ConnectionError("no network")
            told.append(("wandb", figures, step))

    mlflow = SimpleNamespace(
        set_tracking_uri=lambda uri: told.append(("uri", uri)),
        set_experiment=lambda name: None,
        search_runs=lambda **_: list(known),
        start_run=start_run,
        log_params=lambda params: told.append(("params", params["seed"])),
        log_metrics=lambda figures, step: told.append(("mlflow", figures, step)),
    )
    wandb = SimpleNamespace(init=lambda **options: (told.append(("init", options["id"])), Run())[1])
    for name, fake in (("mlflow", mlflow), ("wandb", wandb)):
        module = ModuleType(name)
        module.__dict__.update(vars(fake), __spec__=SimpleNamespace())
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return told


def test_trackers_hear_of_rounds_and_one_that_fails_costs_nothing(
    folder: RunFolder, trackers: list[tuple[Any, ...]], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "flwr"), event_log(folder, 0, "mlflow, wandb") as add:
        add({"round": 1, "bytes": {"uplink": 3}, "by_client": {"0": {"uplink": 3}}})
        add({"round": 2, "trr": 0.5})
    name = folder.path.name
    assert trackers == [
        ("uri", f"sqlite:///{folder.path.parent}/mlflow.db"),
        ("mlflow", {"run_name": name}),
        ("params", 0),
        ("init", name),
        ("mlflow", {"bytes/uplink": 3.0}, 1),
        ("wandb", {"bytes/uplink": 3.0}, 1),
        ("mlflow", {"trr": 0.5}, 2),
        ("wandb", "end"),
    ]
    assert "wandb has no round 2: no network" in caplog.text
    # Resumed, it is the same run there.
    del trackers[:]
    with event_log(folder, 2, "mlflow"):
        pass
    assert trackers[1:] == [("mlflow", {"run_id": "abc"})]


@pytest.mark.parametrize(
    ("named", "says"),
    [("mlfow", "allowed are mlflow, wandb"), ("mlflow", r"pip install 'fedhlm\[mlflow\]'")],
)
def test_a_tracker_that_is_not_there_is_refused_in_one_line(
    named: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=says):
        trackers_of(named)
    assert trackers_of("") == []
