"""Commands with a server that speaks OpenAI's API: they work, or one line says what is missing."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from fedhlm_app.cli import app
from fedhlm_app.cli import serve as command
from fedhlm_app.settings import SettingsError
from fedhlm_app.transport.llm_access import check_llm
from tests.fedhlm_app.in_process import settings_of
from tests.servers.openai.fake import KEY, Fake

PROMPT = "Shares of the airline"


@pytest.fixture
def fedhlm(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    return lambda *words: CliRunner().invoke(app, words)


def test_generate_asks_it_by_its_address(fedhlm):
    words = ["generate", PROMPT, "-n", "8", "--json", "--threshold", "-1"]
    with Fake("llama.cpp").serving() as url:
        found = fedhlm(*words, "--llm-address", url)
    expected = fedhlm(*words)
    assert found.exit_code == expected.exit_code == 0, found.output
    told, here = json.loads(found.stdout), json.loads(expected.stdout)
    assert told["text"] == here["text"] and told["stages"] == here["stages"]


@pytest.mark.parametrize(
    ("fake", "words", "says"),
    [
        (Fake("vllm", key=KEY), [], "wants a key: give it in the environment (FEDHLM_LLM_KEY"),
        (Fake("vllm"), ["--decoding", "sampled"], "needs whole distributions"),
    ],
)
def test_what_is_missing_is_said_in_one_line(fedhlm, fake, words, says):
    with fake.serving() as url:
        found = fedhlm("generate", PROMPT, "--llm-address", url, *words)
    assert found.exit_code == 2 and found.stdout == ""
    assert says in " ".join(found.stderr.split()) and len(found.stderr.splitlines()) < 5


def test_one_that_is_not_there_is_said(fedhlm):
    found = fedhlm("generate", PROMPT, "--llm-address", "http://127.0.0.1:9/v1")
    assert found.exit_code == 2
    assert "the LLM server http://127.0.0.1:9/v1: no answer" in " ".join(found.stderr.split())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--backend", "openai"], "give the server's URL too (--url)"),
        (["--backend", "vllm"], "'vllm' is not allowed: one of engine, openai"),
        (["--url", "localhost:8000"], "'openai:localhost:8000' is not allowed: openai:URL"),
        (["--url", "http://127.0.0.1:9/v1", "--pace-ms", "3"], "without --pace-ms"),
        (["--url", "http://127.0.0.1:9/v1", "--backend", "engine"], "goes with --backend openai"),
        (["--model", "mine"], "names a model at --url; a model to load is --llm"),
    ],
)
def test_options_that_do_not_fit_are_refused(fedhlm, words, says):
    found = fedhlm("serve", "llm", *words)
    assert found.exit_code == 2 and says in " ".join(found.stderr.split())


def test_serve_puts_our_wire_in_front(fedhlm, monkeypatch):
    served = []

    def run(app, listener, ready, *_):
        listener.close()
        ready("here")
        served.append(app)

    monkeypatch.setattr(command, "run_until_stopped", run)
    with Fake("vllm").serving() as url:
        found = fedhlm("serve", "llm", "--backend", "openai", "--url", url, "--port", "0")
    assert found.exit_code == 0 and len(served) == 1, found.output
    assert f"by builtin-7m at {url} (token ids, answers with ids" in found.stdout


def test_devices_of_a_run_are_told_what_goes_in_front():
    with pytest.raises(SettingsError, match="behind `fedhlm serve llm --backend openai --url http"):
        check_llm(settings_of(llm_address="http://127.0.0.1:9/v1"))
