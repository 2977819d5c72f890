"""Whole runs with real processes: Flower, Ray, client processes and the LLM actor."""

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

from fedhlm_app.launch.superlink import PrivateSuperLink
from fedhlm_app.results.runs import RunFolder, latest_run
from fedhlm_app.results.summary import check_summary
from fedhlm_app.settings import Settings
from tests.checkout import checkout
from tests.fedhlm_app.in_process import Runner
from tests.golden.recording import one_thread
from tests.test_docs import ROOT, blocks

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

SMALL = [
    "--preset", "certified", "--clients", "4", "--set", "clusters=2", "--set", "evaluate-every=2",
]  # fmt: skip


def command(folder: Path, *words: str) -> list[str]:
    return [
        sys.executable, "-m", "fedhlm_app", "run", "--set", f"run-dir={folder}", *SMALL, *words,
    ]  # fmt: skip


def comparable(folder: RunFolder) -> dict:
    summary = folder.summary()
    assert summary is not None
    for key in ("seconds", "settings", "versions", "changed"):
        summary.pop(key)
    return summary


def as_the_readme_says(folder: Path) -> RunFolder:
    """README's block with `flwr run .`, typed in a checkout; the SuperLink is the test's own."""
    (block,) = [text for _, text in blocks(ROOT / "README.md", ("",)) if "flwr run" in text]
    home = folder / "home"
    home.mkdir(parents=True)
    log, environ = folder / "superlink.log", {**os.environ, "HOME": str(home)}
    with PrivateSuperLink(log, environ) as superlink:
        done = subprocess.run(
            ["bash", "-ec", block],
            cwd=checkout(folder / "fedhlm"),
            env=superlink.environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=600,
            check=True,
        )
    # Where README says that a run is written, wherever its SuperLink was started.
    found = latest_run(home / "fedhlm" / "runs")
    # It exits 0 whatever happened.
    assert found is not None and found.summary() is not None, done.stdout[-5000:]
    for words in (f"Run folder: {found.path}", "Round 3/3: 240 tokens", "transmission reduction"):
        assert words in done.stdout
    assert '"finished:completed"' in done.stdout
    return found


def test_plain_flwr_run_with_streams_gives_the_run_of_one_process(tmp_path, monkeypatch):
    found = as_the_readme_says(tmp_path / "flwr")
    assert (found.path / "report.html").stat().st_size > 5000
    typed = {"clients": 8, "rounds": 3, "initial-threshold": 0.4, "run-dir": str(tmp_path)}
    with one_thread():
        _, here, _ = Runner(monkeypatch).start(Settings.from_sources(typed, {}))
    assert check_summary(found.summary()).tokens == 8 * 3 * 30
    assert len(found.metrics()) == 3
    first, second = comparable(here), comparable(found)
    assert first == second
    assert first["resolution"]["unresolved"] == 0
    assert first["exchanges"]["streams"] > 0


def follow(folder: Path, words: list[str], act) -> tuple[int, str, RunFolder]:
    """Start a run, call `act` once its first round is over, and wait for its end."""
    process = subprocess.Popen(
        command(folder, *words),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        deadline = time.monotonic() + 600
        while time.monotonic() < deadline:
            found = latest_run(folder)
            progress = None if found is None else found.progress()
            if progress and progress["round"] >= 1:
                break
            time.sleep(0.1)
        else:
            pytest.fail("no first round within 600 s")
        act(process.pid)
        output, _ = process.communicate(timeout=600)
    finally:
        process.kill()
    found = latest_run(folder)
    assert found is not None
    return process.returncode, output, found


def ray_processes(root: int, title: str) -> list[psutil.Process]:
    """Processes of Ray actors that belong to a run, by the name Ray gives them."""
    found = []
    for process in psutil.Process(root).children(recursive=True):
        with suppress(psutil.Error):  # one that has ended
            if title in " ".join(process.cmdline()):
                found.append(process)
    return found


@pytest.mark.slow
def test_a_run_outlives_its_llm_and_a_client(tmp_path):
    killed = []

    def kill(root: int) -> None:
        titles = ("LanguageModelActor", "ClientAppActor")
        killed.extend(ray_processes(root, title)[0].pid for title in titles)
        for number in killed:
            os.kill(number, signal.SIGKILL)

    wishes = ["learning=paper", "initial-threshold=0.1", "llm-timeout=300"]
    code, output, folder = follow(
        tmp_path, ["--rounds", "6", *(word for wish in wishes for word in ("--set", wish))], kill
    )
    assert code == 0, output
    assert len(killed) == 2
    summary = folder.summary()
    metrics = folder.metrics()
    assert [line["round"] for line in metrics] == [1, 2, 3, 4, 5, 6]
    # Rounds end with the clients that are left: Flower starts no worker in a dead one's place.
    assert summary["failed"] >= 1
    assert 0 < 4 * 6 * 30 - summary["tokens"] <= 30 * summary["failed"]
    # The LLM is started again, and what it was asked meanwhile waits for it.
    assert summary["resolution"]["unresolved"] == 0
    last = metrics[-1]["resolution"]
    assert last["llm_accepted"] + last["llm_resampled"] > 0
