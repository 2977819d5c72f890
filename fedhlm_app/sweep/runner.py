"""Many runs over a grid of settings: finished ones are kept, cut ones go on, the rest are run."""

from __future__ import annotations

import csv
import ctypes
import fcntl
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from fedhlm_app.results.runs import CHECKPOINT, RunFolder, cores, write_atomically
from fedhlm_app.settings import Settings
from fedhlm_app.settings.sources import without_settings
from fedhlm_app.settings.words import in_words
from fedhlm_app.sweep.cells import Cell

_POLL_SECONDS = 0.2
_LOCK = ".lock"
_PATIENCE_SECONDS = 60.0
_DEATH_SIGNAL = 1
"""PR_SET_PDEATHSIG of Linux' prctl."""


class SweepBusyError(RuntimeError):
    """Another sweep, or a run that one left behind, is at work in the folder."""


@dataclass(frozen=True)
class Outcome:
    """How one cell ended: its run folder (None when nothing was started) and error (or "")."""

    cell: Cell
    folder: RunFolder | None
    error: str
    seconds: float

    def row(self) -> dict[str, Any]:
        """One line of the table: what makes the cell, then figures; None where there are none."""
        summary = None if self.folder is None or self.error else self.folder.summary()
        row: dict[str, Any] = dict(self.cell.shown)
        row |= dict.fromkeys(FIGURES)
        if summary is not None:
            row |= {name: read(summary) for name, read in FIGURES.items()}
        row["error"] = self.error
        row["run"] = "" if self.folder is None else self.folder.path.name
        return row


FIGURES: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "threshold": lambda s: s["threshold"]["global"],
    "trr": lambda s: s["trr"],
    "unresolved": lambda s: s.get("unresolved"),
    "llm_agreement": lambda s: s["llm_agreement"],
    "certificate": lambda s: s["certificate"],
    "worst_client": lambda s: s.get("coverage", {}).get("worst"),
    "token_accuracy": lambda s: s["accuracy"]["token"],
    "label_accuracy": lambda s: s["accuracy"]["label"],
    "uplink_per_token": lambda s: s["bytes"]["uplink"] / s["tokens"],
    "downlink_per_token": lambda s: s["bytes"]["downlink"] / s["tokens"],
    "seconds": lambda s: s["seconds"]["total"],
}
"""Columns of the table and where they are in a summary."""


def run_sweep(
    cells: Sequence[Cell],
    folder: Path,
    jobs: int = 0,
    on_end: Callable[[Outcome, int], None] | None = None,
) -> list[Outcome]:
    """Run what is not finished yet; write ``sweep.csv`` and ``sweep.json`` after every cell.

    Parameters
    ----------
    cells : sequence of Cell
    folder : Path
        Of the sweep; run folders lie in it. The same folder again goes on where it stopped.
    jobs : int
        Runs at a time; 0: one for every four cores, at least one.
    on_end : callable, optional
        Called with each outcome and the number of cells that have ended.

    Returns
    -------
    list of Outcome
        In the order of the cells. A failed run is an outcome, not an exception.

    Raises
    ------
    SweepBusyError
        When another sweep is at work in the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _alone_in(folder) as lock:
        return _run_cells(cells, folder, jobs or max(1, cores() // 4), on_end, lock)


@contextmanager
def _alone_in(folder: Path) -> Iterator[int]:
    """Hold the folder's lock, whose descriptor runs inherit.

    A sweep that is killed leaves runs that need some seconds to end. They hold the lock until
    then, so that the next sweep does not continue a run that is still being written.
    """
    with (folder / _LOCK).open("w") as handle:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise SweepBusyError(
                        f"{folder}: another sweep, or a run that one left behind, is at work here"
                    ) from None
                time.sleep(_POLL_SECONDS)
        yield handle.fileno()


def _run_cells(
    cells: Sequence[Cell],
    folder: Path,
    jobs: int,
    on_end: Callable[[Outcome, int], None] | None,
    lock: int,
) -> list[Outcome]:
    outcomes: dict[str, Outcome] = {}
    running: dict[str, _Process] = {}
    waiting = list(cells)

    def end(outcome: Outcome) -> None:
        outcomes[outcome.cell.key] = outcome
        _write(folder, [outcomes[c.key] for c in cells if c.key in outcomes])
        if on_end is not None:
            on_end(outcome, len(outcomes))

    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                cell = waiting.pop(0)
                if (done := _finished(folder, cell)) is not None:
                    end(Outcome(cell, done, "", 0.0))
                else:
                    running[cell.key] = _Process(cell, folder, jobs, lock)
            for key in [key for key, process in running.items() if process.ended()]:
                end(running.pop(key).outcome())
            if running:
                time.sleep(_POLL_SECONDS)
    finally:
        # SIGTERM makes `fedhlm run` end all processes of its own before it goes.
        for process in running.values():
            process.stop()
    return [outcomes[cell.key] for cell in cells]


class _Process:
    """`fedhlm run` for one cell."""

    def __init__(self, cell: Cell, folder: Path, jobs: int, lock: int) -> None:
        self.cell, self.folder = cell, folder
        self._began = time.monotonic()
        self._output: IO[bytes] = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            _command(cell, folder, jobs),
            env=without_settings(os.environ, list(Settings.defaults())),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._output,
            pass_fds=(lock,),
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        )

    def ended(self) -> bool:
        return self._process.poll() is not None

    def stop(self, patience: float = 60.0) -> None:
        self._process.terminate()
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._output.close()

    def outcome(self) -> Outcome:
        self._output.seek(0)
        said = self._output.read().decode("utf-8", errors="replace").strip()
        self._output.close()
        error = ""
        if self._process.returncode != 0:
            error = " ".join(said.split())[-300:] or f"exit status {self._process.returncode}"
        found = _folders(self.folder, self.cell)
        seconds = time.monotonic() - self._began
        return Outcome(self.cell, found[-1] if found else None, error, seconds)


def _end_with_parent() -> None:
    """Have this process told to end when the sweep dies, even of SIGKILL."""
    ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGTERM)


def _command(cell: Cell, folder: Path, jobs: int) -> list[str]:
    settings = cell.settings.to_run_config()
    settings |= {"name": f"cell-{cell.key}", "run-dir": str(folder), "checkpoint": True}
    if not settings["workers"]:
        settings["workers"] = max(1, cores() // jobs)
    # One that failed at its end has no round left to go on with.
    cut = [
        found
        for found in _folders(folder, cell)
        if (found.path / CHECKPOINT).exists() and found.summary() is None
    ]
    if cut:
        settings["resume"] = str(cut[-1].path)
    words = [sys.executable, "-m", "fedhlm_app", "run"]
    for key, value in settings.items():
        words += ["--set", f"{key}={in_words(value)}"]
    return words


def _folders(folder: Path, cell: Cell) -> list[RunFolder]:
    return [RunFolder(path) for path in sorted(folder.glob(f"*-cell-{cell.key}*")) if path.is_dir()]


def _finished(folder: Path, cell: Cell) -> RunFolder | None:
    for found in _folders(folder, cell):
        summary = found.summary()
        if summary is not None and not summary.get("error"):
            return found
    return None


def _write(folder: Path, outcomes: Sequence[Outcome]) -> None:
    table = [outcome.row() for outcome in outcomes]
    columns = list(dict.fromkeys(key for row in table for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    write_atomically(folder / "sweep.csv", text.getvalue())
    write_atomically(folder / "sweep.json", json.dumps(table, indent=2) + "\n")
