"""Tables of the command line fit 80 columns whatever is in them: sweeps, token logs, lists."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fedhlm_app.cli.sweep import _print
from fedhlm_app.results.runs import RunFolder
from fedhlm_app.results.token_log import TokenLog
from fedhlm_app.settings import Settings
from fedhlm_app.sweep.runner import FIGURES

LONG = {
    "learning": "certified-high-probability",
    "personalisation": "cluster",
    "strategy": "fedavg",
}


@pytest.mark.parametrize("settings", [{"seed": "1"}, LONG])
def test_a_sweep_fits_80_columns_and_loses_nothing(settings: dict[str, str]) -> None:
    rows = [{**settings, **dict.fromkeys(FIGURES, 0.123456)} for _ in range(2)]
    console = Console(file=io.StringIO(), width=80)
    _print(console, rows, [settings] * 2)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, text.splitlines())) <= 80 and "…" not in text
    words = text.split()
    assert all(word in words for word in settings.values())
    assert words.count("12.3%") == 10 and words.count("0.1235") == 10
    # Where settings take the width, rows of all blocks are known by their number.
    assert ("2" in words) == (settings is LONG)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder.create(Settings.from_sources({"run-dir": str(tmp_path / "runs")}, {}), {})
    with TokenLog(folder) as log:
        for number in (1, 2):
            log.append(
                {
                    "round": [number] * 3, "client": [0, 0, 1], "cluster": [0] * 3,
                    "prompt": [1234] * 3, "position": [0, 1, 0],
                    "stage": ["local", "edge", "llm_resampled"],
                    "uncertainty": [0.25, 0.75, 0.5], "beta": [None, 1.0, 0.5],
                    "text": [" it", "\x1b[31m\nred", "supercalifragilisticexpialidocious"],
                    "before": [None] * 3,
                }
            )  # fmt: skip
            log.end_round(number)
    return folder


def test_tokens_are_shown_filtered_and_fit_80_columns(
    fedhlm: Any, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = fedhlm("tokens").stdout
    assert max(map(len, text.splitlines())) <= 80 and "\x1b" not in text
    assert "6 tokens" in text and text.count("from neighbouring clusters") == 3
    assert "mean uncertainty 0.750" in text
    lines = fedhlm("tokens", str(run.path), "--round", "2", "--client", "0", "--limit", "1").stdout
    assert "2 tokens" in lines and "1 more row" in lines
    rows = [
        json.loads(line) for line in fedhlm("tokens", "--json", "-s", "edge").stdout.splitlines()
    ]
    assert [(row["round"], row["stage"], row["text"]) for row in rows] == [
        (1, "edge", "\x1b[31m\nred"), (2, "edge", "\x1b[31m\nred"),
    ]  # fmt: skip
    table = list(csv.DictReader(io.StringIO(fedhlm("tokens", "--csv").stdout)))
    assert len(table) == 6 and table[0]["stage"] == "local" and table[0]["beta"] == ""
    wrong = fedhlm("tokens", "--stage", "cloud")
    assert wrong.exit_code == 2 and "must be one of local, cache" in wrong.stderr


def test_a_run_without_a_token_log_says_which_setting_writes_one(
    fedhlm: Any, tmp_path: Path
) -> None:
    assert "no run in ./runs" in fedhlm("tokens").stderr
    RunFolder.create(Settings.from_sources({"run-dir": str(tmp_path / "runs")}, {}), {})
    answer = fedhlm("tokens")
    assert answer.exit_code == 2 and "token-log=true" in answer.stderr
    assert answer.stdout == "" and len(answer.stderr.splitlines()) == 1
