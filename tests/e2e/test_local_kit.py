"""`deploy/local.sh` runs three rounds over TLS with authentication, and leaves nothing behind.

Its rounds are those of the same devices in one process.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from fedhlm_app.launch.app_folder import code_root
from fedhlm_app.launch.processes import LAUNCH_VARIABLE
from fedhlm_app.results.runs import latest_run
from fedhlm_app.settings.model import PLACES
from servers.access import DeviceTokens
from tests.checkout import checkout
from tests.e2e.test_deployment import learned
from tests.fedhlm_app.in_process import Runner
from tests.golden.recording import one_thread

pytestmark = [pytest.mark.slow, pytest.mark.e2e, pytest.mark.timeout(3000)]


def launched():
    """Processes that carry the mark of the script."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(LAUNCH_VARIABLE, "").startswith("local-"):
                found.append(process.pid)
        except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess, OSError):
            continue
    return set(found)


def test_the_kit_runs_three_rounds_and_stops_everything(tmp_path, monkeypatch):
    before = launched()
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("FEDHLM_", "RAY_", "FLWR_"))}
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        [str(checkout(tmp_path / "fedhlm") / "deploy" / "local.sh"), str(tmp_path / "kit")],
        env={**kept, "PATH": programs, "PYTHONPATH": str(code_root())},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=2400,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all went well" in done.stdout
    assert "the LLM server answered device-0, device-1, device-2, device-3" in done.stdout
    assert launched() <= before
    run = latest_run(tmp_path / "kit" / "runs")
    assert run is not None and (run.path / "report.html").is_file()
    apart = (*PLACES, "edge-addresses", "llm-address", "llm-ca-file", "llm-token-file")
    same = {key: value for key, value in run.config()["settings"].items() if key not in apart}
    with one_thread():
        _, simulated, _ = Runner(monkeypatch).run(tmp_path / "simulated", **same)
    assert learned(run) == learned(simulated)
    tokens = tmp_path / "kit" / "keys" / "devices"
    secrets = [(tokens / name / "token").read_text().strip() for name in os.listdir(tokens)]
    assert (
        len(secrets) == 5 == len(DeviceTokens(tmp_path / "kit" / "keys" / "devices.json").digests)
    )
    files = [*run.path.rglob("*"), *(tmp_path / "kit").glob("*.log")]
    for file in (one for one in files if one.is_file()):
        assert not [one for one in secrets if one.encode() in file.read_bytes()], file
