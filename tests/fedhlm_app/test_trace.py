"""A replay over a trace is the live run, but for bytes and seconds."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from typer.testing import CliRunner

from fedhlm_app.cli import app
from fedhlm_app.cli.run import collect
from fedhlm_app.cli.trace import _base, rounds_table
from fedhlm_app.data.chats import encoded
from fedhlm_app.data.items import load_items
from fedhlm_app.models.vocabulary import load_tokenizer
from fedhlm_app.settings import Settings, SettingsError
from fedhlm_app.trace import replaying
from fedhlm_app.trace.file import Trace
from fedhlm_app.trace.recording import record
from fedhlm_app.trace.replaying import Replay
from tests.chats import save_chats, save_pair
from tests.fedhlm_app.in_process import Runner
from tests.other_tokenizers import save

BASE = {
    "clients": 4, "clusters": 2, "rounds": 3, "tokens-per-round": 25, "tokens-per-prompt": 10,
    "evaluate-every": 0, "learning": "balanced",
}  # fmt: skip
COUNTS = ("tokens", "resolution", "trr", "measured_tokens", "audited", "read", "weights")
NUMBERS = (
    "llm_agreement", "certificate", "mean_uncertainty", "mean_ratio_beta", "loss",
)  # fmt: skip
SMALL = {"rounds": 2, "tokens-per-round": 10}
# Sums of floats in a forward pass depend on the shape of its batch, which a recording has not.
CLOSE = {"rel": 1e-5, "abs": 1e-6}


def settings(**changes) -> Settings:
    given = {**BASE, **{key.replace("_", "-"): value for key, value in changes.items()}}
    return Settings.from_sources(given, {})


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """A file of few items, so that recording it takes no time."""
    from fedhlm_app.data.items import load_items

    path = tmp_path_factory.mktemp("data") / "few.csv"
    items = load_items("builtin")
    rows = range(60)
    lines = [
        f'{items.label_names[label]},"{text.replace(chr(34), "")}"'
        for text, label in zip(items.texts(rows), items.labels(rows), strict=True)
    ]
    path.write_text("label,text\n" + "\n".join(lines) + "\n", "utf-8")
    return str(path)


@pytest.fixture(scope="module")
def traces(few, tmp_path_factory):
    """One of each workload, read back from its file."""
    found = {}
    for workload in ("score", "classify"):
        path = tmp_path_factory.mktemp("trace") / f"{workload}.parquet"
        record(settings(dataset=few, workload=workload)).save(path)
        found[workload] = Trace.load(path)
    return found


@pytest.mark.parametrize(
    "changes",
    [
        {"workload": "score"},
        {"workload": "score", "learning": "paper", "strategy": "scaffold", "local-steps": 2},
        {"workload": "score", "personalisation": "shrunk", "audit-rate": 0.3},
        {"workload": "score", "policy": "random", "fraction-train": 0.5},
        {"workload": "score", "learning": "certified", "fidelity-budget": 0.4},
        {"workload": "score", "learn-rounds": 2, "fidelity-budget": 0.4},
        {"workload": "classify", "learning": "primal-dual", "strategy": "fednova", **SMALL},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_live_and_replayed_rounds_are_equal(changes, few, traces, tmp_path, monkeypatch):
    given = {**BASE, **changes, "dataset": few}
    runner = Runner(monkeypatch)
    _, folder, _ = runner.run(tmp_path, **given)
    how = Settings.from_sources(given, {})
    replayed = Replay(traces[how.workload], how).run()
    for live, again in zip(folder.metrics(), replayed.rounds, strict=True):
        assert {key: live[key] for key in COUNTS} == {key: again[key] for key in COUNTS}
        for key in NUMBERS:
            assert live[key] == pytest.approx(again[key], **CLOSE), key
        for tier, thresholds in live["threshold"].items():
            assert thresholds == pytest.approx(again["threshold"][tier], **CLOSE), tier
    assert replayed.stages.sum() == sum(line["tokens"] for line in replayed.rounds)
    for name, count in folder.summary()["resolution"].items():
        assert sum(line["resolution"][name] for line in replayed.rounds) == count


def test_of_chats_the_answers_are_recorded_and_replayed_as_they_are_routed(tmp_path, monkeypatch):
    slm, llm = save_pair(tmp_path)
    chats = save_chats(tmp_path / "chats.jsonl", times=8)
    given = {
        **BASE, "workload": "score", "dataset": chats, "slm": slm, "llm": llm, "prompt-tokens": 40,
    }  # fmt: skip
    how = Settings.from_sources(given, {})
    record(how).save(tmp_path / "chats.parquet")
    trace = Trace.load(tmp_path / "chats.parquet")
    answers = [one.text[:10] for one in encoded(load_items(chats), load_tokenizer(slm))]
    assert trace.answer.tolist() == [token for answer in answers for token in answer]
    _, folder, _ = Runner(monkeypatch).run(tmp_path, **given)
    for live, again in zip(folder.metrics(), Replay(trace, how).run().rounds, strict=True):
        assert {key: live[key] for key in COUNTS} == {key: again[key] for key in COUNTS}
        for key in NUMBERS:
            # A log-probability is told in a byte, and those on an edge are rounded either way.
            close = {"rel": 2e-3} if key == "mean_ratio_beta" else CLOSE
            assert live[key] == pytest.approx(again[key], **close), key
    for key, value in (("prompt-tokens", 39), ("tokens-per-prompt", 11)):
        with pytest.raises(SettingsError, match=f"setting '{key}' = {value}: the trace has chats"):
            Replay(trace, Settings.from_sources({**given, key: value}, {}))


@pytest.mark.slow
def test_a_process_that_draws_texts_ahead_changes_nothing(few, traces, monkeypatch):
    how = settings(workload="score", dataset=few, learn_rounds=2, fidelity_budget=0.4)
    alone = Replay(traces["score"], how).run()
    monkeypatch.setattr(replaying, "CHUNK", 3)  # one client of four is left for a second part
    two = Replay(traces["score"], how).run()
    assert two.stages.tolist() == alone.stages.tolist()
    assert two.correct.tolist() == alone.correct.tolist()
    for one, again in zip(alone.rounds, two.rounds, strict=True):
        assert one["threshold"]["global"] == again["threshold"]["global"]
        assert {key: one[key] for key in COUNTS} == {key: again[key] for key in COUNTS}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cache-mode": "context"}, "cache-mode"),
        ({"workload": "classify"}, "the trace has 'score'"),
        ({"uncertainty": "disagreement"}, "closed-form, entropy"),
        ({"tokens-per-prompt": 11}, "texts of 26 tokens"),
    ],
)
def test_what_a_trace_cannot_tell_is_refused(changes, words, few, traces):
    with pytest.raises(SettingsError, match=words):
        Replay(traces["score"], settings(**{"workload": "score", "dataset": few, **changes}))
    with pytest.raises(SettingsError, match="set workload=score or classify"):
        record(settings(dataset=few))


def test_two_tokenizers_are_refused_in_a_line_that_says_what_takes_them(few, tmp_path):
    llm = save("unigram", tmp_path / "llm")
    for file in (tmp_path / "llm").glob("*.safetensors"):
        file.unlink()  # so that no model can have been loaded
    asked = ["trace", "--out", str(tmp_path / "made.parquet"), "--dataset", few]
    found = CliRunner().invoke(app, [*asked, "--set", f"llm={llm}"])
    assert found.exit_code == 2
    assert found.stderr.splitlines() == [
        f"fedhlm: slm 'builtin' and llm {llm!r} have different tokenizers, and a trace needs one "
        "for both; `fedhlm run`, `compare`, `estimate`, `generate` and `serve device` take two, "
        "decoding greedily"
    ]


def test_a_threshold_that_keeps_nothing_is_said_in_words():
    figures = {"tokens": 9, "trr": 0.0, "llm_agreement": 1.0, "certificate": 0.0, "accuracy": {}}
    lines = [
        {"round": number, "threshold": {"global": value}, **figures}
        for number, value in ((1, -1.0), (2, 0.5))
    ]
    for shown, words in ((lines, True), (lines[1:], False)):
        console = Console(file=io.StringIO(), width=100)
        console.print(rounds_table(shown))
        text = console.file.getvalue()
        assert "0.5000" in text and "-1.0" not in text
        assert ("threshold none: no draft is kept" in text) == words


def test_fewer_clients_than_the_recording_has_clusters_make_fewer_clusters(few):
    recorded = settings(dataset=few, workload="score", clients=20, clusters=4).to_run_config()
    for said, clusters in (({"clients": 2}, 2), ({"clients": 9}, 4), ({"seed": 1}, 4)):
        assert collect(said, [], base=_base(recorded, said)).clusters == clusters
