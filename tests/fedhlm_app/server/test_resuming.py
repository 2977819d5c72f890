"""`--resume`: what may change, what is refused, and that a refused run is left as it was."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedhlm_app.cli import app
from fedhlm_app.cli import app as commands
from fedhlm_app.cli import run as run_module
from fedhlm_app.cli.run import collect
from fedhlm_app.launch import RunResult
from fedhlm_app.results.runs import RunFolder
from fedhlm_app.server import checkpoint, resuming
from fedhlm_app.settings import Settings, SettingsError
from tests.fedhlm_app.launch_apps import summary

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def finished(tmp_path) -> RunFolder:
    """A finished run of 5 clients and 6 rounds."""
    settings = Settings.from_sources(
        {"run-dir": str(tmp_path / "runs"), "seed": 7, "clients": 5, "rounds": 6}, {}
    )
    folder = RunFolder.create(settings, {})
    checkpoint.save(folder.path, {"round": 6}, [0], checkpoint.Progress(Counter({"tokens": 5})))
    folder.append_metrics({"round": 6})
    folder.write_summary(summary(settings))
    (folder.path / "report.html").write_text("the report")
    return folder


@pytest.fixture
def launched(monkeypatch) -> list[Settings]:
    """Settings of the runs that were started; nothing is."""
    seen: list[Settings] = []

    def launch(settings: Settings, **_: object) -> RunResult:
        seen.append(settings)
        folder = RunFolder.create(settings, {})
        return RunResult(folder, "finished:completed", "", (), summary(settings), 1.0)

    monkeypatch.setattr(run_module, "launch", launch)
    monkeypatch.setenv("COLUMNS", "200")
    return seen


def contents(folder: RunFolder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.path.iterdir()}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("clients=8", "setting 'clients' = 8: the run in '{run}' has 5"),
        ("clusters=2", "setting 'clusters' = 2: the run in '{run}' has 4"),
        ("slm={folder}", "setting 'slm' = '{folder}': the run in '{run}' has 'builtin'"),
        ("dataset={folder}", "setting 'dataset' = '{folder}': the run in '{run}' has 'builtin'"),
        ("partition=dirichlet", "'partition' = 'dirichlet': the run in '{run}' has 'iid'"),
        ("seed=8", "setting 'seed' = 8: the run in '{run}' has 7"),
        ("workload=score", "'workload' = 'score': the run in '{run}' has 'generate'"),
        ("learning=balanced", 'rounds=6 learning="certified-high-probability"'),
        ("policy=always", "setting 'policy' = 'always': the run in '{run}' has 'threshold'"),
        ("fidelity-budget=0.1", "'fidelity-budget' = 0.1: the run in '{run}' has 0.05"),
        ("rounds=5", "setting 'rounds' = 5: the run in '{run}' has done 6; allowed: at least 6"),
    ],
)
def test_what_the_checkpoint_does_not_stand_for_is_refused(
    finished, launched, tmp_path, change, says
):
    before = contents(finished)
    places = {"run": finished.path, "folder": tmp_path}
    words = ["run", "--resume", str(finished.path), "--set", change.format(**places)]
    answer = CliRunner().invoke(app, words)
    assert answer.exit_code == 2, answer.output
    assert says.format(**places) in answer.stderr
    if not change.startswith("rounds"):
        assert "what may change when a run goes on: rounds, workers" in answer.stderr
        assert 'beside resume: preset="certified" seed=7 clients=5 rounds=6' in " ".join(
            answer.stderr.split()
        )
    assert launched == []
    assert contents(finished) == before


def test_more_rounds_go_on_and_keep_the_rest(finished, launched):
    before = contents(finished)
    words = ["run", "--resume", str(finished.path), "--rounds", "9", "--set", "llm-timeout=5"]
    answer = CliRunner().invoke(app, words)
    assert answer.exit_code == 0, answer.output
    (settings,) = launched
    assert (settings.seed, settings.clients, settings.rounds) == (7, 5, 9)
    assert settings.resume == str(finished.path)
    # Until the ServerApp has checked all it can, everything is as it was.
    assert contents(finished) == before


def test_a_finished_run_just_shows_its_result(finished, launched):
    before = contents(finished)
    answer = CliRunner().invoke(app, ["run", "--resume", str(finished.path)])
    assert answer.exit_code == 0, answer.output
    assert "transmission reduction" in answer.stdout
    assert launched == []
    assert contents(finished) == before


def test_a_folder_that_is_no_run_is_refused(launched, tmp_path):
    with pytest.raises(SettingsError, match="no run folder"):
        collect({"resume": str(tmp_path)}, [])
    with pytest.raises(SettingsError, match="resume"):
        collect({"resume": str(tmp_path / "gone")}, [])
    folder = RunFolder.create(Settings.from_sources({"run-dir": str(tmp_path)}, {}), {})
    answer = CliRunner().invoke(app, ["run", "--resume", str(folder.path)])
    assert answer.exit_code == 2 and "has no checkpoint.json" in answer.stderr


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("initial-treshold", 0.5, "unknown setting 'initial-treshold'; did you mean"),
        ("learning", "lamarck", "setting 'learning' = 'lamarck' is not allowed"),
    ],
)
def test_a_run_of_another_version_is_named(key, value, why, tmp_path):
    folder = RunFolder.create(Settings.from_sources({"run-dir": str(tmp_path)}, {}), {})
    config = folder.config()
    config["settings"][key] = value
    (folder.path / "config.json").write_text(json.dumps(config))
    for words in (["run", "--resume"], ["generate", "a", "--run"]):
        answer = CliRunner().invoke(app, [*words, str(folder.path)])
        (line,) = answer.stderr.splitlines()
        assert answer.exit_code == 2 and why in line
        assert f"'{folder.path / 'config.json'}' is of another version of fedhlm" in line


def test_help_and_docs_name_what_may_change():
    assert set(resuming.MAY_CHANGE) <= Settings.defaults().keys()
    help_text = commands.registered_commands[0].callback.__doc__
    docs = (ROOT / "docs" / "learning.md").read_text("utf-8")
    for text in (help_text, docs):
        part = re.search(r"May change[^:]*:(.*?)\. A", text, re.DOTALL)
        assert tuple(re.findall(r"`([a-z-]+)`", part[1])) == resuming.MAY_CHANGE
