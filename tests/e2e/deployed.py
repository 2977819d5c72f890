"""Processes of a deployment: LLM server, serving devices, SuperLink, SuperNodes, on loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

from fedhlm_app.launch import write_app
from fedhlm_app.launch.app_folder import code_root
from fedhlm_app.launch.processes import LAUNCH_VARIABLE, end_all, free_port, marked, start_guard
from fedhlm_app.launch.superlink import program
from fedhlm_app.settings import Settings

PATIENCE = 300.0


class Deployment:
    """Processes of one deployment, all marked, all ended together.

    Parameters
    ----------
    folder : Path
        Of their logs and of Flower's home.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.launch = uuid.uuid4().hex
        self.environ = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("FEDHLM_", "RAY_"))},
            LAUNCH_VARIABLE: self.launch,
            "FLWR_HOME": str(folder / "home"),
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_TELEMETRY_ENABLED": "0",
            "NO_PROXY": "127.0.0.1,localhost",
            "OMP_NUM_THREADS": "1",
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PYTHONPATH": str(code_root()),
            "PYTHONUNBUFFERED": "1",
        }
        (folder / "home").mkdir()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *words: str) -> Path:
        """Start a process; its log."""
        log = self.folder / f"{name}.log"
        with log.open("ab") as output:
            self.processes[name] = subprocess.Popen(
                words,
                cwd=self.folder,
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return log

    def wait_for(self, what, name: str) -> None:
        """Wait until a check is true, while the process it is about lives."""
        deadline = time.monotonic() + PATIENCE
        while not what():
            assert self.processes[name].poll() is None, f"{name} has ended: {self.logs(name)}"
            assert time.monotonic() < deadline, f"{name} is not ready: {self.logs(name)}"
            time.sleep(0.2)

    def logs(self, *names: str) -> str:
        """The last lines of logs, for a failed assertion."""
        return "\n".join(
            f"--- {name}\n" + (self.folder / f"{name}.log").read_text(errors="replace")[-3000:]
            for name in names or self.processes
        )

    def flwr(self, *words: str, timeout: float = PATIENCE) -> str:
        """What one of Flower's commands prints."""
        done = subprocess.run(
            [program("flwr"), *words],
            cwd=self.folder,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        return done.stdout + done.stderr


@contextmanager
def deployment() -> Iterator[Deployment]:
    folder = Path(tempfile.mkdtemp(prefix="fedhlm-e2e-"))
    deployed = Deployment(folder)
    # It ends everything also when this process is killed.
    guard = start_guard(deployed.launch, str(folder))
    try:
        yield deployed
    finally:
        end_all(deployed.launch)
        left = marked(deployed.launch)
        guard.communicate(timeout=PATIENCE)
    assert left == []


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2, trust_env=False).is_success
    except httpx.TransportError:
        return False


def start_llm(deployed: Deployment, *words: str) -> Callable[[], str]:
    """Start the LLM server; what waits until it is ready and tells its address."""
    log = deployed.start(
        "llm", sys.executable, "-m", "fedhlm_app", "serve", "llm", "--port", "0", *words
    )

    def address() -> str:
        deployed.wait_for(lambda: b"serving builtin at" in log.read_bytes(), "llm")
        return log.read_text().partition("serving builtin at ")[2].split()[0]

    return address


def start_edge(deployed: Deployment, *words: str) -> Callable[[], str]:
    """Start an edge server; what waits until it is ready and tells its address."""
    log = deployed.start(
        "edge", sys.executable, "-m", "fedhlm_app", "serve", "edge", "--port", "0", *words
    )

    def address() -> str:
        deployed.wait_for(lambda: b"serving an edge at" in log.read_bytes(), "edge")
        return log.read_text().partition("serving an edge at ")[2].split()[0].rstrip(",")

    return address


def start_device(deployed: Deployment, llm_address: str, *words: str) -> Callable[[], str]:
    """Start a serving device; what waits until it is ready and tells its address."""
    log = deployed.start(
        "device", sys.executable, "-m", "fedhlm_app", "serve", "device", "--port", "0",
        "--llm-address", llm_address, *words,
    )  # fmt: skip

    def address() -> str:
        deployed.wait_for(lambda: b"serving device" in log.read_bytes(), "device")
        return log.read_text().partition(" at ")[2].split()[0]

    return address


def start_flower(deployed: Deployment, nodes: Sequence[str], plain: Sequence[int] = ()) -> int:
    """Start the SuperLink, whose port it returns, and SuperNodes of these node configs.

    Those with the numbers `plain` are Flower's own, which start a process for each message.
    """
    port = free_port()
    (deployed.folder / "home" / "config.toml").write_text(
        '[superlink]\ndefault = "lo"\n\n[superlink.lo]\n'
        f'address = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    start_superlink(deployed, port)
    for client, node_config in enumerate(nodes):
        start_supernode(deployed, client, port, node_config, client in plain)
    return port


def start_superlink(deployed: Deployment, port: int) -> None:
    """Start a SuperLink on the database of the one before, if there was one."""
    deployed.start(
        "superlink", program("flower-superlink"), "--insecure", "--host=127.0.0.1",
        f"--port={port}", "--database=superlink.db", "--disable-runtime-dependency-installation",
    )  # fmt: skip
    deployed.wait_for(lambda: answers(f"http://127.0.0.1:{port}/health"), "superlink")


def start_supernode(
    deployed: Deployment, client: int, port: int, node_config: str, plain: bool = False
) -> None:
    """Start a SuperNode, Flower's own where `plain`."""
    command = [sys.executable, "-m", "fedhlm_app", "serve", "supernode"]
    if plain:
        command = [program("flower-supernode"), f"--port={free_port()}"]
    deployed.start(
        f"supernode-{client}", *command, "--insecure", f"--superlink=127.0.0.1:{port}",
        f"--node-config={node_config}",
    )  # fmt: skip


def run_on(deployed: Deployment, settings: Settings) -> str:
    """`flwr run` to its end; Flower's own word on it, since its exit status is always 0."""
    app = write_app(deployed.folder / "fedhlm", settings)
    output = deployed.flwr("run", str(app), "lo", "--stream", timeout=2 * PATIENCE)
    (deployed.folder / "run.log").write_text(output)
    deadline = time.monotonic() + PATIENCE
    while True:
        listed = json.loads(deployed.flwr("list", "lo", "--format", "json").strip() or "{}")
        runs = listed.get("runs", [])
        if runs and runs[0]["status"].startswith("finished:"):
            return runs[0]["status"]
        assert time.monotonic() < deadline, output
        time.sleep(1)
