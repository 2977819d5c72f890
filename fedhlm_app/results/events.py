"""The figures of a run for TensorBoard, written as its rounds end."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from logging import INFO
from typing import Any

from flwr.common.logger import log

from fedhlm_app.results.runs import RunFolder

EVENTS = "events"
"""Folder of the events inside a run folder."""


@contextmanager
def event_log(folder: RunFolder, rounds_done: int = 0) -> Iterator[Callable[[Any], None]]:
    """Open the events of a run; gives what writes down one line of `metrics.jsonl`.

    Without the extra `tensorboard` the log says so and nothing is written.

    Parameters
    ----------
    folder : RunFolder
        The run's.
    rounds_done : int
        Rounds, >= 0, of the checkpoint the run goes on from: TensorBoard drops later rounds that an
        earlier life wrote, since they will be run again.
    """
    if importlib.util.find_spec("tensorboard") is None:
        log(INFO, "No TensorBoard events: `pip install 'fedhlm[tensorboard]'` brings the writer")
        yield lambda line: None
        return
    # Brings PyTorch along, which a ServerApp has no other use for.
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder.path / EVENTS), purge_step=rounds_done + 1) as writer:

        def add(line: Mapping[str, Any]) -> None:
            # Twenty charts of each of a thousand clients would bury the others.
            for name, value in _flat({k: v for k, v in line.items() if k != "by_client"}):
                writer.add_scalar(name, value, line["round"])
            writer.flush()

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
