"""`fedhlm generate`: routed text on a terminal, in a pipe, as JSON, with a run's policy."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from clients.records import Stage
from fedhlm_app.cli import app, reaching
from fedhlm_app.cli import generate as command
from fedhlm_app.cli.coloured import ColouredText
from fedhlm_app.cli.policy import choose_policy
from fedhlm_app.client.feedback_folder import ServedPolicy
from fedhlm_app.client.prompted import Ask, PromptedModel, Token
from fedhlm_app.hosting.llm import build_service
from fedhlm_app.learning.gradients import initial_policy
from fedhlm_app.models.vocabulary import load_tokenizer
from fedhlm_app.results.report.charts import share_bars, stacked_bars
from fedhlm_app.results.runs import RunFolder
from fedhlm_app.results.stages import STAGE_COLOURS, STAGE_WORDS
from fedhlm_app.results.summary import STAGES
from fedhlm_app.server import checkpoint
from fedhlm_app.settings import Settings, SettingsError
from fedhlm_app.transport.transports import DirectTransport
from hlm.arrays import joined
from tests.fedhlm_app.in_process import Runner
from tests.served import serving

PROMPT = "Shares of the airline"
OPEN_MODEL = command.open_model


@pytest.fixture(scope="module")
def llm():
    return build_service(Settings.from_sources({}, {}))


@pytest.fixture
def fedhlm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, llm) -> Callable[..., Any]:
    """The command, with an LLM that was loaded before."""

    def opened(settings: Settings, threads: int) -> PromptedModel:
        return PromptedModel(settings, 0, DirectTransport(llm))

    monkeypatch.setattr(command, "open_model", opened)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def call(*words: str, **options: Any) -> Any:
        return CliRunner().invoke(app, ["generate", *words], **options)

    return call


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunFolder:
    with pytest.MonkeyPatch.context() as patch:
        changes = {"clients": 2, "clusters": 1, "rounds": 1, "learning": "balanced"}
        return Runner(patch).run(tmp_path_factory.mktemp("runs"), **changes)[1]


def certified_run(
    folder: Path, threshold: float, counts: Sequence[float] = (), **changes: object
) -> RunFolder:
    given = {"run-dir": str(folder), **{k.replace("_", "-"): v for k, v in changes.items()}}
    settings = Settings.from_sources(given, {})
    made = RunFolder.create(settings, {})
    other, policy = (
        joined({**initial_policy(settings), "threshold": np.array([value])})
        for value in (0.2, threshold)
    )
    tiers = {"policy": policy, "clusters": np.array([other, policy])}
    progress = checkpoint.Progress(take_back=list(counts))
    checkpoint.save(made.path, {"round": 7, "tiers": tiers}, {}, progress)
    return made


@pytest.mark.parametrize("sampled", [{}, {"decoding": "sampled", "temperature": 9.0}])
def test_tokens_are_those_of_the_router(llm, sampled):
    """At such a temperature many tokens are halves of characters."""
    settings = Settings.from_sources({"learning": "none", **sampled}, {})
    model = PromptedModel(settings, 0, DirectTransport(llm))
    shown: list[Token] = []
    policy = ServedPolicy(initial_policy(settings))
    (answer,) = model.continued([Ask(model.read_prompt(PROMPT, 40), 40, 1, shown.append)], policy)
    (records,) = answer.routed.records
    chosen = records.token[records.present]
    assert answer.text == load_tokenizer().decode(chosen, skip_special_tokens=True)
    assert shown == answer.tokens and len(shown) == records.tokens
    assert answer.stages == records.stage_counts()
    assert [t.uncertainty for t in shown] == records.uncertainty[records.present].tolist()
    for token in shown:
        assert token.uncertainty <= 0.5 or token.stage != Stage.LOCAL


def test_where_the_llm_writes_every_token_nothing_is_drafted_unless_somebody_learns(llm):
    settings = Settings.from_sources({"learning": "none", "llm-pace": 1}, {})
    model = PromptedModel(settings, 0, DirectTransport(llm))
    ask, policy = Ask(model.read_prompt(PROMPT, 9), 9, 1), ServedPolicy(initial_policy(settings))
    (drafted,) = model.continued([ask], policy)
    (heard,) = model.continued([Ask(ask.prompt, 9, 2)], policy, drafting=False)
    assert heard.text == drafted.text
    assert {token.uncertainty is None for token in drafted.tokens} == {False}
    assert {token.uncertainty for token in heard.tokens} == {None}
    assert json.dumps(heard.as_json())


def test_a_pipe_gets_plain_text_and_the_account_goes_elsewhere(fedhlm):
    answer = fedhlm(PROMPT, "-n", "12")
    told = json.loads(fedhlm(PROMPT, "-n", "12", "--json").stdout)
    assert answer.exit_code == 0
    assert answer.stdout == f"{PROMPT}{told['text']}\n"
    stages, length = told["stages"], sum(told["stages"].values())
    assert told["text"] == "".join(token["text"] for token in told["tokens"])
    assert length == len(told["tokens"])
    (line,) = answer.stderr.splitlines()
    assert line.startswith(f"{length} tokens: {stages['local']} kept (")
    assert f"{stages['llm_resampled']} replaced (" in line
    bytes_ = told["bytes"]
    assert f"{bytes_['uplink']} bytes up, {bytes_['downlink']} down" in line
    assert line.endswith("threshold 0.5, the default (--run takes a learned one)")


def test_a_terminal_gets_colours_unless_told_not_to(fedhlm):
    colours = {"FORCE_COLOR": "1", "COLORTERM": "truecolor", "TERM": "xterm-256color"}
    told = json.loads(fedhlm(PROMPT, "-n", "12", "--json").stdout)
    coloured = fedhlm(PROMPT, "-n", "12", env=colours).stdout
    for stage in {token["stage"] for token in told["tokens"]}:
        red, green, blue = bytes.fromhex(STAGE_COLOURS[stage][1:])
        # The legend's, and those of tokens.
        tokens = [token for token in told["tokens"] if token["stage"] == stage]
        assert coloured.count(f"\x1b[38;2;{red};{green};{blue}m") == len(tokens) + 1
    legend, text = re.sub(r"\x1b\[[0-9;]*m", "", coloured).split("\n\n", 1)
    assert "kept on the device" in legend and text == f"{PROMPT}{told['text']}\n"
    plain = fedhlm(PROMPT, "-n", "12", env={**colours, "NO_COLOR": "1"}).stdout
    assert plain == text


def test_every_stage_has_words_and_a_colour_of_its_own():
    assert tuple(STAGE_COLOURS) == STAGES
    assert len(set(STAGE_COLOURS.values())) == len(STAGES)


def test_a_report_has_the_same_colours():
    amounts = {STAGE_WORDS[stage]: 1 for stage in ("llm_resampled", "local")}
    bars = stacked_bars({name: {1: 1.0} for name in amounts}, title="")
    for chart in (share_bars({"": amounts}, title=""), bars):
        found = re.findall(r'fill="(#......)"', chart)
        assert found == [STAGE_COLOURS["llm_resampled"], STAGE_COLOURS["local"]]


def test_streams_are_shown_as_they_arrive(fedhlm):
    told = json.loads(fedhlm(PROMPT, "-n", "12", "--json", "-s", "escalation=span").stdout)
    assert len(told["tokens"]) == 12 == sum(told["stages"].values())
    assert told["text"] == "".join(token["text"] for token in told["tokens"])


def test_uncertainty_is_shown_behind_each_token(fedhlm):
    told = json.loads(fedhlm(PROMPT, "-n", "5", "--json").stdout)
    shown = "".join(f"{t['text']}[{t['uncertainty']:.2f}]" for t in told["tokens"])
    assert fedhlm(PROMPT, "-n", "5", "-u").stdout == f"{PROMPT}{shown}\n"


def test_text_does_not_steer_the_terminal():
    console = Console(file=io.StringIO(), force_terminal=True, color_system="truecolor")
    ColouredText(console).token(Token("a\x1b[2Jb\rc\n", Stage.LOCAL, 0.1))
    assert "a\ufffd[2Jb\ufffdc\x1b[0m\n" in console.file.getvalue()


def test_a_chat_s_answer_begins_on_a_line_of_its_own():
    console = Console(file=io.StringIO())
    screen = ColouredText(console, chat=True)
    screen.prompt("Hello")
    screen.token(Token("Hi", Stage.LOCAL, 0.1))
    assert console.file.getvalue() == "Hello\nHi"


def test_prompts_of_a_file_and_of_standard_input(fedhlm, tmp_path):
    (tmp_path / "prompts.txt").write_text(f"{PROMPT}\n\nThe minister said\n", "utf-8")
    answer = fedhlm("--file", "prompts.txt", "-n", "4", "--json")
    first, second = (json.loads(line) for line in answer.stdout.splitlines())
    assert (first["prompt"], second["prompt"]) == (PROMPT, "The minister said")
    for words in ([], ["-"]):
        told = json.loads(fedhlm(*words, "-n", "4", "--json", input=f"{PROMPT}\n").stdout)
        assert told["tokens"] == first["tokens"]
    # Draws are keyed by the text's number, so that a repeated prompt is another text.
    (tmp_path / "prompts.txt").write_text(f"{PROMPT}\n{PROMPT}\n", "utf-8")
    sampled = [
        "--decoding",
        "sampled",
        "--temperature",
        "2",
        "-n",
        "6",
        "--file",
        "prompts.txt",
        "--json",
    ]
    texts = [json.loads(one)["text"] for one in fedhlm(*sampled).stdout.splitlines()]
    again = [json.loads(one)["text"] for one in fedhlm(*sampled).stdout.splitlines()]
    other = [json.loads(one)["text"] for one in fedhlm(*sampled, "--seed", "5").stdout.splitlines()]
    assert texts == again and len({*texts, *other}) == 4


def test_a_runs_policy(fedhlm, run):
    told = json.loads(fedhlm(PROMPT, "--run", str(run.path), "-n", "12", "--json").stdout)
    learned = run.summary()["threshold"]["global"]
    assert (told["threshold"], told["round"], told["certified"]) == (learned, 1, None)
    for token in told["tokens"]:
        assert (token["uncertainty"] <= learned) == (token["stage"] == "local")
    words = fedhlm(PROMPT, "--run", str(run.path), "-n", "2").stderr
    assert words.endswith(f"threshold {learned:.4f} of {run.path.name}, 1 round\n")


def test_a_runs_policy_is_that_of_its_small_model_in_another_format(run, tmp_path):
    given = {"slm": str(tmp_path), "initial-threshold": None}
    (tmp_path / "model.onnx").touch()
    (tmp_path / "config.json").write_text('{"exported_from": "builtin"}')
    assert choose_policy(given, [], run.path, None).settings.slm == str(tmp_path)
    # As one in 8 bits, or another model.
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(SettingsError, match="it has learned for slm = 'builtin' there"):
        choose_policy(given, [], run.path, None)


def test_what_a_run_has_certified_is_said(fedhlm, tmp_path):
    made = certified_run(tmp_path, 0.61)
    words = fedhlm(PROMPT, "--run", str(made.path), "-n", "2").stderr
    assert "certified on texts like the run's: at most 5 % are kept and wrong, with 95 %" in words
    yet = certified_run(tmp_path, -1.0)
    told = json.loads(fedhlm(PROMPT, "--run", str(yet.path), "-n", "2", "--json").stdout)
    assert told["certified"] is None and told["stages"]["local"] == 0
    words = fedhlm(PROMPT, "--run", str(yet.path), "-n", "2").stderr
    assert f"no token kept, by the policy of {yet.path.name}, " in words
    # What was certified of given texts says nothing about generated ones.
    given = certified_run(tmp_path, 0.61, workload="score")
    told = json.loads(fedhlm(PROMPT, "--run", str(given.path), "-n", "2", "--json").stdout)
    assert told["certified"] is None


def test_a_run_takes_texts_back_as_its_drafts_were_counted(fedhlm, tmp_path, monkeypatch):
    heard: list[Sequence[float]] = []
    monkeypatch.setattr(PromptedModel, "heard", lambda self, counts: heard.append(counts))
    counts = [0.0, 10, 5, 5, 10, 300]
    for told in (counts, []):
        made = certified_run(tmp_path, 0.5, told, escalation="span", learning="balanced")
        assert fedhlm(PROMPT, "--run", str(made.path), "-n", "2").exit_code == 0
        assert heard.pop() == told


def test_a_clusters_policy(fedhlm, tmp_path):
    made = str(certified_run(tmp_path, 0.61, personalisation="cluster").path)
    for words, threshold in ((["--cluster", "1"], 0.61), ([], 0.2)):
        told = json.loads(fedhlm(PROMPT, "--run", made, *words, "-n", "2", "--json").stdout)
        assert told["threshold"] == threshold
    assert "the run has clusters 0 .. 1" in fedhlm(PROMPT, "--run", made, "--cluster", "2").stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["  "], "no prompt: give one"),
        (["word " * 400], "must be at most 128 together"),
        ([PROMPT, "-n", "0"], "--tokens 0: must be at least 1"),
        ([PROMPT, "-n", "500"], "and --tokens 500: must be at most 128 together"),
        ([PROMPT, "--threshold", "3"], "setting 'initial-threshold' = 3"),
        ([PROMPT, "--threshold", ".1", "-s", "policy=never"], "policy=never has none"),
        ([PROMPT, "--cluster", "1"], "give --run as well"),
        ([PROMPT, "--run", "runs/none"], "runs/none is not a run folder"),
        ([PROMPT, "--file", "a"], "give one of them"),
        (["--file", "missing.txt"], "cannot be read: No such file"),
        (["--file", "empty.txt"], "must have a prompt on at least one line"),
        (["--file", "binary"], "'binary': is no text in UTF-8"),
        ([PROMPT, "-s", "temprature=1"], "did you mean 'temperature'?"),
        ([PROMPT, "-s", "peer-mode=context"], "'peer-mode' = 'context'"),
        ([PROMPT, "--chat"], "slm 'builtin' has no chat template"),
        ([], "no prompt: give one"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(fedhlm, tmp_path, words, says):
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    answer = fedhlm(*words)
    assert answer.exit_code == 2 and answer.stdout == ""
    (line,) = [one for one in answer.stderr.splitlines() if one != "loading the models ..."]
    assert line.startswith("fedhlm: ") and says in line


def test_what_a_run_was_not_about_is_refused(fedhlm, run, tmp_path):
    path = str(run.path)
    for words, says in (
        (["--threshold", "0.3"], "give one of them"),
        (["--decoding", "sampled"], "decoding = 'greedy' there and 'sampled' here"),
        (["-s", "slm=org/other"], "slm = 'builtin' there"),
        (["--cluster", "0"], "one policy for all"),
    ):
        answer = fedhlm(PROMPT, "--run", path, *words)
        assert answer.exit_code == 2 and says in answer.stderr
    bare = RunFolder.create(Settings.from_sources({"run-dir": str(tmp_path)}, {}), {})
    assert "has no checkpoint.json" in fedhlm(PROMPT, "--run", str(bare.path)).stderr


def test_an_llm_that_is_served_and_one_that_is_not_there(fedhlm, llm, monkeypatch):
    told = json.loads(fedhlm(PROMPT, "-n", "8", "--json").stdout)
    monkeypatch.setattr(command, "open_model", OPEN_MODEL)
    with serving(llm) as (port, _):
        address = f"127.0.0.1:{port}"
        served = fedhlm(PROMPT, "-n", "8", "--json", "--llm-address", address)
    assert served.exit_code == 0, served.stderr
    assert json.loads(served.stdout)["tokens"] == told["tokens"]
    answer = fedhlm(PROMPT, "-n", "8", "--llm-address", address)
    assert answer.exit_code == 0
    assert answer.stdout.startswith(PROMPT) and len(answer.stdout) > len(PROMPT) + 8
    assert "tokens alone that the LLM was to decide" in answer.stderr
    assert re.search(r", [1-9]\d* unresolved \(", answer.stderr)


def test_nothing_is_said_within_a_text(fedhlm, monkeypatch, caplog):
    log = logging.getLogger("servers.openai.backend")

    def told(self, asks, policy, **how):
        log.warning("a stream ended")
        return []

    monkeypatch.setattr(PromptedModel, "continued", told)
    fedhlm(PROMPT)
    assert not caplog.messages
    log.warning("afterwards")
    assert caplog.messages == ["afterwards"]


def test_the_pair_of_the_settings_is_loaded_here(fedhlm, monkeypatch):
    monkeypatch.setattr(command, "open_model", OPEN_MODEL)
    monkeypatch.setattr(reaching, "PATIENCE", 0.0)
    answer = fedhlm(PROMPT, "-n", "3")
    assert answer.exit_code == 0 and answer.stderr.startswith("loading the models ...\n3 tokens: ")


def test_ctrl_c_ends_the_line(fedhlm, monkeypatch):
    def interrupted(self, asks, policy, **how):
        asks[0].on_token(Token(" and", Stage.LOCAL, 0.1))
        raise KeyboardInterrupt

    monkeypatch.setattr(PromptedModel, "continued", interrupted)
    answer = fedhlm(PROMPT)
    assert (answer.exit_code, answer.stdout) == (130, f"{PROMPT} and\n")
