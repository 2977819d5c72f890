"""Ctrl-C, whenever: the command says how to go on, no process is left, every file can be read."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import psutil
import pytest

from fedhlm_app.results.runs import CHECKPOINT, RUN_FOLDER_VARIABLE, latest_run
from tests.e2e.test_resume import WORDS

pytestmark = [pytest.mark.slow, pytest.mark.e2e, pytest.mark.timeout(900)]

PROGRAM = """
import signal
# A shell that starts tests in the background has them ignore it.
signal.signal(signal.SIGINT, signal.default_int_handler)
from fedhlm_app.cli import main
main()
"""

MOMENTS = {
    "preset certified": None,
    "starting Flower": "nothing to go on from",
    "loading the models": "nothing to go on from",
    "round 1/4": "go on with: fedhlm run --resume ",
}
"""What the command said last, and what it says after Ctrl-C; in mid-round: see test_launch."""


def left(folder) -> list[int]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(RUN_FOLDER_VARIABLE) == str(folder):
                found.append(process.pid)
        except (psutil.Error, OSError):
            continue  # somebody else's, or gone
    return found


@pytest.mark.parametrize("said", MOMENTS)
def test_ctrl_c(said, tmp_path):
    words = [sys.executable, "-c", PROGRAM, "run", "--set", f"run-dir={tmp_path}", "--set"]
    command = subprocess.Popen(
        [*words, "workers=1", *WORDS], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with command:
        assert command.stderr is not None
        for line in command.stderr:
            if said in line:
                command.send_signal(signal.SIGINT)
                break
        _, after = command.communicate(timeout=300)
    assert command.returncode == 130, after
    assert "Traceback" not in after
    run = latest_run(tmp_path)
    if said == "preset certified":
        assert run is None or left(run.path) == []
        return
    assert "every process of the run has been ended" in after and MOMENTS[said] in after
    assert left(run.path) == []
    for file in run.path.glob("*.json"):
        json.loads(file.read_text("utf-8"))
    assert (run.path / CHECKPOINT).exists() == ("--resume" in MOMENTS[said])
    assert [line["round"] for line in run.metrics()] == [1, 2, 3, 4][: len(run.metrics())]
