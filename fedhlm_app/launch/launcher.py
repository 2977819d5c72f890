"""One run from start to end: start `flwr run`, follow it, and say truthfully how it ended."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedhlm_app.launch.app_folder import Components, write_app
from fedhlm_app.launch.failure import last_errors
from fedhlm_app.launch.stages import FIRST, stage
from fedhlm_app.launch.superlink import CONNECTION, LaunchError, PrivateSuperLink, program
from fedhlm_app.launch.turn import Cluster, turn
from fedhlm_app.results.at_work import at_work
from fedhlm_app.results.runs import RUN_FOLDER_VARIABLE, Progress, RunFolder, cores
from fedhlm_app.settings import Settings
from fedhlm_app.settings.ray_cluster import client_resources

Listener = Callable[[Progress | str], None]
"""Is told how far a run is, and before its first round in words what is being started."""

LOG = "flower.log"
"""What ServerApp and ClientApps print, as `flwr run --stream` gives it."""
SUPERLINK_LOG = "superlink.log"
_POLL_SECONDS = 0.1
_FINISHED = "finished:"


@dataclass(frozen=True)
class RunResult:
    """How a run ended."""

    folder: RunFolder
    status: str  # Flower's: finished:completed, finished:failed or finished:stopped
    details: str  # what Flower says about a failure; empty when there was none
    errors: tuple[str, ...]  # last lines of the log that name an error
    summary: dict[str, Any] | None  # the summary.json it wrote, if it did
    seconds: float  # wall clock, start and end of Flower and Ray included

    @property
    def ok(self) -> bool:
        """True when Flower says so and the run wrote its summary."""
        return self.status == "finished:completed" and self.summary is not None


class Interrupted(KeyboardInterrupt):
    """A launch was interrupted; every process of it has ended.

    Parameters
    ----------
    folder : RunFolder
        Of the run, to go on from.
    """

    def __init__(self, folder: RunFolder) -> None:
        super().__init__()
        self.folder = folder


def launch(
    settings: Settings,
    *,
    on_progress: Listener = lambda _: None,
    components: Components = Components(),  # noqa: B008
    environ: Mapping[str, str] | None = None,
) -> RunResult:
    """Run the app on a private local SuperLink and wait for its end.

    Its Ray is private too, unless the environment names a cluster (`RAY_ADDRESS`): the run joins
    that one when no other run has it, and leaves it as it was.

    Every process it starts is ended before it returns or raises, also on Ctrl-C.

    Parameters
    ----------
    settings : Settings
        All settings, paths absolute; checked against the disk before anything starts.
    on_progress : Listener
        Called about ten times a second.
    components : Components
        ServerApp and ClientApp.
    environ : Mapping[str, str] | None
        Environment; `os.environ` when None.

    Returns
    -------
    RunResult
        How it ended; a failed run is a result, not an exception.

    Raises
    ------
    SettingsError
        A file or folder in the settings does not exist, or no cluster at the address.
    LaunchError
        Flower could not be started, or stopped answering.
    Interrupted
        On Ctrl-C.
    """
    settings.check_paths()
    base = dict(os.environ if environ is None else environ)
    with turn(base, on_progress) as cluster:
        return _launch(settings, on_progress, components, base, cluster)


def _launch(
    settings: Settings,
    on_progress: Listener,
    components: Components,
    base: dict[str, str],
    cluster: Cluster | None,
) -> RunResult:
    federation = _federation(settings, cluster)
    started = time.monotonic()
    folder = RunFolder.create(settings, {})
    before = folder.summary()
    base[RUN_FOLDER_VARIABLE] = str(folder.path)
    if cluster is not None:
        base["RAY_ADDRESS"] = cluster.address
    try:
        on_progress(FIRST)
        log = folder.path / SUPERLINK_LOG
        with at_work(folder.path), PrivateSuperLink(log, base) as superlink:
            app = write_app(superlink.folder / "fedhlm", settings, components)
            run_id = _follow(superlink, app, federation, folder, on_progress)
            status, details = _status(superlink, run_id)
    except KeyboardInterrupt:
        raise Interrupted(folder) from None
    return _result(folder, status, details, time.monotonic() - started, before)


def _result(
    folder: RunFolder,
    status: str,
    details: str,
    seconds: float,
    before: dict[str, Any] | None = None,
) -> RunResult:
    """Judge a finished run by Flower's word and by what lies in its folder.

    A resumed run that fails leaves the summary of its earlier end, `before`, as it was.
    """
    completed = status == "finished:completed"
    summary = folder.summary()
    if completed and summary is not None:
        return RunResult(folder, status, details, (), summary, seconds)
    if summary is not None and summary != before and summary.get("error"):
        return RunResult(folder, status, summary["error"], (), summary, seconds)
    log = (folder.path / LOG).read_text("utf-8", errors="replace")
    reason = "the run ended without a summary" if completed else details
    return RunResult(folder, status, reason, tuple(last_errors(log)), None, seconds)


def _follow(
    superlink: PrivateSuperLink,
    app: Path,
    federation: str,
    folder: RunFolder,
    on_progress: Listener,
) -> str:
    """Start the run, report its progress until its log ends, and return its number."""
    output = folder.path / LOG
    # A resumed run adds to the log of the one it continues.
    before = output.stat().st_size if output.exists() else 0
    with output.open("ab") as handle:
        command = subprocess.Popen(
            _flwr_run(app, federation),
            cwd=superlink.folder / "work",
            env=superlink.environ,
            stdin=subprocess.DEVNULL,
            stdout=handle,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        starting = FIRST
        while command.poll() is None:
            _require_alive(superlink)
            starting = starting and stage(_new_text(output, before))
            # A resumed run has the progress of its earlier life until its rounds begin.
            on_progress(starting or folder.progress() or FIRST)
            time.sleep(_POLL_SECONDS)
    if (progress := folder.progress()) is not None:
        on_progress(progress)
    text = _new_text(output, before)
    if (run_id := _run_id(text)) is None:
        nothing = f"it ended with status {command.returncode} and no word: is there room left?"
        said = " ".join(text.split())[-600:] or nothing
        raise LaunchError(f"`flwr run` did not start the run: {said}")
    return run_id


def _new_text(log: Path, before: int) -> str:
    return log.read_bytes()[before:].decode("utf-8", errors="replace")


def _require_alive(superlink: PrivateSuperLink) -> None:
    if (code := superlink.exit_code()) is not None:
        raise LaunchError(
            f"Flower's SuperLink died with status {code} during the run; its log is {superlink.log}"
        )


def _flwr_run(app: Path, federation: str) -> list[str]:
    return [
        program("flwr"),
        "run",
        str(app),
        CONNECTION,
        "--stream",
        "--federation-config",
        federation,
    ]


def _federation(settings: Settings, cluster: Cluster | None = None) -> str:
    """Return the simulation's size: a SuperNode per client, a client process per worker."""
    if cluster is not None:
        # Ray is told of nothing more, as what a cluster has is its own affair.
        cpus, gpus = client_resources(settings, cluster.nodes)
        return (
            f"num-supernodes={settings.clients} client-resources-num-cpus={cpus} "
            f"client-resources-num-gpus={gpus}"
        )
    workers = min(settings.workers or cores(), settings.clients)
    # Flower counts whole CPUs; Ray may be told of more than there are.
    return (
        f"num-supernodes={settings.clients} client-resources-num-cpus=1 "
        f"client-resources-num-gpus=0.0 init-args-num-cpus={workers}"
    )


def _run_id(text: str) -> str | None:
    for line in text.splitlines():
        _, found, rest = line.partition("Successfully started run ")
        if found:
            return rest.split()[0]
    return None


def _status(superlink: PrivateSuperLink, run_id: str, patience: float = 180.0) -> tuple[str, str]:
    """Return Flower's own word on the run, as `flwr list` gives it: status and details.

    `flwr run` exits 0 whatever happened, so this is the only truth.
    """
    deadline = time.monotonic() + patience
    while True:
        _require_alive(superlink)
        answer = subprocess.run(
            [program("flwr"), "list", CONNECTION, "--run-id", run_id, "--format", "json"],
            cwd=superlink.folder / "work",
            env=superlink.environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=patience,
            check=False,
        )
        found = json.loads(answer.stdout or "{}")
        runs = found.get("runs", [])
        if runs and runs[0]["status"].startswith(_FINISHED):
            details = runs[0]["status-details"]
            return runs[0]["status"], "" if details == "N/A" else details
        if time.monotonic() > deadline:
            raise LaunchError(
                f"Flower's word on run {run_id} did not come: "
                + (answer.stderr or answer.stdout).strip()[-400:]
            )
        time.sleep(1.0)
