"""A SuperNode and a SuperLink are killed in the midst of a run, and come back: nothing is lost."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from fedhlm_app.hosting.llm import build_service
from fedhlm_app.launch import write_app
from fedhlm_app.results.runs import RunFolder, latest_run
from fedhlm_app.settings import Settings
from tests.e2e.deployed import (
    Deployment,
    deployment,
    run_on,
    start_flower,
    start_superlink,
    start_supernode,
)
from tests.served import serving

pytestmark = [pytest.mark.slow, pytest.mark.e2e, pytest.mark.timeout(2400)]

CLIENTS, TOKENS, PATIENCE = 2, 12, 1000
RUN = {
    "clients": CLIENTS, "min-clients": 1, "clusters": 1, "rounds": 2000, "tokens-per-round": TOKENS,
    "tokens-per-prompt": 6, "evaluate-every": 0, "learning": "balanced", "escalation": "token",
    "initial-threshold": 0.3, "seed": 3,
}  # fmt: skip


def kill(deployed: Deployment, name: str) -> None:
    """End a process at once, as a power cut does."""
    os.kill(deployed.processes[name].pid, signal.SIGKILL)
    deployed.processes[name].wait()


def rounds_of(folder: RunFolder | None) -> list[dict]:
    return [] if folder is None else folder.metrics()


def wait_for(runs: Path, what) -> list[dict]:
    """Wait until the rounds of the one run are as wanted."""
    deadline = time.monotonic() + PATIENCE
    while not what(found := rounds_of(latest_run(runs))):
        assert time.monotonic() < deadline, found[-1:]
        time.sleep(0.2)
    return found


def test_supernode_and_superlink_are_killed_and_come_back(tmp_path):
    runs = tmp_path / "runs"
    service = build_service(Settings.from_sources({}, environ={}))
    # Rounds that nobody looks at, while Flower notices who is gone, take time and no processor.
    service.engine.pace = 0.2
    with serving(service) as (llm, _), deployment() as deployed:
        nodes = [f"partition-id={number} num-partitions={CLIENTS}" for number in range(CLIENTS)]
        port = start_flower(deployed, nodes)
        words = {**RUN, "run-dir": str(runs), "llm-address": f"127.0.0.1:{llm}"}
        first = Settings.from_sources(words, environ={})
        app = write_app(deployed.folder / "first" / "fedhlm", first)
        deployed.flwr("run", str(app), "lo")

        wait_for(runs, lambda rounds: len(rounds) >= 2)
        kill(deployed, "supernode-1")
        start_supernode(deployed, 1, port, nodes[1])
        before = len(rounds_of(latest_run(runs)))
        back = wait_for(
            runs,
            lambda rounds: (
                any(line["replies"] < CLIENTS for line in rounds[before:])
                and rounds[-1]["replies"] == CLIENTS
            ),
        )

        kill(deployed, "superlink")
        start_superlink(deployed, port)
        cut = latest_run(runs)
        assert cut is not None
        words |= {"resume": str(cut.path), "rounds": len(cut.metrics()) + 3}
        settings = Settings.from_sources(words, environ={})
        assert run_on(deployed, settings) == "finished:completed", deployed.logs("superlink", "run")
    rounds = cut.metrics()
    assert [line["round"] for line in rounds] == list(range(1, words["rounds"] + 1))
    # What the last of them left may not have been written down yet.
    assert rounds[: len(back) - 1] == back[:-1]
    assert [line["replies"] for line in rounds[-2:]] == [CLIENTS] * 2
    assert all(line["tokens"] == TOKENS * line["replies"] for line in rounds)
    assert not any(line["unresolved"] for line in rounds)
