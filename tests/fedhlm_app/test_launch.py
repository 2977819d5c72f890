"""Launching: a private SuperLink, a truthful end, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from flwr.cli.config_utils import load_and_validate
from flwr.common.config import parse_config_args
from flwr.supercore.utils import simulation_config_from_json

from fedhlm_app.launch import Components, LaunchError, RunResult, launch, launcher, write_app
from fedhlm_app.launch.failure import last_errors
from fedhlm_app.launch.launcher import _federation, _result, _run_id
from fedhlm_app.launch.plain_python import SIMULATION, scripts_for_ray
from fedhlm_app.launch.processes import (
    LAUNCH_VARIABLE,
    PORTS,
    end_all,
    free_port,
    marked,
    start_guard,
)
from fedhlm_app.launch.stages import FIRST, STAGES, stage
from fedhlm_app.launch.superlink import PrivateSuperLink
from fedhlm_app.results.runs import RUN_FOLDER_VARIABLE, Progress, RunFolder, latest_run
from fedhlm_app.settings import Settings, SettingsError
from fedhlm_app.settings.ray_cluster import check_python, is_plain
from tests.fedhlm_app.launch_apps import summary

ROOT = Path(__file__).resolve().parents[2]
APPS = Components("tests.fedhlm_app.launch_apps:server", "tests.fedhlm_app.launch_apps:client")


def small(folder: Path, name: str = "well") -> Settings:
    return Settings.from_sources(
        {"name": name, "clients": 2, "clusters": 1, "rounds": 1, "run-dir": str(folder)}, {}
    )


def environment() -> dict[str, str]:
    # Ray's word for a cluster of its own; a setting in the environment must not come twice.
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "RAY_ADDRESS": "local",
        "FEDHLM_CLIENTS": "7",
    }


def test_the_written_app_is_one_that_flower_accepts(tmp_path: Path) -> None:
    changes = {"dataset": '/a b/it\'s "x".csv', "rounds": 3, "free-feedback": False, "gamma": 2.5}
    # At its default, and not as the preset has it.
    changes |= {"preset": "paper", "uncertainty": "closed-form"}
    settings = Settings.from_sources(changes, {}, tmp_path)
    app = write_app(tmp_path / "fedhlm", settings)
    config, _ = load_and_validate(app / "pyproject.toml", check_module=False)
    run_config = config["tool"]["flwr"]["app"]["config"]
    elsewhere = {"FEDHLM_PRESET": "u-hlm", "FEDHLM_GAMMA": "3"}
    assert Settings.from_run_config(run_config, elsewhere, Path("/elsewhere")) == settings
    assert config["tool"]["flwr"]["app"]["components"]["serverapp"] == "fedhlm_app.server_app:app"


def test_a_node_per_client_and_no_more_workers_than_clients(tmp_path: Path) -> None:
    settings = small(tmp_path).model_copy(update={"clients": 3, "workers": 8})
    words = parse_config_args([_federation(settings)])
    config = simulation_config_from_json({k.replace("-", "_"): v for k, v in words.items()})
    assert (config.num_supernodes, config.init_args_num_cpus) == (3, 3)
    assert config.client_resources_num_cpus == 1


def test_the_environment_is_the_runs_own(tmp_path: Path) -> None:
    superlink = PrivateSuperLink(tmp_path / "log", environment())
    try:
        environ = superlink.environ
        assert "RAY_ADDRESS" not in environ and "FEDHLM_CLIENTS" not in environ
        assert environ["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"
        assert environ["FLWR_HOME"].startswith(str(superlink.folder))
        # Ray appends some 66 characters to reach its sockets, of at most 107.
        assert len(environ["RAY_TMPDIR"]) + 66 < 107
    finally:
        superlink.close()
    assert not superlink.folder.exists()


def test_a_python_below_a_name_with_a_space_has_another_path_for_ray(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = tmp_path / "my files" / "venv"
    there.parent.mkdir()
    there.symlink_to(sys.prefix, target_is_directory=True)
    python = there / Path(sys.executable).relative_to(sys.prefix)
    says_where = tmp_path / "my files" / SIMULATION
    says_where.write_text("import sys; print(sys.executable, sys.prefix, *sys.argv[1:], sep='\\n')")
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr(sys, "prefix", str(there))
    with pytest.raises(SettingsError, match=r"my files.*move the virtual environment"):
        check_python()
    launch_folder = tmp_path / "launch"
    launch_folder.mkdir()
    programs, scripts = scripts_for_ray(launch_folder, says_where.parent)
    assert scripts == says_where.parent
    told = subprocess.run(
        [programs / SIMULATION, "a b"], capture_output=True, text=True, check=True
    )
    executable, prefix, word = told.stdout.splitlines()
    assert is_plain(executable) and Path(executable).samefile(python) and word == "a b"
    assert Path(prefix) == launch_folder / "python"


def test_run_number_from_flowers_words() -> None:
    assert _run_id("x\nSuccessfully started run 17 in federation @a/b\n") == "17"
    assert _run_id("Error: nothing") is None


def test_the_log_is_searched_for_what_went_wrong() -> None:
    log = (
        "INFO : fine\n\x1b[91mERROR \x1b[0m:     Simulation raised an exception\n"
        "Traceback (most recent call last):\n  File x\nValueError: dataset 'x': no such file\n"
        "\nDuring handling:\nclients.decoding.slm.ModelError: too long\nERROR :    Exit Code: 700\n"
    )
    expected = [
        "ValueError: dataset 'x': no such file",
        "clients.decoding.slm.ModelError: too long",
    ]
    assert last_errors(log) == expected
    assert last_errors(log, most=1) == expected[1:]
    assert last_errors("all is well") == []


def test_the_log_says_what_is_being_started() -> None:
    log, seen = "", []
    for line in (
        "Using SuperLink: private", "Successfully started run 17", "Starting Flower Simulation",
        "Run folder: /a", "The LLM is read this way: plainly", "Number of rounds: 3",
    ):  # fmt: skip
        log += f"INFO : {line}\n"
        seen.append(stage(log))
    assert len(set(seen)) == 6 and seen[0] == FIRST and seen[-1] == ""


def test_only_marked_processes_are_ended() -> None:
    launch_number = uuid.uuid4().hex
    sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    mine = subprocess.Popen(
        sleep, env={**os.environ, LAUNCH_VARIABLE: launch_number}, start_new_session=True
    )
    other = subprocess.Popen(sleep, env={**os.environ, LAUNCH_VARIABLE: uuid.uuid4().hex})
    try:
        assert [process.pid for process in marked(launch_number)] == [mine.pid]
        assert end_all(launch_number) == 1
        mine.wait(timeout=120)
        assert not psutil.pid_exists(mine.pid)
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_a_missing_file_is_refused_before_anything_starts(tmp_path: Path) -> None:
    settings = Settings.from_sources({"dataset": "gone.csv", "run-dir": "runs"}, {}, tmp_path)
    with pytest.raises(ValueError, match=r"gone\.csv"):
        launch(settings)
    assert list(tmp_path.iterdir()) == []


def test_a_flower_that_ends_without_a_word_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the disk is full, so that its log holds nothing."""
    (tmp_path / "work").mkdir()
    there = SimpleNamespace(folder=tmp_path, environ=dict(os.environ), exit_code=lambda: None)
    monkeypatch.setattr(launcher, "_flwr_run", lambda *_: ["sh", "-c", "exit 3"])
    with pytest.raises(LaunchError, match="it ended with status 3 and no word: is there room left"):
        launcher._follow(there, tmp_path, "", RunFolder(tmp_path), lambda _: None)  # type: ignore[arg-type]


def test_a_run_without_a_summary_has_not_succeeded(tmp_path: Path) -> None:
    folder = RunFolder.create(small(tmp_path), {})
    (folder.path / "flower.log").write_text("ValueError: so it was\n")
    result = _result(folder, "finished:completed", "", 1.0)
    assert not result.ok and result.details == "the run ended without a summary"
    assert result.errors == ("ValueError: so it was",)
    folder.write_summary(summary(small(tmp_path)))
    assert _result(folder, "finished:completed", "", 1.0).ok
    assert not _result(folder, "finished:failed", "x", 1.0).ok


def test_a_failed_run_that_wrote_a_summary_shows_it_and_its_cause(tmp_path: Path) -> None:
    folder = RunFolder.create(small(tmp_path), {})
    (folder.path / "flower.log").write_text("RunFailed: the LLM never answered\n")
    failed = summary(small(tmp_path)) | {"error": "the LLM never answered"}
    folder.write_summary(failed)
    result = _result(folder, "finished:failed", "x", 1.0)
    assert not result.ok and result.summary == failed
    assert result.details == "the LLM never answered"
    # Not if it is of an earlier end of a resumed run.
    stale = _result(folder, "finished:failed", "x", 1.0, before=failed)
    assert stale.summary is None and stale.details == "x"


def test_the_guard_cleans_up_when_its_launcher_dies(tmp_path: Path) -> None:
    number, folder = uuid.uuid4().hex, tmp_path / "scratch"
    folder.mkdir()
    guard = start_guard(number, str(folder))
    left = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)"],
        env={**os.environ, LAUNCH_VARIABLE: number},
    )
    assert guard.poll() is None and left.poll() is None
    assert guard.stdin is not None
    guard.stdin.close()
    assert left.wait(timeout=120) == -signal.SIGTERM
    assert guard.wait(timeout=120) == 0
    assert not folder.exists()


# ---- with a real Flower ----


def run(folder: Path, name: str, seen: list[Progress | str] | None = None) -> RunResult:
    listen: Any = (lambda _: None) if seen is None else seen.append
    return launch(small(folder, name), on_progress=listen, components=APPS, environ=environment())


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.timeout(1800)
def test_a_run_that_goes_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Progress | str] = []
    made: list[Path] = []
    make_folder = tempfile.mkdtemp

    def recorded(**options: Any) -> str:
        made.append(Path(make_folder(**options)))
        return str(made[-1])

    monkeypatch.setattr("fedhlm_app.launch.superlink.tempfile.mkdtemp", recorded)
    result = run(tmp_path, "well", seen)
    assert result.ok and result.status == "finished:completed" and result.errors == ()
    assert result.summary is not None and result.summary["clients"] == 2
    words = list(dict.fromkeys(one for one in seen if isinstance(one, str)))
    # The log is looked at now and then, so that a short stage may be missed.
    known = [FIRST, *(what for _, what in STAGES)]
    assert seen[0] == FIRST and words == [one for one in known if one in words]
    assert "handing the app to Flower" in words
    assert seen[-1] == {"round": 1, "rounds": 1, "counts": {"local": 2}}
    assert result.folder.config()["settings"]["clients"] == 2
    assert _processes_of(result.folder.path) == []
    assert made and not any(folder.exists() for folder in made)


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.timeout(1800)
def test_a_server_that_raises_is_a_failed_run_with_its_reason(tmp_path: Path) -> None:
    result = run(tmp_path, "raise")
    assert not result.ok and result.status == "finished:failed"
    assert "deliberate failure 1234" in result.details
    assert result.errors[-1] == "RuntimeError: deliberate failure 1234"


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.timeout(1800)
def test_an_interrupted_command_leaves_no_process(tmp_path: Path) -> None:
    program = (
        # A shell that starts tests in the background has them ignore SIGINT.
        "import signal, sys\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from pathlib import Path\nfrom tests.fedhlm_app import test_launch as t\n"
        "try:\n    t.run(Path(sys.argv[1]), 'hang')\nexcept KeyboardInterrupt:\n    sys.exit(130)\n"
    )
    command = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        folder = _wait_for_last_round(tmp_path, command)
        assert len(_processes_of(folder)) > 3
        command.send_signal(signal.SIGINT)
        command.wait(timeout=600)
    finally:
        command.kill()
    assert command.returncode == 130
    assert _processes_of(folder) == []


def _wait_for_last_round(directory: Path, command: subprocess.Popen[bytes]) -> Path:
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        assert command.poll() is None, "the command ended before its run did"
        folder = latest_run(directory)
        if folder is not None and folder.progress() is not None:
            return folder.path
        time.sleep(0.3)
    raise AssertionError("the run made no progress in 600 s")


def _processes_of(folder: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(RUN_FOLDER_VARIABLE) == str(folder):
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def test_free_ports_are_free() -> None:
    ports = {free_port() for _ in range(20)}
    assert len(ports) > 1 and ports <= set(PORTS)
