"""A SuperLink for one run: own folder, own port, mostly own Ray, gone with the run."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import httpx

from fedhlm_app.launch.app_folder import code_root
from fedhlm_app.launch.plain_python import scripts_for_ray
from fedhlm_app.launch.processes import LAUNCH_VARIABLE, end_all, free_port, start_guard
from fedhlm_app.settings import Settings
from fedhlm_app.settings.ray_cluster import joined
from fedhlm_app.settings.sources import without_settings

CONNECTION = "private"
"""Name of the SuperLink in its own Flower configuration."""

_START_SECONDS = 180.0
_RAY_TOKEN = "ray-token"


class LaunchError(RuntimeError):
    """A run could not be started or followed; the message says what happened."""


class PrivateSuperLink:
    """A SuperLink in simulation mode that serves one run; a context manager.

    Flower's own local SuperLink is a daemon on a fixed port that outlives the command and keeps
    the folder, environment and Ray cluster of its first call. This one has everything to itself.

    Its Ray, where it joins none, listens on loopback only and answers nobody without a token drawn
    for this launch: whoever reaches a Ray cluster as it comes may run any code in it. The token is
    in a file of mode 0600 in the launch's own folder (0700) and goes with it, so that no
    environment, log or run folder holds it.

    Parameters
    ----------
    log : Path
        File that receives what SuperLink, ServerApp and clients print.
    environ : Mapping[str, str]
        Environment to start from.
    """

    def __init__(self, log: Path, environ: Mapping[str, str]) -> None:
        self.log = log
        self.launch = uuid.uuid4().hex
        # Ray's sockets lie below this folder and a socket's path may have 107 characters:
        # a long TMPDIR would leave no room.
        parent = "/tmp" if os.access("/tmp", os.W_OK) else None
        self.folder = Path(tempfile.mkdtemp(prefix="fedhlm-", dir=parent))
        _write_private(self.folder / _RAY_TOKEN, secrets.token_hex(32))
        self.environ = self._environment(environ)
        self._process: subprocess.Popen[bytes] | None = None
        self._handle: IO[bytes] | None = None
        self._guard = start_guard(self.launch, str(self.folder))

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def exit_code(self) -> int | None:
        """Return the SuperLink's exit status if it has died, else None."""
        return None if self._process is None else self._process.poll()

    def close(self) -> None:
        """End every process of this launch and remove its folder."""
        try:
            if self._process is not None:
                end_all(self.launch)
                self._process.wait(timeout=60)
        finally:
            if self._handle is not None:
                self._handle.close()
            # The guard looks once more for processes and removes the folder.
            self._guard.communicate(timeout=60)

    def _start(self) -> None:
        work = self.folder / "work"
        work.mkdir()
        self._handle = self.log.open("ab")
        # The port is free when it is chosen but may be taken before it is used.
        for _ in range(3):
            port = free_port()
            self._process = subprocess.Popen(
                [
                    program("flower-superlink"),
                    "--insecure",
                    "--simulation",
                    "--host=127.0.0.1",
                    f"--port={port}",
                    "--disable-runtime-dependency-installation",
                ],
                cwd=work,
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=self._handle,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            if self._answers(port):
                self._write_connection(port)
                return
        raise LaunchError(
            f"Flower's SuperLink ended with status {self.exit_code()} before it was ready; "
            f"its log is {self.log}"
        )

    def _answers(self, port: int) -> bool:
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            if self.exit_code() is not None:
                return False
            try:
                reply = httpx.get(f"http://127.0.0.1:{port}/health", timeout=1.0, trust_env=False)
            except httpx.TransportError:
                time.sleep(0.05)
                continue
            if reply.is_success:
                return True
        raise LaunchError(
            f"Flower's SuperLink was not ready after {_START_SECONDS:.0f} s; its log is {self.log}"
        )

    def _write_connection(self, port: int) -> None:
        home = Path(self.environ["FLWR_HOME"])
        home.mkdir(exist_ok=True)
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\n'
            f'address = "127.0.0.1:{port}"\ninsecure = true\n',
            encoding="utf-8",
        )

    def _environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        # The run-config is complete: a variable must not override it a second time.
        kept = without_settings(environ, Settings.defaults())
        paths = [str(code_root()), *filter(None, [kept.get("PYTHONPATH")])]
        programs = [str(folder) for folder in scripts_for_ray(self.folder, _scripts())]
        ray = {} if joined(kept) else self._own_ray(kept)
        return (
            kept
            | ray
            | {
                LAUNCH_VARIABLE: self.launch,
                "FLWR_HOME": str(self.folder / "home"),
                "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
                "FLWR_DISABLE_UPDATE_CHECK": "1",
                "FLWR_TELEMETRY_ENABLED": "0",
                # Looking for a task once a second, as is usual, makes one short run wait for it.
                "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.3",
                "RAY_DEDUP_LOGS": "0",
                "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
                "PATH": os.pathsep.join([*programs, kept.get("PATH", os.defpath)]),
                "PYTHONPATH": os.pathsep.join(paths),
                "PYTHONUNBUFFERED": "1",
                # Loopback must not go through a proxy.
                "NO_PROXY": ",".join(filter(None, [kept.get("NO_PROXY"), "127.0.0.1,localhost"])),
            }
        )

    def _own_ray(self, kept: dict[str, str]) -> dict[str, str]:
        """Variables of the launch's own Ray; takes out of `kept` what would lead elsewhere."""
        # A token that is set here would be taken instead of the launch's own.
        for name in ("RAY_ADDRESS", "RAY_NAMESPACE", "RAY_JOB_ID", "RAY_AUTH_TOKEN"):
            kept.pop(name, None)
        return {
            "RAY_TMPDIR": str(self.folder),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.folder / _RAY_TOKEN),
            # Off, Ray's node has the address 127.0.0.1 on every system and listens nowhere else.
            # Flower hands `ray.init` no address, and Ray has no other variable for it.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            # Flower's actors have an environment of their own, so Ray could use none of these.
            "RAY_enable_worker_prestart": "0",
            "RAY_prestart_worker_first_driver": "0",
            # Actors without a GPU of their own may still use the one the settings name.
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        }


def program(name: str) -> str:
    """Return the path of one of Flower's commands in this Python's environment.

    Raises
    ------
    LaunchError
        When Flower is not installed beside this Python.
    """
    found = shutil.which(name, path=os.pathsep.join([str(_scripts()), os.environ.get("PATH", "")]))
    if found is None:
        raise LaunchError(f"the command {name!r} is missing: is flwr[simulation] installed?")
    return found


def _write_private(path: Path, text: str) -> None:
    """Write a file that only this user may read, from its first byte on."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as handle:
        handle.write(text)


def _scripts() -> Path:
    # Not resolved: in a virtual environment `python` is a link to the base interpreter.
    return Path(sys.executable).parent
