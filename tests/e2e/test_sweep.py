"""A sweep over real runs that is killed and goes on."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedhlm_app.results.runs import RunFolder, runs_in

pytestmark = [pytest.mark.slow, pytest.mark.e2e, pytest.mark.timeout(900)]

JOB = [
    "--clients", "2", "--rounds", "4", "--set", "clusters=1", "--set", "tokens-per-round=10",
    "--set", "tokens-per-prompt=5", "--set", "evaluate-every=4", "--set", "evaluate-prompts=1",
    "--set", "learning=balanced", "--set", "workers=1",
]  # fmt: skip


def command(folder: Path, *words: str) -> list[str]:
    return [
        sys.executable, "-m", "fedhlm_app", "sweep", "--set", f"run-dir={folder}", *JOB,
        "--grid", "strategy=fedavg,scaffold", "--jobs", "1", *words,
    ]  # fmt: skip


def kill_in_the_second_cell(folder: Path) -> list[RunFolder]:
    """Start the sweep and kill it when a round of its second cell is over; its two runs."""
    process = subprocess.Popen(
        command(folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 400
        while time.monotonic() < deadline:
            found = runs_in(folder / "sweep")
            if len(found) == 2 and (found[1].path / "checkpoint.json").exists():
                return found
            assert process.poll() is None, "the sweep ended before it could be killed"
            time.sleep(0.02)
        pytest.fail("no second cell within 400 s")
    finally:
        process.kill()
        process.wait()


def test_a_killed_sweep_goes_on_with_the_cut_run_and_keeps_the_finished_one(tmp_path):
    finished, cut = kill_in_the_second_cell(tmp_path)
    ended = (finished.path / "summary.json").stat().st_mtime_ns
    assert cut.summary() is None
    done = subprocess.run(
        command(tmp_path, "--json"), capture_output=True, text=True, timeout=390, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "strategy=fedavg: was finished" in done.stderr
    rows = json.loads(done.stdout)
    assert [row["strategy"] for row in rows] == ["fedavg", "scaffold"]
    assert all(row["error"] == "" and 0 <= row["trr"] <= 1 for row in rows)
    assert (finished.path / "summary.json").stat().st_mtime_ns == ended
    # No third folder: the cut run went on in its own, and each round is there once.
    assert [run.path for run in runs_in(tmp_path / "sweep")] == [finished.path, cut.path]
    assert [line["round"] for line in cut.metrics()] == [1, 2, 3, 4]
    assert json.loads((tmp_path / "sweep" / "sweep.json").read_text()) == rows
