"""Whole runs with real processes: Flower, Ray, client processes and the LLM actor."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from fedhlm_app.launch.superlink import CONNECTION, PrivateSuperLink, program
from fedhlm_app.results.runs import RunFolder, latest_run
from fedhlm_app.results.summary import check_summary
from tests.checkout import checkout
from tests.fedhlm_app.in_process import Runner
from tests.golden.recording import one_thread

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(800)]

SMALL = [
    "--preset", "certified", "--clients", "4", "--set", "clusters=2", "--set", "evaluate-every=2",
]  # fmt: skip

IN_PROCESS = {"tokens-per-round": 30, "tokens-per-prompt": 10, "evaluate-every": 2}
"""What `SMALL` leaves at its default and the runner of one process does not."""


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


def plain_flwr_run(folder: Path, settings: str) -> RunFolder:
    """`flwr run .` in a checkout, with a SuperLink of the test's own."""
    folder.mkdir()
    app = checkout(folder / "fedhlm")
    with PrivateSuperLink(folder / "superlink.log", dict(os.environ)) as superlink:
        done = subprocess.run(
            [
                program("flwr"), "run", str(app), CONNECTION, "--stream",
                "--run-config", f'{settings} run-dir="{folder}"',
                "--federation-config",
                "num-supernodes=4 client-resources-num-cpus=1 init-args-num-cpus=2",
            ],
            cwd=superlink.folder / "work",
            env=superlink.environ,
            capture_output=True,
            text=True,
            timeout=300,
            check=True,
        )  # fmt: skip
    found = latest_run(folder)
    # It exits 0 whatever happened.
    assert found is not None and found.summary() is not None, done.stdout[-5000:]
    for words in (f"Run folder: {found.path}", "Round 2/2: 120 tokens", "transmission reduction"):
        assert words in done.stdout
    return found


def test_plain_flwr_run_with_streams_gives_the_run_of_one_process(tmp_path, monkeypatch):
    found = plain_flwr_run(
        tmp_path / "flwr",
        'clients=4 clusters=2 evaluate-every=2 rounds=2 escalation="span" learning="balanced" '
        "initial-threshold=0.7",
    )
    assert (found.path / "report.html").stat().st_size > 5000
    changes = {"escalation": "span", "learning": "balanced", "initial-threshold": 0.7}
    with one_thread():
        _, here, _ = Runner(monkeypatch).run(tmp_path, **IN_PROCESS, **changes)
    assert check_summary(found.summary()).tokens == 4 * 2 * 30
    assert len(found.metrics()) == 2
    first, second = comparable(here), comparable(found)
    assert first == second
    assert first["resolution"]["unresolved"] == 0
    assert first["exchanges"]["streams"] > 0
    # Text, and what was learned from it.
    assert 0 < first["threshold"]["global"] != 0.7


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
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            found = latest_run(folder)
            progress = None if found is None else found.progress()
            if progress and progress["round"] >= 1:
                break
            time.sleep(0.1)
        else:
            pytest.fail("no first round within 300 s")
        act(process.pid)
        output, _ = process.communicate(timeout=300)
    finally:
        process.kill()
    found = latest_run(folder)
    assert found is not None
    return process.returncode, output, found


def ray_processes(root: int, title: str) -> list[psutil.Process]:
    """Processes of Ray actors that belong to a run, by the name Ray gives them."""
    launched = psutil.Process(root).children(recursive=True)
    return [process for process in launched if title in " ".join(process.cmdline())]


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


def test_a_failed_run_exits_with_an_error(tmp_path):
    done = subprocess.run(
        command(tmp_path, "--rounds", "1", "--set", "dataset=/no/such/file.csv"),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert "/no/such/file.csv" in done.stderr
    assert latest_run(tmp_path) is None
