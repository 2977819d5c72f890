"""Runs on an existing Ray cluster: their own figures, and a cluster as it was before."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event

import pytest

from fedhlm_app.launch import launch
from fedhlm_app.launch.processes import free_port
from fedhlm_app.launch.superlink import program
from fedhlm_app.launch.turn import turn
from fedhlm_app.settings import Settings, SettingsError
from tests.e2e.test_deployment import SMALL, learned
from tests.fedhlm_app.in_process import Runner
from tests.golden.recording import one_thread

ROOT = Path(__file__).resolve().parents[2]

LOOK = """
import json, sys, time, ray
from ray.util import list_named_actors
ray.init(sys.argv[1], logging_level="error", log_to_driver=False)
until = time.monotonic() + 120  # Ray needs a moment to notice that a process has ended
while list_named_actors(all_namespaces=True) and time.monotonic() < until:
    time.sleep(0.2)
print(json.dumps([list_named_actors(all_namespaces=True), ray.cluster_resources()["CPU"]]))
"""


def environment(folder: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("FEDHLM_", "FLWR_", "RAY_"))}
    # Ray's node is 127.0.0.1, as in a run of its own.
    own = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_TMPDIR": folder, "OMP_NUM_THREADS": "1"}
    return {**kept, **own, "PYTHONPATH": str(ROOT)}


@pytest.fixture
def environ() -> Iterator[dict[str, str]]:
    """Environment that names a cluster with two CPUs."""
    # Ray's sockets lie below the folder, and a socket's path may have 107 characters.
    with TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as name:
        port, environ = free_port(), environment(name)
        words = [program("ray"), "start", "--head", "--block", f"--port={port}", "--num-cpus=2"]
        words += ["--node-ip-address=127.0.0.1", "--include-dashboard=false"]
        words += [f"--temp-dir={name}", "--disable-usage-stats"]
        with (Path(name) / "log").open("wb") as log:
            head = subprocess.Popen(words, env=environ, stdout=log, stderr=log)
        try:
            while "runtime started" not in (Path(name) / "log").read_text():
                assert head.poll() is None, (Path(name) / "log").read_text()
                time.sleep(0.2)
            yield environ | {"RAY_ADDRESS": f"127.0.0.1:{port}"}
            assert head.poll() is None
        finally:
            head.terminate()
            head.wait(timeout=120)


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.timeout(900)
def test_a_run_waits_for_its_turn_has_its_own_figures_and_leaves_nothing_on_the_cluster(
    environ: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with one_thread():
        _, own, _ = Runner(monkeypatch).run(tmp_path / "own", **SMALL)
    settings = Settings.from_sources({**SMALL, "run-dir": str(tmp_path / "joined")}, {})
    waits = Event()

    def listen(progress: object) -> None:
        if progress == "waiting for another run on this Ray cluster":
            waits.set()

    with ThreadPoolExecutor(1) as pool:
        with turn(environ, lambda _: None) as cluster:
            assert cluster is not None and cluster.nodes[0][0] == 2
            running = pool.submit(launch, settings, on_progress=listen, environ=environ)
            assert waits.wait(240)
            assert not (tmp_path / "joined").exists()
        result = running.result()
    assert result.ok, result.errors
    assert learned(result.folder) == learned(own)
    # What runs there then is what ran there before: nothing.
    look = [sys.executable, "-c", LOOK, environ["RAY_ADDRESS"]]
    told = subprocess.run(look, env=environ, capture_output=True, text=True, timeout=240)
    assert told.returncode == 0, told.stderr[-2000:]
    assert json.loads(told.stdout) == [[], 2.0]


def test_a_cluster_that_is_not_there_is_named_before_anything_starts(tmp_path: Path) -> None:
    settings = Settings.from_sources({"clients": 2, "clusters": 1, "run-dir": str(tmp_path / "r")})
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(SettingsError, match=f"RAY_ADDRESS = '{address}': no Ray cluster answers"):
        launch(settings, environ={**os.environ, "RAY_ADDRESS": address})
    assert not (tmp_path / "r").exists()
