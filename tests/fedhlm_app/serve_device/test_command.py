"""`fedhlm serve device`, up to the moment when it would wait for questions."""

from __future__ import annotations

import threading

import pytest
from typer.testing import CliRunner

from fedhlm_app.cli import app, reaching
from fedhlm_app.cli import serve as command
from tests.fedhlm_app.serve_device.devices import Down
from tests.fedhlm_app.test_generate import certified_run


@pytest.fixture
def serve(monkeypatch):
    """The command; what it would serve, and whom it would answer."""
    found = []
    monkeypatch.setattr(command, "reach_llm", lambda settings, threads: Down())
    monkeypatch.setattr(command, "serve_texts", lambda *given: found.extend(given))

    def call(*words: str):
        found.clear()
        done = CliRunner().invoke(app, ["serve", "device", "--port", "0", *words])
        for listener in found[1:2]:
            listener.close()
        return done, *found

    return call


def test_a_run_or_the_settings_say_what_is_kept(serve, tmp_path):
    run = certified_run(tmp_path, 0.4, learning="balanced")
    done, texts, *_ = serve("--run", str(run.path))
    assert done.exit_code == 0, done.output
    assert (texts.threshold, texts.policy.server_round) == (0.4, 7)
    store = tmp_path / "store"
    _, texts, *_ = serve("--run", str(run.path), "--store", str(store))
    assert texts.threshold == 0.4 and texts.folder.path == store
    texts.close()
    # Without a store nobody learns: the settings' threshold, not one that waits to be certified.
    _, texts, _, queue, fails, hosts, _ = serve("-s", "initial-threshold=0.7", "--fail-without-llm")
    assert (texts.threshold, texts.stored_tokens(), queue, fails) == (0.7, None, 64, True)
    assert hosts == {"127.0.0.1", "localhost", "::1"}


def test_a_run_with_peers_is_served_without_them(serve, tmp_path):
    run = certified_run(tmp_path, 0.4, preset="fedhlm")
    for words in (["--run", str(run.path)], ["--store", str(tmp_path), "-s", "preset=fedhlm"]):
        done, texts, *_ = serve(*words)
        assert done.exit_code == 0 and texts.settings.peer_mode == "off", done.output
        assert done.stderr.startswith("fedhlm: peers answer in a run only; here the LLM decides")
        texts.close()


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--host", "0.0.0.0"], "--host 0.0.0.0: whoever reaches it would be answered"),
        (["--host", "0.0.0.0", "--insecure"], "as in --allow-host my-device"),
        (["--host", "192.0.2.1", "--insecure"], "give an address of this machine, as 127.0.0.1"),
        (["--run", "missing"], "missing"),
        (["--cluster", "1"], "--cluster 1: is about a run"),
        (["-s", "peer-mode=context"], "'peer-mode' = 'context'"),
        (["-s", "colour=1"], "colour"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(serve, words, why):
    done, *found = serve(*words)
    assert done.exit_code == 2 and not found
    (line,) = done.stderr.strip().splitlines()
    assert why in line


def test_another_address_is_served_when_it_is_said_twice(serve):
    done, *_, hosts, access = serve("--host", "0.0.0.0", "--insecure", "--allow-host", "My-Device")
    assert done.exit_code == 0, done.output
    assert hosts == {"127.0.0.1", "localhost", "::1", "my-device"}
    assert access.tokens is None
    done, *_, hosts, _ = serve("--host", "127.0.0.2")
    assert done.exit_code == 0 and "127.0.0.2" in hosts


def test_who_waits_for_the_models_is_told(serve, monkeypatch):
    said = threading.Event()
    monkeypatch.setattr(reaching, "PATIENCE", 0.0)
    monkeypatch.setattr(reaching.typer, "echo", lambda *_, **__: said.set())
    monkeypatch.setattr(command, "reach_llm", lambda *_: Down() if said.wait(600) else None)
    done, texts, *_ = serve()
    assert done.exit_code == 0 and texts.device.uplink.link.transport is not None


def test_the_llms_token_does_not_open_the_device(serve, monkeypatch, tmp_path):
    monkeypatch.setenv("FEDHLM_LLM_TOKEN", "that-of-the-llm-0123456789")
    *_, access = serve()
    assert access.tokens is None
    (tmp_path / "token").write_text("that-of-the-device-0123456789")
    *_, access = serve("--token-file", str(tmp_path / "token"))
    assert access.tokens.device("that-of-the-device-0123456789") == ""
