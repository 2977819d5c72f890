"""Runs of every learning rule in this process, with the built-in pair."""

from __future__ import annotations

import importlib.util
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fedhlm_app.data.items import load_items
from fedhlm_app.results.events import EVENTS
from fedhlm_app.results.runs import TOKENS, RunFolder
from fedhlm_app.results.summary import check_summary


def _in_process():
    path = Path(__file__).parents[1].joinpath("in_process.py")
    spec = importlib.util.spec_from_file_location("in_process", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["in_process"] = module
    spec.loader.exec_module(module)
    return module


in_process = _in_process()


@pytest.fixture(scope="module")
def runner():
    with pytest.MonkeyPatch.context() as patch:
        yield in_process.Runner(patch)


SLOW = pytest.mark.slow


@pytest.mark.parametrize("workload", ["score", pytest.param("classify", marks=SLOW)])
def test_certified_needs_one_round_of_sums(runner, tmp_path, workload):
    federation, folder, _ = runner.run(
        tmp_path,
        workload=workload,
        learning="certified",
        fidelity_budget=0.3,
        calibration_rounds=1,
        tokens_per_round=40,
    )
    first, second = folder.metrics()
    # Nothing is kept before there is a guarantee, so nothing has to be read on top.
    assert first["resolution"]["local"] == 0 and first["read"] == 0
    assert second["resolution"]["local"] > 0
    assert first["threshold"]["global"] == second["threshold"]["global"] > 0
    assert second["calibration"] == {"calibrating": 0, "settled": 1}
    assert second["read"] == 0
    summary = check_summary(folder.summary())
    assert summary.threshold.clients["0"] == first["threshold"]["global"]
    assert summary.guarantee["certified"] == 1 and summary.guarantee["sureness"] is None
    prompts = 40 if workload == "classify" else 8
    assert federation.strategy.calibration.rule.sums[0][0] <= 4 * prompts


def test_clients_keep_nothing_that_the_server_may_refuse(runner, tmp_path):
    for number, changes in enumerate(({"strategy": "scaffold"}, {"personalisation": "local"})):
        _, folder, grid = runner.run(
            tmp_path / str(number), learning="balanced", tokens_per_round=10, **changes
        )
        assert len(folder.metrics()) == 2
        assert all(len(context.state) == 0 for context in grid.contexts.values())


def test_candidates_of_generation_are_certified_one_by_one(runner, tmp_path):
    federation, folder, _ = runner.run(
        tmp_path,
        learning="certified-high-probability",
        fidelity_budget=0.4,
        confidence=0.3,
        rounds=3,
        evaluate_every=3,
    )
    first, second, third = folder.metrics()
    assert first["resolution"]["local"] == 0
    # From the second round on a candidate is tried, and all of its tokens are read.
    assert second["resolution"]["local"] > 0 and second["read"] > 0
    chain = federation.strategy.calibration.rule.chains[0]
    assert first["threshold"]["global"] == -1
    assert third["threshold"]["global"] == chain.certified
    assert chain.certified > 0
    # Evaluation takes what is certified, not the candidate.
    coverage = folder.summary()["coverage"]
    assert set(coverage["clients"]) == {"0", "1", "2", "3"}
    assert set(coverage["clusters"]) == {"0", "1"}
    assert max(coverage["clients"].values()) == coverage["worst"]


def test_own_thresholds_differ(runner, tmp_path):
    _, folder, _ = runner.run(
        tmp_path,
        workload="score",
        learning="certified",
        fidelity_budget=0.4,
        personalisation="local",
        tokens_per_round=100,
        calibration_rounds=1,
        rounds=1,
    )
    threshold = folder.summary()["threshold"]
    own = threshold["clients"]
    assert len(set(own.values())) > 1
    assert threshold["clusters"]["0"] == pytest.approx((own["0"] + own["2"]) / 2)


def test_the_line_of_u_hlm_is_fitted_from_sums(runner, tmp_path):
    federation, folder, _ = runner.run(
        tmp_path, workload="score", learning="linear", rounds=1, line_threshold="risk-prone"
    )
    calibration = federation.strategy.calibration.rule
    assert calibration.sums[0][0] == 80
    assert folder.summary()["threshold"]["global"] == calibration.result(0)


@pytest.mark.parametrize("rule", ["balanced", pytest.param("primal-dual", marks=SLOW)])
@pytest.mark.parametrize("audit_rate", [0.0, 0.5])
def test_thresholds_move_both_ways(runner, tmp_path, rule, audit_rate):
    ends = {}
    for start in (0.05, 0.95):
        _, folder, _ = runner.run(
            tmp_path / str(start),
            learning=rule,
            audit_rate=audit_rate,
            initial_threshold=start,
            free_feedback=audit_rate == 0,
            workload="score" if audit_rate else "generate",
            # The price of a wrong token has to rise before the threshold falls.
            rounds=6 if rule == "primal-dual" else 2,
        )
        summary = folder.summary()
        ends[start] = summary["threshold"]["global"]
    assert (summary["audited"] > 0) == (audit_rate > 0)
    assert ends[0.05] > 0.05
    assert ends[0.95] < 0.95


@SLOW
@pytest.mark.parametrize("where", ["local", "central"])
def test_privacy_is_accounted_for(runner, tmp_path, where):
    _, folder, _ = runner.run(tmp_path, privacy=where, privacy_noise=2.0, privacy_clip=0.01)
    lines = folder.metrics()
    assert 0 < lines[0]["epsilon"] < lines[1]["epsilon"] == folder.summary()["epsilon"]
    _, plain, _ = runner.run(tmp_path / "plain")
    assert plain.summary()["threshold"]["global"] != folder.summary()["threshold"]["global"]
    assert plain.summary()["epsilon"] is None


@pytest.mark.parametrize(
    "changes",
    [
        {"learning": "certified-high-probability", "fidelity_budget": 0.4, "confidence": 0.3},
        {"learning": "balanced", "strategy": "scaffold", "personalisation": "shrunk"},
    ],
    ids=["certified", "scaffold"],
)
def test_a_resumed_run_ends_like_an_uninterrupted_one(runner, tmp_path, changes):
    whole, folder, _ = runner.run(tmp_path / "whole", rounds=3, evaluate_every=3, **changes)
    with pytest.raises(KeyboardInterrupt):
        runner.run(tmp_path / "cut", rounds=3, evaluate_every=3, stop_after=2, **changes)
    cut = next((tmp_path / "cut").iterdir())
    resumed, again, grid = runner.run(
        tmp_path, rounds=3, evaluate_every=3, resume=str(cut), **changes
    )
    assert len(grid.replies) == 4 + 4 + 4  # introduction, round 3 and its evaluation
    assert np.array_equal(whole.strategy.policy, resumed.strategy.policy)
    for one, other in zip(folder.metrics(), again.metrics(), strict=True):
        for key in ("round", "threshold", "resolution", "bytes", "weights"):
            assert one[key] == other[key]
    first, second = folder.summary(), again.summary()
    for key in ("tokens", "resolution", "threshold", "bytes", "rounds", "coverage"):
        assert first[key] == second[key]


def test_a_longer_run_that_is_cut_leaves_the_result_of_the_shorter_one(runner, tmp_path):
    _, folder, _ = runner.run(tmp_path, rounds=1)
    before = folder.summary()
    with pytest.raises(KeyboardInterrupt):
        runner.run(tmp_path, rounds=3, resume=str(folder.path), stop_after=2)
    assert folder.summary() == before and (folder.path / "report.html").exists()
    assert [line["round"] for line in folder.metrics()] == [1, 2]
    assert folder.config()["settings"]["rounds"] == 3
    _, longer, _ = runner.run(tmp_path, rounds=3, resume=str(folder.path))
    assert longer.summary()["rounds"] == 3


@pytest.mark.parametrize("texts", [False, True])
def test_the_token_log_holds_every_token_and_no_text_unless_asked(runner, tmp_path, texts):
    _, folder, _ = runner.run(tmp_path, token_log=True, token_texts=texts)
    table = pq.read_table(folder.path / TOKENS)
    assert table.num_rows == folder.summary()["tokens"]
    assert not {"draft", "token"} & set(table.column_names)
    kept = table.column("text").to_pylist()
    assert len("".join(kept).split()) > 10 if texts else set(kept) == {None}
    before, position = (table.column(name).to_pylist() for name in ("before", "position"))
    assert [one is not None for one in before] == [texts and at == 0 for at in position]
    if texts:
        items = load_items("builtin")
        for number, prompt in zip(table.column("prompt").to_pylist(), before, strict=True):
            assert prompt is None or items.texts([number])[0].startswith(prompt.strip())
    for line in folder.metrics():
        by_client = [Counter(one["resolution"]) for one in line["by_client"].values()]
        assert sum(by_client, Counter()) == +Counter(line["resolution"])
    stages = table.column("stage").to_pylist()
    assert {s: stages.count(s) for s in set(stages)} == {
        stage: count for stage, count in folder.summary()["resolution"].items() if count
    }
    assert set(table.column("cluster").to_pylist()) == {0, 1}


def test_events_are_written_as_rounds_end(runner, tmp_path):
    def trr(folder):
        events = EventAccumulator(str(folder / EVENTS)).Reload().Scalars("trr")
        return [(event.step, pytest.approx(event.value)) for event in events]

    with pytest.raises(KeyboardInterrupt):
        runner.run(tmp_path, rounds=3, stop_after=2)
    cut = next(tmp_path.iterdir())
    assert trr(cut) == [(line["round"], line["trr"]) for line in RunFolder(cut).metrics()]
    assert [number for number, _ in trr(cut)] == [1, 2]
    _, again, _ = runner.run(tmp_path, rounds=3, resume=str(cut))
    assert trr(cut) == [(line["round"], line["trr"]) for line in again.metrics()]


def test_the_token_log_of_a_resumed_run_holds_all_rounds(runner, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        runner.run(tmp_path / "cut", rounds=3, stop_after=2, token_log=True)
    cut = next((tmp_path / "cut").iterdir())
    _, again, _ = runner.run(tmp_path, rounds=3, resume=str(cut), token_log=True)
    _, whole, _ = runner.run(tmp_path / "whole", rounds=3, token_log=True)
    assert pq.read_table(again.path / TOKENS).equals(pq.read_table(whole.path / TOKENS))
    assert set(pq.read_table(again.path / TOKENS).column("round").to_pylist()) == {1, 2, 3}
    # Going on with a run that had ended keeps what it logged.
    longer = {"rounds": 4, "resume": str(cut), "token_log": True}
    _, longest, _ = runner.run(tmp_path, **longer)
    rows = pq.read_table(whole.path / TOKENS).to_pylist()
    assert pq.read_table(longest.path / TOKENS).to_pylist()[: len(rows)] == rows
    assert longest.summary()["rounds"] == 4
