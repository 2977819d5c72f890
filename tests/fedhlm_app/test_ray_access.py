"""Who may use the Ray cluster of a run: the run alone, and from this machine alone."""

from __future__ import annotations

import ipaddress
import os
import stat
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from fedhlm_app.launch import Components, LaunchError, launch
from fedhlm_app.launch.processes import LAUNCH_VARIABLE, marked
from fedhlm_app.launch.superlink import PrivateSuperLink
from fedhlm_app.results.runs import Progress
from fedhlm_app.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
APPS = Components("tests.fedhlm_app.launch_apps:server", "tests.fedhlm_app.launch_apps:client")

# A foreign process: joins the cluster at an address and runs code there.
OUTSIDER = """
import sys
import ray
ray.init(address=sys.argv[1], logging_level="error")
@ray.remote(num_cpus=0)
def code():
    return "ran in the cluster"
print(ray.get(code.remote(), timeout=600))
"""


def test_each_launch_has_a_token_of_its_own_that_only_its_user_can_read(tmp_path: Path) -> None:
    tokens = set()
    for number in range(2):
        superlink = PrivateSuperLink(
            tmp_path / f"log{number}", {"RAY_AUTH_TOKEN": "known", "RAY_AUTH_MODE": "disabled"}
        )
        try:
            environ = superlink.environ
            path = Path(environ["RAY_AUTH_TOKEN_PATH"])
            assert environ["RAY_AUTH_MODE"] == "token" and "RAY_AUTH_TOKEN" not in environ
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert stat.S_IMODE(superlink.folder.stat().st_mode) == 0o700
            assert path.parent == superlink.folder
            token = path.read_text()
            assert len(token) == 64 and token not in "\n".join(environ.values())
            tokens.add(token)
        finally:
            superlink.close()
        assert not path.exists()
    assert len(tokens) == 2


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.timeout(1800)
def test_an_outsider_cannot_use_the_ray_of_a_run_and_a_dead_superlink_is_noticed(
    tmp_path: Path,
) -> None:
    numbers: list[str] = []
    settings = Settings.from_sources(
        {"name": "hang", "clients": 2, "clusters": 1, "rounds": 1, "run-dir": str(tmp_path)}, {}
    )

    def look(progress: Progress | str) -> None:
        if isinstance(progress, str) or numbers:
            return
        environ = _environment_of_the_run(tmp_path)
        sockets = _listening(environ[LAUNCH_VARIABLE])
        assert {"raylet", "gcs_server", "flower-superlin"} <= {name for name, _, _ in sockets}
        assert [found for found in sockets if not ipaddress.ip_address(found[1]).is_loopback] == []
        port = next(port for name, _, port in sockets if name == "gcs_server")
        token = Path(environ["RAY_AUTH_TOKEN_PATH"])

        without, wrong, allowed = _outsiders(
            port,
            {"RAY_AUTH_MODE": "disabled"},
            {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64},
            {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)},
        )
        for status, output in (without, wrong):
            assert status != 0 and "ran in the cluster" not in output
            assert "AuthenticationError" in output, output[-2000:]
        # The same program gets in with the token, so it was the token that kept it out.
        assert allowed[0] == 0 and "ran in the cluster" in allowed[1], allowed[1][-2000:]

        written = [p for p in (*token.parent.rglob("*"), *tmp_path.rglob("*")) if p.is_file()]
        secret = token.read_bytes()
        assert len(written) > 10
        assert [path for path in written if path != token and secret in path.read_bytes()] == []
        numbers.append(environ[LAUNCH_VARIABLE])
        for process in marked(numbers[0]):
            with suppress(psutil.NoSuchProcess):
                if process.name() == "flower-superlin":
                    process.kill()

    # A run whose SuperLink dies ends by saying so, with no process left.
    with pytest.raises(LaunchError, match="SuperLink died with status -9"):
        launch(
            settings,
            on_progress=look,
            components=APPS,
            environ={**os.environ, "PYTHONPATH": str(ROOT)},
        )
    assert marked(numbers[0]) == []


def _environment_of_the_run(directory: Path) -> dict[str, str]:
    """The environment of the raylet whose run lies in this directory."""
    for process in psutil.process_iter(["name"]):
        # Other tests' come and go.
        with suppress(psutil.Error, OSError):
            environ = process.environ() if process.info["name"] == "raylet" else {}
            if environ.get("FEDHLM_RUN_FOLDER", "").startswith(str(directory)):
                return environ
    raise AssertionError("the run has no raylet")


def _listening(launch_number: str) -> list[tuple[str, str, int]]:
    """Name, address and port of all TCP sockets on which processes of a launch listen."""
    found = []
    for process in marked(launch_number):
        with suppress(psutil.NoSuchProcess):  # Ray ends workers that it does not need
            for socket in process.net_connections("tcp"):
                if socket.status == psutil.CONN_LISTEN:
                    address = socket.laddr.ip.removeprefix("::ffff:")
                    found.append((process.name(), address, socket.laddr.port))
    return found


def _outsiders(port: int, *auths: dict[str, str]) -> list[tuple[int, str]]:
    """Exit status and output of foreign processes, one for each way to authenticate, at once."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    # Ray takes 127.0.0.1 for the machine's address in the network otherwise; one try is enough.
    environ |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_NUM_REDIS_GET_RETRIES": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", OUTSIDER, f"127.0.0.1:{port}"],
            env=environ | auth,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for auth in auths
    ]
    try:
        outputs = [process.communicate(timeout=600)[0] for process in processes]
        return [(p.returncode, output) for p, output in zip(processes, outputs, strict=True)]
    finally:
        for process in processes:
            process.kill()
