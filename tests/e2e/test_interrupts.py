"""Ctrl-C, whenever: the command says how to go on, no process is left, every file can be read."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest

from fedhlm_app.results.runs import CHECKPOINT, latest_run
from tests.e2e.test_resume import PATIENCE, WORDS, processes_of

pytestmark = [pytest.mark.slow, pytest.mark.e2e, pytest.mark.timeout(1800)]

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
    "round ": "go on with: fedhlm run --resume ",
}
"""What the command said last, and what it says after Ctrl-C; in mid-round: see test_launch."""


@pytest.mark.parametrize("said", MOMENTS)
def test_ctrl_c(said, tmp_path):
    moments = list(MOMENTS)[list(MOMENTS).index(said) :]
    words = [sys.executable, "-c", PROGRAM, "run", "--set", f"run-dir={tmp_path}", "--set"]
    command = subprocess.Popen(
        [*words, "workers=1", *WORDS], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with command:
        assert command.stderr is not None
        for line in command.stderr:
            # The log is looked at now and then: on a busy machine a moment may go by unseen.
            if seen := next((moment for moment in moments if moment in line), ""):
                command.send_signal(signal.SIGINT)
                break
        _, after = command.communicate(timeout=PATIENCE)
    assert command.returncode == 130, after
    assert "Traceback" not in after
    run = latest_run(tmp_path)
    if seen == "preset certified":
        assert run is None or processes_of(run) == []
        return
    assert "every process of the run has been ended" in after and MOMENTS[seen] in after
    assert processes_of(run) == []
    for file in run.path.glob("*.json"):
        json.loads(file.read_text("utf-8"))
    assert (run.path / CHECKPOINT).exists() == ("--resume" in MOMENTS[seen])
    assert [line["round"] for line in run.metrics()] == [1, 2, 3, 4][: len(run.metrics())]
