"""The ServerApp as plain `flwr run` calls it: where it writes, and what its log shows."""

from __future__ import annotations

import math
import re
from logging import INFO
from pathlib import Path

import pytest
from flwr.app import Context, RecordDict
from flwr.common.config import parse_config_args
from flwr.supercore.task_identity import TaskIdentity

from fedhlm_app import server_app
from fedhlm_app.client import rounds as client_rounds
from fedhlm_app.hosting.llm import build_service
from fedhlm_app.learning.rules import sums_rule
from fedhlm_app.results.runs import latest_run, runs_base
from fedhlm_app.results.unresolved import RunFailed
from fedhlm_app.settings import Settings
from strategies.records import RoundFailed
from tests.fedhlm_app.in_process import LocalGrid, settings_of
from tests.served import serving

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def places(tmp_path, monkeypatch, caplog) -> tuple[Path, Path]:
    """A home folder, and the one that some SuperLink was started in."""
    home, elsewhere = tmp_path / "home", tmp_path / "superlink"
    for folder in (home, elsewhere):
        folder.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(elsewhere)
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
    client_rounds._device.cache_clear()
    # A replay in the same process lets only warnings through.
    caplog.set_level(INFO, "flwr")
    return home, elsewhere


def run(**changes) -> None:
    """`main` with a run-config as Flower fuses it, clients in this process, the LLM at a port."""
    settings = settings_of(clients=2, clusters=1, learning="balanced", **changes)
    with serving(build_service(settings)) as (port, _):
        address = {"llm-address": f"127.0.0.1:{port}"}
        given = settings.changed() | address
        for path in ("run-dir", "resume"):
            given.pop(path, None)
        given |= {key.replace("_", "-"): v for key, v in changes.items() if "-" not in key}
        config = Settings.defaults() | given
        grid = LocalGrid(Settings.from_run_config(config, {}), None)
        server_app.app(grid, Context(1, 1, {}, RecordDict(), config))


def test_a_relative_run_dir_lies_in_the_home_folder_and_the_log_shows_the_run(places, caplog):
    home, elsewhere = places
    run(run_dir="mine")
    folder = latest_run(home / "fedhlm" / "mine")
    assert folder is not None and folder.summary() is not None
    assert list(elsewhere.iterdir()) == []
    lines = [record.getMessage() for record in caplog.records if record.name == "flwr"]
    assert lines[0] == f"Run folder: {folder.path}"
    assert any(line.startswith("Round 1/2: 40 tokens of 2 clients, ") for line in lines)
    result = lines[lines.index("Result") :]
    assert any("transmission reduction" in line for line in result)
    assert result[-1] == f"Run folder: {folder.path}"
    # Resumed with no round left it shows the same, and writes nothing.
    before = {path.name: path.read_bytes() for path in folder.path.iterdir() if path.is_file()}
    caplog.clear()
    run(run_dir="mine", resume=f"mine/{folder.path.name}")
    again = [record.getMessage() for record in caplog.records if record.name == "flwr"]
    assert again == result
    after = {path.name: path.read_bytes() for path in folder.path.iterdir() if path.is_file()}
    assert after == before
    folder.write_summary({**folder.summary(), "error": "the LLM never answered"})
    with pytest.raises(RunFailed, match="never answered"):
        run(run_dir="mine", resume=f"mine/{folder.path.name}")


def documented_runs() -> list[str]:
    """The run-configs of every `flwr run` in the documentation."""
    found = []
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = path.read_text("utf-8").replace("\\\n", " ")
        found += re.findall(r"^flwr run .*--run-config '([^']*)'", text, re.MULTILINE)
    return found


@pytest.mark.parametrize("words", documented_runs())
def test_a_documented_run_can_end_with_a_threshold_that_keeps_something(words):
    settings = Settings.from_run_config(parse_config_args([words]), {})
    if settings.learning.startswith("certified"):
        # A bet cannot be won on fewer prompts, however good the drafts.
        prompts = settings.clients * settings.rounds * sums_rule(settings).prompts
        least = math.log(1 / settings.confidence) / settings.fidelity_budget
        assert prompts > least


def test_a_run_that_breaks_leaves_a_report_that_says_why(places, monkeypatch):
    def broken(self, grid):
        raise RoundFailed("no usable reply")

    monkeypatch.setattr(server_app.Federation, "run", broken)
    with pytest.raises(RoundFailed):
        run(run_dir="mine")
    folder = latest_run(places[0] / "fedhlm" / "mine")
    assert folder.failure() == "RoundFailed: no usable reply" and folder.summary() is None
    assert "RoundFailed: no usable reply" in (folder.path / "report.html").read_text("utf-8")


def test_without_a_home_folder_relative_ones_start_here(places, monkeypatch):
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nowhere)
    assert runs_base() == places[1]
