"""`fedhlm serve supernode`: whose waits are short, and what its ClientApp's process does."""

from __future__ import annotations

import importlib
import io
import signal
import sys
import time
from inspect import signature
from pathlib import Path
from types import SimpleNamespace

import pytest
from flwr.supercore.exit import ExitCode, flwr_exit
from flwr.supercore.exit.exit_handler import add_exit_handler
from flwr.supercore.inflatable.inflatable_utils import pull_objects
from typer.testing import CliRunner

from fedhlm_app.cli import app
from fedhlm_app.launch import clientapp, supernode
from fedhlm_app.launch.supernode import Waits, Worker


@pytest.mark.parametrize("word", ["--isolation=process", "--port", "--ssl-certfile", "--host"])
def test_options_that_are_its_own_are_refused_by_name(word):
    result = CliRunner().invoke(app, ["serve", "supernode", "--insecure", word, "x"])
    assert result.exit_code == 2
    assert f"{word.partition('=')[0]}: not here" in result.stderr


def test_flower_still_has_what_is_replaced():
    loop = importlib.import_module("flwr.supernode.start_client_internal")
    assert loop.time.sleep is time.sleep
    assert loop.pull_objects is pull_objects
    assert signature(pull_objects).parameters["initial_backoff"].default == 1
    assert clientapp.flower.flwr_exit is flwr_exit


def test_waits_are_short_while_a_run_goes_on(monkeypatch):
    clock, slept = [100.0], []

    def sleep(seconds):
        slept.append(round(seconds, 3))
        clock[0] += seconds

    # In this module alone: threads of others sleep as ever.
    ours = SimpleNamespace(monotonic=lambda: clock[0], sleep=sleep)
    monkeypatch.setattr(supernode, "time", ours)
    waits = Waits()
    waits.sleep(0.5)
    assert slept == [0.03] and waits.arrived.is_set()
    waits.arrived.clear()
    for _ in range(60):
        waits.sleep(3)
    # Nothing has come: they grow to Flower's own, and nobody is sent for a task.
    assert slept[1] == 0.1 and slept[1:] == sorted(slept[1:]) and slept[-1] == 3.0
    assert 14 <= sum(one < 3 for one in slept[1:]) <= 16
    assert not waits.arrived.is_set()
    for _ in range(60):
        waits.sleep(0.5)
    # So do those for a reply.
    assert slept[61] == 0.03 and slept[61:] == sorted(slept[61:]) and slept[-1] == 0.5
    waits.sleep(3)
    assert slept[-1] == 0.1


@pytest.mark.slow
def test_a_process_serves_a_run_and_another_takes_its_place(tmp_path, monkeypatch):
    script, told = tmp_path / "script.py", tmp_path / "told"
    script.write_text(
        "import os, sys\n"
        "for line in sys.stdin:\n"
        f"    with open({str(told)!r}, 'a') as file:\n"
        "        print(os.getpid(), sys.argv[1], line.strip(), file=file, flush=True)\n"
        "    if line.startswith('last'):\n"
        "        break\n"
    )
    monkeypatch.setattr(supernode, "SCRIPT", script)
    worker = Worker("127.0.0.1:9")

    def take(token, run):
        before = len(lines())
        worker.take(token, run)
        deadline = time.monotonic() + 120
        while len(lines()) == before:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return lines()[-1].split()

    def lines():
        return told.read_text().splitlines() if told.exists() else []

    first, address, token = take("one", 1)
    assert (address, token) == ("127.0.0.1:9", "one")
    assert take("last", 1)[0] == first
    worker._process.wait(120)
    second = take("three", 1)
    third = take("four", 2)
    worker.end()
    assert second[2] == "three" and third[2] == "four"
    assert len({first, second[0], third[0]}) == 3


@pytest.fixture
def messages(monkeypatch):
    """Tokens that the ClientApp's process has worked on; its end of a message is Flower's."""
    worked: list[tuple[str, str, bool]] = []
    codes = {"fails": ExitCode.TASK_PROC_EXCEPTION}

    def run_clientapp(address, token, insecure):
        add_exit_handler(lambda: worked.append((address, token, insecure)))
        signal.signal(signal.SIGTERM, lambda *_: None)
        clientapp.flower.flwr_exit(code=codes.get(token, ExitCode.SUCCESS), event_type=None)

    monkeypatch.setattr(clientapp.flower, "flwr_exit", flwr_exit)
    monkeypatch.setattr(clientapp.flower, "run_clientapp", run_clientapp)
    monkeypatch.setattr(clientapp, "start_parent_process_monitor", lambda parent: None)
    handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT)}
    yield worked
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_the_process_outlives_its_messages(messages, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\ntwo\n"))
    clientapp.main("127.0.0.1:9")
    assert messages == [("127.0.0.1:9", "one", True), ("127.0.0.1:9", "two", True)]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_the_process_ends_with_a_message_that_failed(messages, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\nfails\ntwo\n"))
    with pytest.raises(SystemExit):
        clientapp.main("127.0.0.1:9")
    assert [token for _, token, _ in messages] == ["one", "fails"]


def test_the_script_imports_nothing_of_fedhlm():
    # A package that is imported before the bundle would be taken for the bundle's.
    text = Path(clientapp.__file__).read_text()
    assert "import fedhlm" not in text and "from fedhlm" not in text
