from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from fedhlm_app.cli.app import app
from fedhlm_app.results.summary import STAGES
from fedhlm_app.settings import SettingsError
from fedhlm_app.sweep import runner as sweep
from fedhlm_app.sweep.cells import cells_of
from fedhlm_app.sweep.runner import FIGURES, run_sweep

SUMMARY = {
    "tokens": 10,
    "resolution": dict.fromkeys(STAGES, 0) | {"local": 6, "llm_resampled": 4},
    "threshold": {"global": 0.5},
    "trr": 0.6,
    "llm_agreement": 0.9,
    "certificate": 0.1,
    "coverage": {"worst": 0.2},
    "accuracy": {"token": None, "label": None},
    "bytes": {"uplink": 20, "downlink": 10},
    "seconds": {"total": 3.0},
}

RUN = """
import json, pathlib, sys
folder = pathlib.Path(sys.argv[1]) / ("2026-" + sys.argv[2])
folder.mkdir(parents=True, exist_ok=True)
with (folder.parent / "starts.txt").open("a") as log:
    log.write(sys.argv[2] + "\\n")
if sys.argv[3] == "fail":
    print("the pair is gone", file=sys.stderr)
    sys.exit(1)
(folder / "summary.json").write_text(sys.argv[4])
"""


@pytest.fixture
def runs(monkeypatch):
    """`fedhlm run` without the run: seed 9 fails."""

    def command(cell, folder: Path, jobs: int) -> list[str]:
        how = "fail" if cell.settings.seed == 9 else "work"
        name = f"cell-{cell.key}"
        return [sys.executable, "-c", RUN, str(folder), name, how, json.dumps(SUMMARY)]

    monkeypatch.setattr(sweep, "_command", command)


def test_grids_multiply_and_lists_add():
    cells = cells_of({"clients": 4}, ["seed=1,2", "rounds=3,4"], ["clusters=1", "clusters=2"])
    assert len(cells) == 8
    assert len({cell.key for cell in cells}) == 8
    assert {(c.settings.seed, c.settings.rounds, c.settings.clusters) for c in cells} == {
        (s, r, k) for s in (1, 2) for r in (3, 4) for k in (1, 2)
    }
    assert all(cell.settings.clients == 4 for cell in cells)


def test_cells_that_give_the_same_result_are_one():
    assert len(cells_of({}, ["seed=0,1"], ["name=a", "name=b"])) == 2


def test_strategies_are_compared_under_one_learning_rule():
    cells = cells_of({}, ["strategy=fedavg,fedprox,scaffold"], [])
    assert {cell.settings.learning for cell in cells} == {"balanced"}
    assert [cell.shown for cell in cells] == [
        {"strategy": name} for name in ("fedavg", "fedprox", "scaffold")
    ]


def test_a_rule_that_all_cells_agree_on_stays():
    cells = cells_of({}, ["seed=0,1"], [])
    assert {cell.settings.learning for cell in cells} == {"certified-high-probability"}


def test_rules_that_cannot_be_one_are_refused_with_what_to_set():
    with pytest.raises(SettingsError, match=r"linear in policy=u-hlm.*--set learning=balanced"):
        cells_of({}, ["policy=threshold,u-hlm"], [])
    cells = cells_of({"learning": "balanced"}, ["policy=threshold,u-hlm"], [])
    assert {cell.settings.learning for cell in cells} == {"balanced"}


def test_the_table_shows_what_differs_beside_what_was_varied():
    cells = cells_of({}, ["learning=paper,balanced"], ["seed=1", "decoding=sampled"])
    shown = [cell.shown for cell in cells]
    assert [row["verification"] for row in shown] == ["greedy"] * 2 + ["coupled"] * 2
    assert [row["learning"] for row in shown] == ["paper", "balanced"] * 2
    assert len({row["learning-rate"] for row in shown}) == 2  # each rule's own
    assert [row["decoding"] for row in shown] == ["greedy"] * 2 + ["sampled"] * 2
    assert [row["seed"] for row in shown] == ["1"] * 2 + ["0"] * 2
    assert "clients" not in shown[0]


@pytest.mark.parametrize(
    ("grids", "lists", "message"),
    [
        (["seed"], [], "--grid 'seed': must be key=value"),
        (["seed="], [], "must be key=value"),
        (["seed=1", "seed=2"], [], "seed: given twice"),
        (["sede=1"], [], "cell sede=1: .*did you mean 'seed'"),
        (["clusters=1,99"], [], "cell clusters=99"),
        ([], ["strategy"], "--cell 'strategy'"),
        ([], [" "], "empty"),
    ],
)
def test_wrong_words_are_named_before_anything_starts(grids, lists, message):
    with pytest.raises(SettingsError, match=message):
        cells_of({}, grids, lists)


def test_finished_cells_are_not_run_again(runs, tmp_path):
    some = cells_of({}, ["seed=1,2"], [])
    more = cells_of({}, ["seed=1,2,3"], [])
    run_sweep(some, tmp_path)
    ended = []
    outcomes = run_sweep(more, tmp_path, on_end=lambda outcome, n: ended.append(n))
    assert ended == [1, 2, 3]
    starts = (tmp_path / "starts.txt").read_text().split()
    assert sorted(starts) == sorted(f"cell-{cell.key}" for cell in more)
    assert [outcome.cell.varied["seed"] for outcome in outcomes] == ["1", "2", "3"]
    rows = json.loads((tmp_path / "sweep.json").read_text())
    assert [row["trr"] for row in rows] == [0.6] * 3
    assert rows[0]["uplink_per_token"] == 2.0
    with (tmp_path / "sweep.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["seed"] for row in table] == ["1", "2", "3"]
    assert set(FIGURES) < set(table[0])


def test_a_failed_cell_is_named_and_tried_again(runs, tmp_path):
    cells = cells_of({}, ["seed=1,9"], [])
    good, bad = run_sweep(cells, tmp_path, jobs=2)
    assert good.error == "" and "the pair is gone" in bad.error
    assert bad.row()["trr"] is None
    run_sweep(cells, tmp_path)
    starts = (tmp_path / "starts.txt").read_text().split()
    assert starts.count(f"cell-{bad.cell.key}") == 2
    assert starts.count(f"cell-{good.cell.key}") == 1


def test_a_cell_whose_run_failed_at_its_end_is_run_anew(tmp_path):
    (cell,) = cells_of({}, ["seed=5"], [])
    failed = tmp_path / f"2026-cell-{cell.key}"
    failed.mkdir()
    (failed / "checkpoint.json").write_text("{}")
    (failed / "summary.json").write_text(json.dumps(SUMMARY | {"error": "the LLM never answered"}))
    assert sweep._finished(tmp_path, cell) is None
    assert "resume=" in sweep._command(cell, tmp_path, 1)


def test_two_sweeps_do_not_share_a_folder(runs, tmp_path, monkeypatch):
    cells = cells_of({}, ["seed=1"], [])
    monkeypatch.setattr(sweep, "_PATIENCE_SECONDS", 0.3)
    with sweep._alone_in(tmp_path), pytest.raises(sweep.SweepBusyError, match="another sweep"):
        run_sweep(cells, tmp_path)
    assert run_sweep(cells, tmp_path)[0].error == ""


@pytest.mark.skipif(sys.platform != "linux", reason="needs prctl")
def test_runs_end_with_a_sweep_that_is_killed(tmp_path):
    """A run notes its number and would go on for a minute; its sweep kills itself."""
    script = f"""
import os, pathlib, signal, sys, threading, time
from fedhlm_app.sweep import runner as sweep
from fedhlm_app.sweep import cells as sweep_cells
folder = pathlib.Path({str(tmp_path)!r})
run = "import os, pathlib, sys, time; p = pathlib.Path(sys.argv[1]); " \
    "p.write_text(str(os.getpid())); time.sleep(600)"
sweep._command = lambda *_: [sys.executable, "-c", run, str(folder / "pid")]
def kill():
    while not (folder / "pid").exists() or not (folder / "pid").read_text():
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGKILL)
threading.Thread(target=kill).start()
sweep.run_sweep(sweep_cells.cells_of({{}}, ["seed=1"], []), folder)
"""
    done = subprocess.run([sys.executable, "-c", script], timeout=250, check=False)
    assert done.returncode == -signal.SIGKILL
    began = time.monotonic()
    # The lock is free as soon as the run is gone.
    with sweep._alone_in(tmp_path):
        assert time.monotonic() - began < 250
    run = int((tmp_path / "pid").read_text())
    # Where nobody waits for orphans a dead one stays in the table.
    assert not psutil.pid_exists(run) or psutil.Process(run).status() == psutil.STATUS_ZOMBIE


def test_the_command_of_a_cell_goes_on_from_its_checkpoint(tmp_path):
    (cell,) = cells_of({"clients": 4}, ["seed=5"], [])
    words = sweep._command(cell, tmp_path, 1)
    assert "seed=5" in words and "clients=4" in words and "resume=" in words
    assert f"run-dir={tmp_path}" in words
    cut = tmp_path / f"2026-cell-{cell.key}"
    cut.mkdir()
    (cut / "checkpoint.json").write_text("{}")
    assert f"resume={cut}" in sweep._command(cell, tmp_path, 1)


def test_the_command_line(runs, tmp_path):
    runner = CliRunner()
    words = ["sweep", "--set", f"run-dir={tmp_path}", "--name", "mine"]
    result = runner.invoke(app, [*words, "--grid", "seed=1,2", "--json"])
    assert result.exit_code == 0, result.output
    assert [row["seed"] for row in json.loads(result.stdout)] == ["1", "2"]
    assert (tmp_path / "mine" / "sweep.csv").exists()
    page = (tmp_path / "mine" / "sweep.html").read_text("utf-8")
    assert "seed=2" in page and "Of 10 tokens 6 were decided" in page and ", by " not in page
    grid = ["--grid", "initial-threshold=.3,.5,.7", "--grid", "strategy=fedavg,fedprox"]
    assert runner.invoke(app, [*words, *grid]).exit_code == 0
    page = (tmp_path / "mine" / "sweep.html").read_text("utf-8")
    assert "strategy=fedprox, initial-threshold 0.7: 60%" in page
    assert "Bytes up per token, by initial-threshold as a table" in page
    assert runner.invoke(app, [*words, "--grid", "seed=9"]).exit_code == 1
    assert runner.invoke(app, words).exit_code == 2
    assert runner.invoke(app, [*words, "--name", "../up", "--grid", "seed=1"]).exit_code == 2
