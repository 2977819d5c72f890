"""A run that is killed goes on from its checkpoint to the end it would have had."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from fedhlm_app.results.runs import RUN_FOLDER_VARIABLE, RunFolder, latest_run
from tests.fedhlm_app.in_process import Runner
from tests.golden.recording import one_thread

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(2400)]

PATIENCE = 600
"""Seconds until what hangs is given up."""

SMALL = {
    "preset": "certified", "clients": 4, "rounds": 4, "clusters": 2, "tokens-per-round": 30,
    "tokens-per-prompt": 10,
    "evaluate-every": 4, "learning": "balanced", "strategy": "scaffold", "escalation": "token",
    "personalisation": "local",
}  # fmt: skip
WORDS = [word for key, value in SMALL.items() for word in ("--set", f"{key}={value}")]


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "fedhlm_app", "run", *words]


def finish(*words: str) -> None:
    asked = command(*words)
    done = subprocess.run(asked, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr


def kill_in_mid_run(folder: Path) -> RunFolder:
    """Start a run and kill its command, as a power cut would, once a round is over.

    Its processes stand still from then on: none may end the run while they are being ended.
    """
    process = subprocess.Popen(
        command("--set", f"run-dir={folder}", "--set", "workers=1", *WORDS),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            found = latest_run(folder)
            begun = [] if found is None else processes_of(found)
            progress = None if found is None else found.progress()
            if found is not None and progress and progress["round"] >= 1:
                for one in begun:
                    with suppress(psutil.Error):
                        one.suspend()
                os.kill(process.pid, signal.SIGKILL)
                return found
            assert process.poll() is None, "the run ended before it could be killed"
            time.sleep(0.1)
        pytest.fail(f"no round within {PATIENCE} s")
    finally:
        process.kill()
        process.wait()


def processes_of(folder: RunFolder) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(RUN_FOLDER_VARIABLE) == str(folder.path):
                found.append(process)
        except (psutil.Error, OSError):
            continue  # somebody else's, or gone
    return found


def wait_for_the_guard(folder: RunFolder) -> None:
    """Wait until a killed run's processes are ended: they must not write into the resumed one."""
    deadline = time.monotonic() + PATIENCE
    while processes_of(folder):
        assert time.monotonic() < deadline, "a killed run's processes live on"
        time.sleep(0.2)


def test_a_killed_run_ends_like_one_that_was_not(tmp_path, monkeypatch):
    with one_thread():
        _, whole, _ = Runner(monkeypatch).run(tmp_path / "whole", **SMALL)
    cut = kill_in_mid_run(tmp_path / "cut")
    wait_for_the_guard(cut)
    assert cut.summary() is None
    finish("--resume", str(cut.path), "--set", "workers=1")
    first, second = whole.summary(), cut.summary()
    for key in ("tokens", "resolution", "threshold", "bytes", "rounds", "coverage"):
        assert first[key] == second[key], key
    assert [line["round"] for line in cut.metrics()] == [1, 2, 3, 4]
