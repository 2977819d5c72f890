"""What the command line shows without a run: completion, suggestions, settings, runs."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import typer
from typer.testing import CliRunner

from fedhlm_app.cli import app
from fedhlm_app.cli.completing import settings_keys
from fedhlm_app.cli.lazy import LazyCommand
from fedhlm_app.results.at_work import at_work, is_at_work
from fedhlm_app.results.runs import RUN_FOLDER_VARIABLE, RunFolder
from fedhlm_app.results.summary import STAGES
from fedhlm_app.settings import Settings, SettingsError
from tests.fedhlm_app.launch_apps import summary

ROOT = Path(__file__).resolve().parents[2]


def completions(words: str, shell: str = "bash") -> str:
    """What the shell is told for the last of these words."""
    program = "import sys; sys.argv = ['fedhlm']; from fedhlm_app.cli import main; main()"
    environ = {
        **os.environ,
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
        "_TYPER_COMPLETE_ARGS": words,
        "_FEDHLM_COMPLETE": f"complete_{shell}",
    }
    answer = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.stderr == ""
    return answer.stdout


def test_a_shell_completes_commands_and_keys() -> None:
    assert completions("fedhlm sw").split() == ["sweep"]
    assert completions("fedhlm serve dev").split() == ["device"]
    assert completions("fedhlm run --set decod").split() == ["decoding="]
    assert "decoding=sampled" in completions("fedhlm run --set decoding=", "zsh")
    assert [key for key, _ in settings_keys("learning=prim")] == ["learning=primal-dual"]
    assert settings_keys("nowhere=") == settings_keys("seed=") == []


def test_completion_is_offered_where_it_works(fedhlm: Any) -> None:
    # The tests are not the command `fedhlm`, and below the top it would be installed for nothing.
    for words in ([], ["pair"], ["sweep"], ["serve"], ["compare"], ["estimate"]):
        assert "--install-completion" not in fedhlm(*words, "--help").stdout


@pytest.mark.parametrize(
    "words",
    [["runn"], ["generat"], ["pair", "trian"], ["serve", "devise"], ["run", "--clinets", "3"]],
)
def test_a_near_name_is_suggested_once(fedhlm: Any, words: list[str]) -> None:
    answer = fedhlm(*words)
    assert answer.exit_code == 2 and answer.stderr.count("Did you mean") == 1


def test_help_of_every_command_is_whole_at_80_columns(
    fedhlm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")

    def walk(words: list[str], command: click.Command) -> list[list[str]]:
        if isinstance(command, LazyCommand):
            module, _, attribute = command.target.partition(":")
            command = typer.main.get_command(getattr(importlib.import_module(module), attribute))
        if not isinstance(command, click.Group):
            return [words]
        context, found = click.Context(command), [words]
        for name in command.list_commands(context):
            if (child := command.get_command(context, name)) is not None:
                found += walk([*words, name], child)
        return found

    commands = walk([], typer.main.get_command(app))
    assert ["pair", "train"] in commands and len(commands) > 30
    cut = {" ".join(words) for words in commands if "…" in fedhlm(*words, "--help").stdout}
    assert cut == set()


def test_settings_are_searched_in_names_and_meanings(
    fedhlm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    table = fedhlm("settings", "Cluster").stdout
    assert "recluster-every" in table and "inter-cluster" in table and "seed" not in table
    assert max(map(len, table.splitlines())) <= 80
    answer = fedhlm("settings", "blah")
    assert answer.exit_code == 2 and "'blah'" in answer.stderr
    assert "did you mean 'dataset'?" in fedhlm("settings", "datasset").stderr


def test_runs_are_listed_newest_first(
    fedhlm: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    answer = fedhlm("list")
    assert answer.exit_code == 2 and "no run in runs" in answer.stderr
    states = ("one", {}), ("two", {"error": "the LLM never answered"}), ("three", None)
    for name, ending in states:
        path = tmp_path / "runs" / f"2026-01-0{len(name)}T00-00-00Z-{name}"
        settings = Settings.from_sources({"name": name, "rounds": 7}, {})
        folder = RunFolder.create(settings, {RUN_FOLDER_VARIABLE: str(path)})
        folder.write_progress(4, 7, dict.fromkeys(STAGES, 0) | {"local": 250, "llm_accepted": 750})
        if ending is not None:
            folder.write_summary(summary(settings) | ending)
    broken = tmp_path / "runs" / "2025-broken"
    broken.mkdir()
    (broken / "config.json").write_text("{")
    lines = fedhlm("list").stdout.splitlines()
    assert [line.split()[:-2] for line in lines[1:4]] == [
        ["2026-01-05T00-00-00Z-three", "unfinished", "4/7", "1,000", "25.0%"],
        ["2026-01-03T00-00-00Z-two", "failed", "4/7", "1,000", "25.0%", "10.0%"],
        ["2026-01-03T00-00-00Z-one", "completed", "4/7", "1,000", "25.0%", "10.0%"],
    ]
    assert lines[4].split() == ["2025-broken", "unreadable"]
    assert max(map(len, lines)) <= 80
    told = json.loads(fedhlm("list", "--json").stdout)
    assert [one["state"] for one in told] == ["unfinished", "failed", "completed", "unreadable"]
    assert (told[1]["round"], told[1]["kept"], told[1]["kept_and_wrong"]) == (4, 0.25, 0.1)
    # A long name costs no figure.
    (tmp_path / "runs/2026-01-03T00-00-00Z-one").rename(tmp_path / "runs" / f"2024-{'long' * 20}")
    lines = fedhlm("list").stdout.splitlines()
    told = " ".join(" ".join(lines).split())
    assert max(map(len, lines)) <= 80 and "completed 4/7 1,000 25.0% 10.0%" in told
    monkeypatch.setenv("COLUMNS", "40")
    narrow = fedhlm("list", "runs").stdout
    assert all(word in narrow for word in ("-three", "-two", "1,000", "25.0%", "unfinished"))
    # Whoever marked it, as a ServerApp of plain `flwr run`, and wherever it lies by now.
    words = f"import sys\nfrom pathlib import Path\nfrom {at_work.__module__} import at_work\n"
    words += "with at_work(Path(sys.argv[1])):\n    print('now', flush=True)\n    input()"
    command = [sys.executable, "-c", words, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline()
        path = path.rename(tmp_path / "runs" / "moved")
        states = {
            Path(one["run"]).name: one["state"]
            for one in json.loads(fedhlm("list", "--json").stdout)
        }
        assert states.pop("moved") == "running" and "running" not in states.values()
        answer = fedhlm("run", "--resume", str(path))
        assert answer.exit_code == 2 and "a run is at work there" in answer.stderr
        with pytest.raises(SettingsError, match="at work there"), at_work(path):
            pass
        with at_work(path, launched=True):  # its own ServerApp
            process.kill()
            process.wait()
            assert is_at_work(path)
    assert not is_at_work(path)


@pytest.mark.parametrize(
    "words",
    [
        ["trace", "--out"],
        ["replay", "no.parquet", "--json"],
        ["pipeline", "run", "--json"],
        ["compare", "--json"],
        ["compare", "--csv"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize(
    ("place", "why"),
    [(".", ". is a folder; allowed is a file"), ("missing/x", "there is no folder missing")],
)
def test_a_file_that_cannot_be_written_is_refused_before_any_work(words, place, why, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    answer = CliRunner().invoke(app, [*words, place])
    assert answer.exit_code == 2
    assert why in answer.stderr and f"'{words[-1]}'" in answer.stderr
