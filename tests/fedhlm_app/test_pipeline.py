"""The steps of a pipeline are a run's rounds; what it refuses; kfp's part where kfp is."""

from __future__ import annotations

import importlib.util
import json
import os

import pytest
from typer.testing import CliRunner

from clients.records import Stage
from fedhlm_app.cli import app
from fedhlm_app.models.sources import PairError
from fedhlm_app.pipeline import steps
from fedhlm_app.pipeline.tokens import load, save
from fedhlm_app.settings import Settings, SettingsError
from fedhlm_app.trace.rounds import Rounds
from tests.fedhlm_app.in_process import Runner, settings_of
from tests.other_tokenizers import save as save_model

needs_kfp = pytest.mark.skipif(
    importlib.util.find_spec("kfp") is None,
    reason="kfp pins requests and urllib3 below the versions in constraints.txt",
)
BASE = {"clients": 3, "clusters": 2, "rounds": 2, "tokens-per-round": 10, "evaluate-every": 0}

COUNTS = ("tokens", "resolution", "trr", "measured_tokens", "audited", "read", "weights")
MEANS = ("llm_agreement", "certificate", "mean_uncertainty", "mean_ratio_beta", "loss")


def settings(**changes) -> Settings:
    return settings_of(**{**BASE, **changes})


def told_of(how: Settings) -> str:
    return json.dumps({"preset": how.preset, **how.changed()})


def rounds(how: Settings, folder) -> list[steps.Line]:
    """All steps one after the other, as a pipeline's processes would."""
    told, at = told_of(how), lambda name: str(folder / name)
    steps.start(told, how.rounds, at("state-0"), at("memory-0"))
    for number in range(1, how.rounds + 1):
        before, after = at(f"state-{number - 1}"), at(f"state-{number}")
        memory = at(f"memory-{number - 1}"), at(f"memory-{number}")
        steps.slm_inference(told, number, before, memory[0], at("drafts"), memory[1])
        steps.routing_decision(told, at("drafts"), at("routed"))
        steps.llm_fallback(told, at("routed"), at("decided"))
        steps.result_validator(told, at("decided"), at("validated"))
        steps.aggregator(told, number, before, at("validated"), after)
    return steps.result(after)


@pytest.mark.parametrize(
    "changes",
    [
        {"workload": "score", "learning": "balanced", "tokens-per-round": 15, "audit-rate": 0.3},
        {"workload": "score", "learning": "certified", "fidelity-budget": 0.4},
        {
            "workload": "classify",
            "learning": "paper",
            "tokens-per-round": 8,
            "initial-threshold": 0.02,
        },
        {"preset": "certified", "tokens-per-round": 15, "fidelity-budget": 0.4},
        # The main job, whose later round certifies what the first has learned.
        {
            "preset": "fedhlm",
            "escalation": "auto",
            "rounds": 3,
            "clients": 4,
            "tokens-per-round": 20,
            # Drafts of the same step, of which some are alike even among so few.
            "peer-mode": "paper",
            "similarity": 0.2,
        },
    ],
    ids=lambda changes: changes.get("preset") or changes["learning"],
)
def test_steps_end_with_what_the_run_ends_with(changes, tmp_path, monkeypatch):
    _, folder, _ = Runner(monkeypatch).run(tmp_path / "live", **{**BASE, **changes})
    made = rounds(settings(**changes), tmp_path)
    for live, ours in zip(folder.metrics(), made, strict=True):
        assert ours["threshold"] == live["threshold"]
        for name in COUNTS:
            assert ours[name] == live[name], name
        for name in MEANS:
            assert ours[name] == pytest.approx(live[name], rel=1e-12), name
    if changes.get("preset") == "fedhlm":
        counts = [line["resolution"] for line in made]
        assert all(sum(count[tier] for count in counts) for tier in ("cache", "peer", "edge")), (
            counts
        )
    tokens = load(str(tmp_path / "decided"))
    sent = tokens.records.escalated[tokens.records.present]
    assert 0 < sent.sum() < len(sent), "a round in which something stays and something goes"


def test_the_validator_refuses_tokens_that_nobody_decided(tmp_path):
    how = settings(workload="score", learning="balanced", rounds=1, clients=1, clusters=1)
    rounds(how, tmp_path)
    told, decided = told_of(how), str(tmp_path / "decided")
    tokens = load(decided)
    tokens.records.stage[0, 0] = Stage.LLM_ACCEPTED
    tokens.records.token[0, 0] = tokens.records.draft[0, 0] + 1
    save(decided, [tokens])
    with pytest.raises(ValueError, match="1 tokens are not of who is said to have decided them"):
        steps.result_validator(told, decided, str(tmp_path / "validated"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"decoding": "sampled"}, "'decoding' = 'sampled'"),
        ({"preset": "fedhlm", "reproducible": False}, "'reproducible' = False"),
        ({"workload": "score", "cache-mode": "context"}, "'cache-mode' = 'context'"),
    ],
)
def test_what_steps_cannot_do_is_refused(changes, words):
    with pytest.raises(SettingsError, match=words):
        Rounds(settings(**changes), generating=True)


def test_a_replay_generates_no_text():
    with pytest.raises(SettingsError, match="'workload' = 'generate'"):
        Rounds(settings())


def test_other_rounds_than_those_compiled_are_refused(tmp_path):
    told = told_of(settings(workload="score"))
    with pytest.raises(SettingsError, match="'rounds' = 2: this pipeline was compiled for 3"):
        steps.start(told, 3, str(tmp_path / "state"), str(tmp_path / "memory"))


def test_two_tokenizers_are_refused_before_models_are_loaded(tmp_path):
    told = told_of(settings(llm=save_model("unigram", tmp_path / "llm")))
    with pytest.raises(PairError, match=r"a pipeline needs one for both; `fedhlm run`, "):
        steps.start(told, 2, str(tmp_path / "state"), str(tmp_path / "memory"))


def test_without_kfp_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for command in ("compile", "run"):
        found = CliRunner().invoke(app, ["pipeline", command])
        assert found.exit_code == 2
        assert found.stderr.splitlines() == [
            "fedhlm: kfp is not installed; `pip install 'fedhlm[pipeline]'` brings it"
        ]


def test_a_file_in_the_folders_place_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pipeline").write_text("")
    found = CliRunner().invoke(app, ["pipeline", "run"])
    assert found.exit_code == 2 and "'pipeline' is a file" in found.stderr


@needs_kfp
def test_the_compiled_pipeline_has_five_steps_a_round(tmp_path):
    import yaml

    path = tmp_path / "made.yaml"
    given = ["pipeline", "compile", "--out", str(path), "--rounds", "2", "--image", "ours:1"]
    found = CliRunner().invoke(app, given)
    assert found.exit_code == 0, found.output
    (made, *_) = yaml.safe_load_all(path.read_text("utf-8"))
    assert len(made["root"]["dag"]["tasks"]) == 1 + 2 * 5
    images = {one["container"]["image"] for one in made["deploymentSpec"]["executors"].values()}
    assert images == {"ours:1"}
    assert list(tmp_path.iterdir()) == [path]


@needs_kfp
@pytest.mark.slow
def test_processes_end_with_what_the_steps_end_with(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys_path()))
    out, small = tmp_path / "rounds.json", ["--set", "tokens-per-round=10"]
    given = ["pipeline", "run", "--out", str(tmp_path / "files"), "--json", str(out)]
    found = CliRunner().invoke(app, [*given, "-n", "2", "-r", "1", *small])
    assert found.exit_code == 0, found.output
    how = Settings.from_sources(
        {"preset": "fedhlm", "clients": 2, "rounds": 1, "tokens-per-round": 10}, {}
    )
    assert json.loads(out.read_text("utf-8")) == rounds(how, tmp_path)


def sys_path() -> list[str]:
    import sys

    return [entry for entry in sys.path if entry]
