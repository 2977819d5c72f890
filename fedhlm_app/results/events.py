"""The figures of a run for trackers, written as its rounds end: TensorBoard, MLflow, W&B."""

from __future__ import annotations

import importlib.util
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from logging import INFO, WARNING
from typing import Any

from flwr.common.logger import log

from fedhlm_app.results.runs import RunFolder
from fedhlm_app.settings import SettingsError

EVENTS = "events"
"""Folder of TensorBoard's events inside a run folder."""
PROJECT = "fedhlm"
"""Experiment (MLflow) or project (W&B) of the runs."""

Write = Callable[[Mapping[str, float], int], object]
"""Takes the figures of a round, by name, and its number."""


@contextmanager
def _tensorboard(folder: RunFolder, rounds_done: int) -> Iterator[Write]:
    # PyTorch's writer is this one, and brings PyTorch along: seconds before the first round.
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    def write(figures: Mapping[str, float], number: int) -> None:
        values = [Summary.Value(tag=name, simple_value=value) for name, value in figures.items()]
        writer.add_event(Event(wall_time=time.time(), step=number, summary=Summary(value=values)))
        writer.flush()

    with closing(EventFileWriter(str(folder.path / EVENTS))) as writer:
        # Drops later rounds that an earlier life wrote, since they will be run again.
        start = SessionLog(status=SessionLog.START)
        writer.add_event(Event(wall_time=time.time(), step=rounds_done + 1, session_log=start))
        yield write


@contextmanager
def _mlflow(folder: RunFolder, rounds_done: int) -> Iterator[Write]:
    import mlflow

    if not os.environ.get("MLFLOW_TRACKING_URI"):
        # What it needs for a database of its own, Flower brings.
        mlflow.set_tracking_uri(f"sqlite:///{folder.path.parent.resolve() / 'mlflow.db'}")
    mlflow.set_experiment(PROJECT)
    name = folder.path.name
    found = mlflow.search_runs(
        filter_string=f"attributes.run_name = '{name}'", output_format="list"
    )
    # A run that goes on does so in the one it began.
    known = {"run_id": found[0].info.run_id} if found else {"run_name": name}
    with mlflow.start_run(**known):
        if not found:
            mlflow.log_params(folder.config()["settings"])
        yield lambda figures, number: mlflow.log_metrics(dict(figures), step=number)


@contextmanager
def _wandb(folder: RunFolder, rounds_done: int) -> Iterator[Write]:
    import wandb

    name, settings = folder.path.name, folder.config()["settings"]
    with wandb.init(
        project=PROJECT, name=name, id=name, resume="allow", dir=str(folder.path), config=settings
    ) as run:
        yield lambda figures, number: run.log(dict(figures), step=number)


_OPENING: dict[str, Callable[[RunFolder, int], AbstractContextManager[Write]]] = {
    "tensorboard": _tensorboard,
    "mlflow": _mlflow,
    "wandb": _wandb,
}
TRACKERS = ("mlflow", "wandb")
"""Those that a run has to be told of: they may send its figures elsewhere."""


def trackers_of(setting: str) -> list[str]:
    """The trackers that setting `trackers` names.

    Raises
    ------
    SettingsError
        One is unknown, or is not installed.
    """
    names = [name for name in (part.strip() for part in setting.split(",")) if name]
    for name in names:
        if name not in TRACKERS:
            raise SettingsError(
                f"setting 'trackers' = {setting!r}: allowed are {', '.join(TRACKERS)}, with a "
                "comma between them"
            )
        if importlib.util.find_spec(name) is None:
            raise SettingsError(
                f"setting 'trackers' = {setting!r}: {name} is not installed; "
                f"`pip install 'fedhlm[{name}]'` brings it"
            )
    return names


@contextmanager
def event_log(
    folder: RunFolder, rounds_done: int = 0, trackers: str = ""
) -> Iterator[Callable[[Any], None]]:
    """Open the trackers of a run; gives what hands them one line of `metrics.jsonl`.

    Without the extra `tensorboard` the log says so. A tracker that fails during a run is told of in
    the log, and the run goes on.

    Parameters
    ----------
    folder : RunFolder
        The run's.
    rounds_done : int
        Rounds, >= 0, of the checkpoint the run goes on from.
    trackers : str
        The setting.
    """
    names = trackers_of(trackers)
    if importlib.util.find_spec("tensorboard") is None:
        log(INFO, "No TensorBoard events: `pip install 'fedhlm[tensorboard]'` brings the writer")
    else:
        names.insert(0, "tensorboard")
    with ExitStack() as stack:
        writers = {name: stack.enter_context(_OPENING[name](folder, rounds_done)) for name in names}

        def add(line: Mapping[str, Any]) -> None:
            # Twenty charts of each of a thousand clients would bury the others.
            figures = dict(_flat({k: v for k, v in line.items() if k != "by_client"}))
            for name, write in writers.items():
                try:
                    write(figures, line["round"])
                except Exception as error:
                    log(WARNING, "%s has no round %d: %s", name, line["round"], error)

        yield add


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for key, item in value.items():
        name = f"{prefix}{key}"
        if isinstance(item, Mapping):
            yield from _flat(item, f"{name}/")
        elif name == "round" or isinstance(item, bool) or not isinstance(item, int | float):
            continue
        elif math.isfinite(item):
            yield name, float(item)
