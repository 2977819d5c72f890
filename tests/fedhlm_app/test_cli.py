"""The command line: exit statuses, messages, tables, and that it starts fast."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fedhlm_app.cli import run as run_module
from fedhlm_app.cli.progress import shares, watch
from fedhlm_app.cli.result import show_result
from fedhlm_app.cli.run import collect, parse_overrides
from fedhlm_app.launch import Interrupted, LaunchError, RunResult
from fedhlm_app.results.report.rows import figures
from fedhlm_app.results.runs import RunFolder
from fedhlm_app.settings import Settings, SettingsError
from fedhlm_app.settings.table import USUAL
from tests.fedhlm_app.launch_apps import summary

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def ending(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Settings]]:
    """Let the next launch end in the given way, and return the settings it was called with."""

    def prepare(status: str = "finished:completed", error: BaseException | None = None) -> Any:
        seen: list[Settings] = []

        def launch(settings: Settings, **_: object) -> RunResult:
            seen.append(settings)
            if error is not None:
                raise error
            done = status == "finished:completed"
            return RunResult(
                folder=RunFolder.create(settings, {}),
                status=status,
                details="" if done else "Simulation failed with exception: no clients",
                errors=() if done else ("RuntimeError: no clients", "ValueError: because"),
                summary=summary(settings) if done else None,
                seconds=1.0,
            )

        monkeypatch.setattr(run_module, "launch", launch)
        return seen

    monkeypatch.setattr(run_module, "_check_before_start", lambda settings: None)
    return prepare


def test_a_good_run_shows_its_result(fedhlm: Any, ending: Any, tmp_path: Path) -> None:
    seen = ending()
    answer = fedhlm("run", "-n", "4", "-r", "2", "--name", "try", "--clusters", "2", "-s", "seed=3")
    assert answer.exit_code == 0, answer.output
    assert (seen[0].clients, seen[0].rounds, seen[0].clusters, seen[0].seed) == (4, 2, 2, 3)
    assert Path(seen[0].run_dir) == tmp_path / "runs"
    assert "transmission reduction" in answer.stdout and "run folder" in answer.stdout
    assert "clients: 4, clusters: 2, rounds: 2; threshold policy" in answer.stderr


def test_json_goes_to_standard_output_alone(fedhlm: Any, ending: Any) -> None:
    ending()
    answer = fedhlm("run", "--json")
    found = json.loads(answer.stdout)
    assert found["status"] == "finished:completed" and found["summary"]["clients"] == 20


def test_a_failed_run_exits_1_with_the_reason(fedhlm: Any, ending: Any) -> None:
    ending("finished:failed")
    answer = fedhlm("run")
    assert answer.exit_code == 1 and answer.stdout == ""
    assert "the run failed (finished:failed)" in answer.stderr
    assert "ValueError: because" in answer.stderr and "flower.log" in answer.stderr
    ending("finished:failed")
    answer = fedhlm("run", "--json")
    assert answer.exit_code == 1 and json.loads(answer.stdout)["summary"] is None


def test_flower_that_cannot_start_exits_1(fedhlm: Any, ending: Any) -> None:
    ending(error=LaunchError("the SuperLink died"))
    answer = fedhlm("run")
    assert answer.exit_code == 1 and "fedhlm: the SuperLink died" in answer.stderr


def test_ctrl_c_exits_130_and_says_how_to_go_on(fedhlm: Any, ending: Any, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "runs" / "my run")
    folder.path.mkdir(parents=True)
    ending(error=Interrupted(folder))
    answer = fedhlm("run")
    assert answer.exit_code == 130 and "nothing to go on from" in answer.stderr
    (folder.path / "checkpoint.json").touch()
    answer = fedhlm("run")
    assert answer.exit_code == 130
    assert "go on with: fedhlm run --resume 'runs/my run'" in answer.stderr


# Naps are short: a signal just before the system call of a long one would be heard after it.
SLOW_TO_END = """
import itertools, signal, sys, time
from rich.console import Console
from fedhlm_app.cli.interrupting import interruptible
signal.signal(signal.SIGINT, signal.default_int_handler)
with interruptible(Console(stderr=True)):
    try:
        print("started", flush=True)
        for nap in itertools.repeat(0.05, 12_000):
            time.sleep(nap)
    finally:
        for nap in itertools.repeat(0.05, 12_000):
            time.sleep(nap)
"""


def test_ctrl_c_is_heard_while_the_command_is_being_loaded(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("raise KeyboardInterrupt")
    done = subprocess.run(
        [sys.executable, "-m", "fedhlm_app", "env"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (130, b"")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_is_answered_at_once_and_the_second_ends(number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SLOW_TO_END], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as command:
        assert command.stdout is not None and command.stderr is not None
        command.stdout.readline()
        command.send_signal(number)
        assert b"interrupted" in command.stderr.readline()
        assert command.poll() is None  # it has answered, and is still at its last step
        command.send_signal(number)
        assert command.wait(timeout=120) == 130


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--set", "client=3"], "unknown setting 'client'; did you mean 'clients'?"),
        (["--clients", "0"], "setting 'clients' = 0 is not allowed"),
        (["--set", "clients"], "--set 'clients': must be key=value"),
        (["--set", "=3"], "--set '=3': must be key=value"),
        (["--set", "seed=3", "--set", "seed=4"], "given as both '3' and '4'"),
        (["--clients", "5", "--set", "clients=6"], "setting 'clients' is given twice"),
        (["--clients", "2", "--clusters", "3"], "at most one cluster per client"),
        (["--clients", "2", "--set", "clusters=4"], "at most one cluster per client"),
        (["--set", "slm=./nowhere"], "nowhere': no such file or folder"),
        (["--set", "dataset=/no/such/file.csv"], "/no/such/file.csv"),
        (["--resume", "gone"], "setting 'resume'"),
    ],
)
def test_bad_settings_exit_2_and_start_nothing(
    fedhlm: Any, ending: Any, tmp_path: Path, words: list[str], says: str
) -> None:
    seen = ending()
    answer = fedhlm("run", *words)
    assert answer.exit_code == 2 and answer.stdout == ""
    assert says in answer.stderr
    assert all(line.startswith("fedhlm: ") for line in answer.stderr.splitlines())
    assert seen == [] and list(tmp_path.iterdir()) == []


def test_a_run_that_is_resumed_keeps_its_name(fedhlm: Any, ending: Any, tmp_path: Path) -> None:
    given = {"run-dir": str(tmp_path), "name": "first"}
    folder = RunFolder.create(Settings.from_sources(given, {}), {})
    seen = ending()
    answer = fedhlm("run", "--resume", str(folder.path), "--name", "second")
    assert answer.exit_code == 2 and seen == []
    assert "setting 'name' = 'second': a run that is resumed stays in its folder" in answer.stderr
    assert collect({"resume": str(folder.path), "name": "first"}, []).name == "first"


def test_data_that_cannot_work_exits_2(
    fedhlm: Any, ending: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = ending()

    def refuse(settings: Settings) -> None:
        raise ValueError("dataset 'x' has no column 'text'")

    monkeypatch.setattr(run_module, "_check_before_start", refuse)
    answer = fedhlm("run")
    assert answer.exit_code == 2 and "no column 'text'" in answer.stderr and seen == []


def test_the_environment_is_read(fedhlm: Any, ending: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = ending()
    monkeypatch.setenv("FEDHLM_ROUNDS", "9")
    monkeypatch.setenv("FEDHLM_SEED", "5")
    assert fedhlm("run", "--rounds", "30").exit_code == 0
    assert (seen[0].rounds, seen[0].seed) == (30, 5)


def test_a_run_has_the_whole_system_unless_told_otherwise(
    fedhlm: Any, ending: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = ending()
    assert fedhlm("run").exit_code == 0
    assert (seen[0].preset, seen[0].peer_mode, seen[0].learn_rounds) == ("fedhlm", "context", 12)
    assert fedhlm("run", "--preset", "certified").exit_code == 0
    assert fedhlm("run", "--set", "preset=certified").exit_code == 0
    monkeypatch.setenv("FEDHLM_PRESET", "certified")
    assert fedhlm("run").exit_code == 0
    assert [one.preset for one in seen[1:]] == ["certified"] * 3
    assert {one.peer_mode for one in seen[1:]} == {"off"}


def test_overrides_keep_what_follows_the_first_equals_sign() -> None:
    assert parse_overrides(["dataset=a=b", " seed =1"]) == {"dataset": "a=b", "seed": "1"}
    with pytest.raises(SettingsError, match="key=value"):
        collect({}, ["x"])


def test_settings_are_listed_in_three_forms(fedhlm: Any) -> None:
    table = fedhlm("settings", "--all").stdout
    assert all(name in table for name in Settings.defaults())
    assert USUAL < Settings.defaults().keys()
    usual = fedhlm("settings").stdout
    assert all(name in usual for name in USUAL) and "sketch-words" not in usual
    assert usual.index("cu-hlm") < usual.index("tokens-per-round")
    assert f"{len(Settings.defaults()) - len(USUAL)} more: fedhlm settings --all" in usual
    assert fedhlm("settings", "--markdown").stdout.count("\n| `") == len(Settings.defaults())
    assert fedhlm("settings", "--toml").stdout in (ROOT / "pyproject.toml").read_text("utf-8")


def test_the_report_of_the_newest_run(fedhlm: Any, tmp_path: Path) -> None:
    assert fedhlm("report").exit_code == 2
    settings = Settings.from_sources({"run-dir": str(tmp_path / "runs")}, {})
    folder = RunFolder.create(settings, {})
    folder.write_summary(summary(settings))
    answer = fedhlm("report")
    assert answer.exit_code == 0 and "kept and wrong" in answer.stdout
    assert (folder.path / "report.html").is_file()
    assert fedhlm("report", str(folder.path)).exit_code == 0
    answer = fedhlm("report", str(tmp_path))
    assert answer.exit_code == 2 and "is not a run folder" in answer.stderr


def test_the_environment_report_names_the_versions(fedhlm: Any) -> None:
    lines = dict(line.split(maxsplit=1) for line in fedhlm("env").stdout.splitlines())
    assert {"system", "cores", "memory", "accelerator", "python", "flwr", "torch"} <= lines.keys()


def test_the_result_table_counts_and_shares() -> None:
    found = summary(Settings()) | {
        "tokens": 100,
        "resolution": {"local": 50, "cache": 0, "peer": 10, "edge": 0, "llm_accepted": 25,
                       "llm_resampled": 15, "unresolved": 0},
        "trr": 0.6,
    }  # fmt: skip
    rows = {row[0].strip(): row[1:] for row in figures(found) if row is not None}
    assert rows["from peers"] == ("10", "10.00%")
    assert rows["LLM: draft replaced"] == ("15", "15.00%")
    assert rows["transmission reduction"][0] == "60.00%"
    assert "from the device's cache" not in rows
    assert "accuracy, tokens" not in rows and "by cluster" not in rows
    assert rows["bytes up"] == ("10", "0.10 per token")
    assert rows["seconds"] == ("1.0", "0.9 in rounds, 0.1 around them")
    assert rows["in models"] == ("0.2", "small 0.1, large 0.1; side by side")
    judged = found | {
        "accuracy": {"token": None, "label": 0.875},
        "threshold": {"global": 0.5, "clusters": {"0": 0.25, "1": 0.75}, "clients": {}},
    }
    told = {row[0].strip(): row[1:] for row in figures(judged) if row is not None}
    assert told["accuracy, labels"] == ("87.50%", "held-out")
    assert told["by cluster"] == ("", "0: 0.2500  1: 0.7500")
    assert told["threshold"] == ("0.5000", "global")
    careful = found | {"threshold": {"global": -1.0, "clusters": {}, "clients": {}}}
    told = {row[0].strip(): row[1:] for row in figures(careful) if row is not None}
    assert told["threshold"] == ("none", "keeps nothing")


@pytest.mark.parametrize("width", [80, 40])
def test_the_result_fits_the_terminal(width: int) -> None:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))
    told = {"settings": {"preset": "fedhlm"}, "changed": {"learning": "certified-high-probability"}}
    show_result(console, summary(Settings()) | told, Path("/somewhere"))
    lines = console.export_text().splitlines()
    assert lines[-1] == "run folder: /somewhere" and max(map(len, lines)) <= width
    assert lines[0].startswith("Of 20 tokens 20 were decided on their")
    assert not any("…" in line for line in lines)


def test_progress_is_a_line_per_round_where_there_is_no_terminal() -> None:
    console = Console(width=120, record=True, file=open("/dev/null", "w"))
    with watch(console, Settings()) as listen:
        for _ in range(2):
            listen("starting Flower")
        counts = {"local": 3, "llm_accepted": 1}
        for _ in range(2):
            listen({"round": 1, "rounds": 2, "counts": counts})
        listen({"round": 2, "rounds": 2, "counts": counts})
    lines = console.export_text().splitlines()
    assert lines[-3:] == [
        "starting Flower ...",
        "round 1/2: 4 tokens, 25.0% asked the LLM, time left unknown",
        "round 2/2: 4 tokens, 25.0% asked the LLM, ending Flower and Ray",
    ]


def test_the_time_left_is_that_of_the_rounds_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("fedhlm_app.cli.progress.time.monotonic", lambda: now)
    console = Console(width=120, record=True, file=open("/dev/null", "w"))
    with watch(console, Settings()) as listen:
        # A run that goes on after its tenth round; then one of 10 s and one of 30 s.
        for done, clock in ((10, 100.0), (11, 110.0), (12, 140.0), (26, 320.0), (30, 360.0)):
            now = clock
            listen({"round": done, "rounds": 30, "counts": {"local": 1}})
    left = [line.rsplit(", ", 1)[1] for line in console.export_text().splitlines()[-5:]]
    assert left == [
        "time left unknown", "3 min left", "6 min left", "55 s left", "ending Flower and Ray",
    ]  # fmt: skip


def test_the_time_left_counts_no_loading_and_no_slow_start(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("fedhlm_app.cli.progress.time.monotonic", lambda: now)
    console = Console(width=120, record=True, file=open("/dev/null", "w"))
    clocks = [0, 100, 120, 140, *range(142, 156, 2)]
    with watch(console, Settings()) as listen:
        for done, clock in enumerate(clocks):
            now = float(clock)
            listen({"round": done, "rounds": 30, "counts": {"local": 1}})
    left = [line.rsplit(", ", 1)[1] for line in console.export_text().splitlines()[-10:]]
    assert left[:2] == ["time left unknown", "9 min left"] and left[-1] == "40 s left"


def test_progress_warns_in_every_round_that_lost_tokens() -> None:
    for terminal in (False, True):
        console = Console(
            width=120, record=True, force_terminal=terminal, file=open("/dev/null", "w")
        )
        with watch(console, Settings()) as listen:
            for number, lost in ((1, 2), (2, 2), (3, 5)):
                counts = {"local": 10 * number, "llm_accepted": 1, "unresolved": lost}
                listen({"round": number, "rounds": 3, "counts": counts})
        text = console.export_text()
        assert "round 1: 2 tokens stayed unresolved, without the LLM" in text
        assert "round 2: " not in text
        assert "round 3: 3 tokens stayed unresolved" in text
    assert shares({"round": 1, "rounds": 1, "counts": counts}).endswith("LLM, 5 unresolved")
    console = Console(width=120, record=True, file=open("/dev/null", "w"))
    with watch(console, Settings().model_copy(update={"resume": "/a"})) as listen:
        listen({"round": 3, "rounds": 4, "counts": counts})
    assert "stayed" not in console.export_text()


def test_progress_is_a_bar_on_a_terminal() -> None:
    console = Console(width=120, record=True, force_terminal=True, file=open("/dev/null", "w"))
    with watch(console, Settings()) as listen:
        listen({"round": 15, "rounds": 30, "counts": {"local": 4}})
    assert "15/30" in console.export_text()


def test_no_tokens_yet() -> None:
    assert shares({"round": 1, "rounds": 2, "counts": {}}) == "no tokens yet"


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    program = (
        "import sys\nfrom fedhlm_app.cli import main\nsys.argv = ['fedhlm', *sys.argv[1:]]\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "heavy = {'torch', 'flwr', 'ray', 'transformers', 'pydantic', 'datasets', 'numpy'}\n"
        "sys.exit(', '.join(sorted(heavy & sys.modules.keys())) or 0)\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program, *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0 and answer.stderr.strip() == "", answer.stderr


def test_pair_is_mounted(fedhlm: Any) -> None:
    answer = fedhlm("pair", "--help")
    assert answer.exit_code == 0 and "train" in answer.stdout
    assert "pair" in fedhlm("--help").stdout


def test_help_says_which_preset_a_command_starts_from(fedhlm: Any) -> None:
    for command, preset in (("run", "fedhlm"), ("sweep", "certified"), ("generate", "certified")):
        told = " ".join(fedhlm(command, "--help").stdout.replace("│", " ").split())
        assert f"Settings to start from, {preset} by default" in told
