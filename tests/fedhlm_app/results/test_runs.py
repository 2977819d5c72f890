"""The run folder and the contract of its summary."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedhlm_app.results import runs
from fedhlm_app.results.runs import TOKENS, RunFolder, latest_run, runs_in, write_atomically
from fedhlm_app.results.summary import STAGES, SummaryError, check_summary, transmission_reduction
from fedhlm_app.results.token_log import SCHEMA, TokenLog
from fedhlm_app.settings import Settings
from tests.fedhlm_app.launch_apps import summary


def settings_in(folder: Path, name: str = "x") -> Settings:
    return Settings.from_sources({"run-dir": str(folder), "name": name, "seed": 7}, {})


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(settings_in(tmp_path), {})


def good(**changes: Any) -> dict[str, Any]:
    return summary(Settings()) | changes


def test_a_new_folder_is_named_by_time_and_name_and_knows_its_settings(folder: RunFolder) -> None:
    time, _, name = folder.path.name.partition("Z-")
    assert name == "x" and len(time) == len("2026-01-31T12-00-00")
    config = folder.config()
    assert config["settings"]["seed"] == 7
    assert config["versions"]["flwr"] and config["machine"]["cores"] >= 1
    assert Settings.from_run_config(config["settings"], {}) == settings_in(folder.path.parent)


def test_runs_in_the_same_second_do_not_share_a_folder(tmp_path: Path) -> None:
    made = {RunFolder.create(settings_in(tmp_path), {}).path for _ in range(3)}
    assert len(made) == 3


def test_the_launchers_folder_is_used(tmp_path: Path) -> None:
    given_path = tmp_path / "here"
    environ = {runs.RUN_FOLDER_VARIABLE: str(given_path)}
    assert RunFolder.create(settings_in(tmp_path / "unused"), environ).path == given_path
    assert not (tmp_path / "unused").exists()


def test_a_resumed_run_keeps_its_folder_and_says_what_was_changed(folder: RunFolder) -> None:
    again = settings_in(folder.path.parent).model_copy(
        update={"resume": str(folder.path), "rounds": 9}
    )
    for _ in range(2):  # by the launcher, then by the ServerApp: nothing is touched yet
        assert RunFolder.create(again, {}).path == folder.path
    assert folder.config()["settings"]["rounds"] == 30
    folder.go_on(again, last_round=0)
    config = folder.config()
    # A second resumption starts from these: the rounds asked for last, not those asked for first.
    assert config["settings"] == again.to_run_config() | {"resume": ""}
    assert [life["settings_before"] for life in config["resumed"]] == [{"rounds": 30}]


def test_the_newest_run(tmp_path: Path) -> None:
    assert latest_run(tmp_path / "none") is None
    for name in ("2026-01-02T00-00-00Z-b", "2026-01-01T00-00-00Z-z"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "zzz-not-a-run").mkdir()
    assert [found.path.name[:10] for found in runs_in(tmp_path)] == ["2026-01-01", "2026-01-02"]
    newest = latest_run(tmp_path)
    assert newest is not None and newest.path.name.endswith("-b")


def test_metrics_are_lines_and_a_cut_one_is_left_out(folder: RunFolder) -> None:
    assert folder.metrics() == []
    folder.append_metrics({"round": 1, "loss": math.nan, "bytes": {"uplink": 3}})
    folder.append_metrics({"round": 2, "threshold": {"global": math.inf}})
    with (folder.path / "metrics.jsonl").open("a") as handle:
        handle.write('{"round": 3, "lo')
    assert folder.metrics() == [
        {"round": 1, "loss": None, "bytes": {"uplink": 3}},
        {"round": 2, "threshold": {"global": None}},
    ]
    folder.write_summary(good())
    (folder.path / "report.html").write_text("old")
    folder.go_on(settings_in(folder.path.parent), last_round=1)
    # Of the shorter run, until the longer one has its own.
    assert folder.summary() == good() and (folder.path / "report.html").exists()
    folder.append_metrics({"round": 2})
    assert [line["round"] for line in folder.metrics()] == [1, 2]
    with pytest.raises(ValueError, match="round"):
        folder.append_metrics({"loss": 1.0})


def test_progress_comes_and_goes_through_the_file(folder: RunFolder) -> None:
    assert folder.progress() is None
    folder.write_progress(2, 30, {"local": 5})
    assert folder.progress() == {"round": 2, "rounds": 30, "counts": {"local": 5}}


def test_a_failed_write_leaves_the_old_file_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.json"
    write_atomically(path, "old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(runs.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_good_summary_is_written_and_read(folder: RunFolder) -> None:
    assert folder.summary() is None
    folder.write_summary(good())
    assert folder.summary() == good()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"tokens": 21}, "resolution sums to 20, but tokens = 21"),
        ({"trr": 0.5}, "trr = 0.5, but its resolution gives 1"),
        ({"tokens": 0}, "summary tokens"),
        ({"tokens": 20.5}, "summary tokens"),
        ({"certificate": math.nan}, "summary certificate"),
        ({"llm_agreement": 1.2}, "summary llm_agreement"),
        ({"accuracy": {"token": 0.5}}, "summary accuracy.label"),
        ({"bytes": {"uplink": -1, "downlink": 0, "edge": 0}}, "summary bytes.uplink"),
        ({"threshold": {"clusters": {}, "clients": {}}}, "summary threshold.global"),
        ({"resolution": dict.fromkeys(STAGES, 0) | {"cloud": 20}}, "summary resolution.cloud"),
    ],
)
def test_a_summary_that_breaks_the_contract_is_refused(
    folder: RunFolder, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(SummaryError) as error:
        folder.write_summary(good(**changes))
    assert says in str(error.value)
    assert folder.summary() is None


def test_a_missing_key_is_named() -> None:
    for key in good():
        with pytest.raises(SummaryError, match=f"summary {key}"):
            check_summary({name: value for name, value in good().items() if name != key})


@given(st.lists(st.integers(0, 10**6), min_size=7, max_size=7).filter(any))
def test_any_resolution_is_accepted_with_its_own_rate(counts: list[int]) -> None:
    resolution = dict(zip(STAGES, counts, strict=True))
    rate = transmission_reduction(resolution)
    # Local, cache, peer, edge: what stayed unresolved was not saved.
    assert rate == pytest.approx(sum(counts[:4]) / sum(counts))
    check_summary(good(tokens=sum(counts), resolution=resolution, trr=rate))


def test_there_is_no_rate_of_nothing() -> None:
    with pytest.raises(SummaryError, match="no tokens"):
        transmission_reduction(dict.fromkeys(STAGES, 0))


def token_rows(**changes: Any) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {name: [1, 2] for name in SCHEMA.names}
    return columns | {"stage": ["local", "llm_accepted"], "uncertainty": [0.5, 0.25],
                      "beta": [None, 1.0], "text": [None, " it"],
                      "before": ["Ships", None]} | changes  # fmt: skip


def test_the_token_log_is_a_parquet_file_with_a_row_per_token(folder: RunFolder) -> None:
    with TokenLog(folder) as log:
        log.append(token_rows())
        assert not (folder.path / "tokens.parquet").exists()
        log.append(token_rows(client=[3, 4]))
    table = pq.read_table(folder.path / TOKENS)
    assert table.num_rows == 4
    assert table.column("client").to_pylist() == [1, 2, 3, 4]
    assert table.column("stage").to_pylist()[:2] == ["local", "llm_accepted"]
    assert table.column("beta").to_pylist()[:2] == [None, 1.0]


def test_the_token_log_refuses_what_it_does_not_know(folder: RunFolder) -> None:
    with TokenLog(folder) as log:
        with pytest.raises(ValueError, match="cloud"):
            log.append(token_rows(stage=["cloud", "local"]))
        with pytest.raises(ValueError, match="colour"):
            log.append(token_rows(colour=[1, 2]))
        with pytest.raises(ValueError):
            log.append(token_rows(client=[1]))


def rounds_logged(folder: RunFolder) -> list[int]:
    return pq.read_table(folder.path / TOKENS).column("round").to_pylist()


def break_off(folder: RunFolder, *rounds: int, before: int = 0, unfinished: int) -> None:
    """A log that ends its rounds, and is lost in the middle of the next."""
    with pytest.raises(RuntimeError), TokenLog(folder, before) as log:
        for number in rounds:
            log.append(token_rows(round=[number, number]))
            log.end_round(number)
        log.append(token_rows(round=[unfinished, unfinished]))
        raise RuntimeError("broken off")


def test_a_run_that_breaks_off_leaves_its_rounds_and_no_half_written_log(
    folder: RunFolder,
) -> None:
    break_off(folder, 1, 2, 3, unfinished=4)
    assert not (folder.path / "tokens.parquet").exists()
    # The checkpoint of round 3 was not written any more, and a part was cut short.
    (folder.path / "tokens-parts" / ".round-000004.parquet.partial").write_bytes(b"PAR1")
    break_off(folder, 3, before=2, unfinished=4)
    with TokenLog(folder, rounds_done=3) as log:
        log.append(token_rows(round=[4, 4]))
        log.end_round(4)
    assert rounds_logged(folder) == [1, 1, 2, 2, 3, 3, 4, 4]
    assert not (folder.path / "tokens-parts").exists()


def test_a_finished_log_is_gone_on_with(folder: RunFolder) -> None:
    with TokenLog(folder) as log:
        for number in (1, 2):
            log.append(token_rows(round=[number, number]))
            log.end_round(number)
    break_off(folder, 3, before=2, unfinished=4)
    with TokenLog(folder, rounds_done=3) as log:
        log.append(token_rows(round=[4, 4]))
        log.end_round(4)
    assert rounds_logged(folder) == [1, 1, 2, 2, 3, 3, 4, 4]
    # Killed after joining, before the parts were gone: nothing counts twice.
    (folder.path / "tokens-parts").mkdir()
    for number in (1, 2):
        whole = (folder.path / "tokens.parquet").read_bytes()
        (folder.path / "tokens-parts" / f"round-00000{number}.parquet").write_bytes(whole)
    TokenLog(folder, rounds_done=3).close()
    assert rounds_logged(folder) == [1, 1, 2, 2, 3, 3]
    TokenLog(folder).close()
    assert rounds_logged(folder) == []


def test_files_are_json_that_any_reader_takes(folder: RunFolder) -> None:
    folder.write_summary(good())
    for path in folder.path.glob("*.json"):
        json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(name))
