"""A disk that is full in the middle of a run: what was there stays, and the run goes on later."""

from __future__ import annotations

import resource
from contextlib import contextmanager
from pathlib import Path

import pytest

from fedhlm_app import server_app
from fedhlm_app.results.runs import CHECKPOINT, RunFolder
from fedhlm_app.server.checkpoint import load, save
from strategies.records import RoundFailed
from tests.fedhlm_app.results.test_runs import settings_in
from tests.fedhlm_app.server.test_checkpoint import PROGRESS
from tests.fedhlm_app.test_cli import ending
from tests.fedhlm_app.test_server_app import places, run

__all__ = ["ending", "places"]


@contextmanager
def room_for(size: int):
    """No file of this process grows beyond so many bytes meanwhile."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_the_checkpoint_before_stays_whole(tmp_path):
    save(tmp_path, {"round": 1}, {}, PROGRESS)
    with room_for(100), pytest.raises(OSError, match="File too large"):
        save(tmp_path, {"round": 2}, {}, PROGRESS)
    assert load(tmp_path)[0] == {"round": 1}
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT]
    save(tmp_path, {"round": 2}, {}, PROGRESS)
    assert load(tmp_path)[0] == {"round": 2}


def test_a_round_that_is_half_written_is_written_again(tmp_path):
    folder = RunFolder.create(settings_in(tmp_path), {})
    folder.append_metrics({"round": 1, "tokens": 30})
    with room_for(40), pytest.raises(OSError, match="File too large"):
        folder.append_metrics({"round": 2, "tokens": 30})
    assert [line["round"] for line in folder.metrics()] == [1]
    folder.go_on(settings_in(tmp_path), last_round=1)
    folder.append_metrics({"round": 2, "tokens": 31})
    assert [(line["round"], line["tokens"]) for line in folder.metrics()] == [(1, 30), (2, 31)]


def test_the_command_says_what_failed_and_how_to_go_on(fedhlm, ending, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    made = RunFolder(tmp_path / "runs" / "mine")
    monkeypatch.setattr(RunFolder, "create", lambda *_: made)
    made.path.mkdir()
    (made.path / CHECKPOINT).touch()
    ending("finished:failed")
    (made.path / "config.json").write_text('{"settings": {}}')
    with room_for(0):
        answer = fedhlm("run")
    assert answer.exit_code == 1 and isinstance(answer.exception, SystemExit)
    assert "the run failed (finished:failed): Simulation failed" in answer.stderr
    assert "no report: [Errno 27] File too large; once there is room: fedhlm report runs/mine" in (
        answer.stderr
    )
    assert "go on with: fedhlm run --resume runs/mine" in answer.stderr


def test_what_broke_a_run_is_told_where_it_cannot_be_written_down(places, monkeypatch, caplog):
    def full(self, grid):
        # From here on, until the test ends.
        monkeypatch.setattr(RunFolder, "_write_json", no_room)
        raise RoundFailed("no usable reply")

    def no_room(self, name, value):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(server_app.Federation, "run", full)
    with pytest.raises(RoundFailed, match="no usable reply"):
        run(run_dir="mine")
    assert "cannot be written to: [Errno 28] No space left" in caplog.text
    assert list(Path(places[0]).rglob("failure.json")) == []
