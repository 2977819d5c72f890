"""`fedhlm doctor`: it finds what is wrong, and nothing where nothing is."""

from __future__ import annotations

import json
import os
import socket
import time
from collections import namedtuple

import pytest
from typer.testing import CliRunner

from fedhlm_app.cli import app, checkup
from fedhlm_app.hosting.llm import build_service
from fedhlm_app.server import preflight
from fedhlm_app.settings import Settings
from servers import account
from servers.service import ServedLanguageModel, ServiceOptions
from tests.certificates import Authority
from tests.served import serving_app

Usage = namedtuple("Usage", "free")


@pytest.fixture(autouse=True)
def quiet(monkeypatch, tmp_path):
    """Ports and disk of this machine are its own affair."""
    monkeypatch.delenv("FEDHLM_LLM_TOKEN", raising=False)
    monkeypatch.setattr(checkup, "_port", lambda port, command: checkup.Finding("port", "ok", ""))
    monkeypatch.setattr(checkup.shutil, "disk_usage", lambda path: Usage(100 << 30))
    monkeypatch.chdir(tmp_path)


def doctor(*words):
    done = CliRunner().invoke(app, ["doctor", "--json", *words])
    found = json.loads(done.stdout) if done.exit_code < 2 else []
    return done.exit_code, [(one["what"], one["said"]) for one in found if one["state"] != "ok"]


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    """The address of a server, the file of its authority, and its application."""
    authority = Authority(tmp_path_factory.mktemp("authority"))
    service = build_service(Settings.from_sources({}, {}))
    served = ServedLanguageModel(service, ServiceOptions(), "builtin")
    with serving_app(served.app, 0, *authority.issue("127.0.0.1")) as port:
        yield f"llm-address=https://127.0.0.1:{port}", f"llm-ca-file={authority.file}"


def test_where_all_is_well_nothing_is_wrong(llm):
    assert doctor() == (0, [])
    assert doctor("-s", llm[0], "-s", llm[1]) == (0, [])
    table = CliRunner().invoke(app, ["doctor", "-s", llm[0], "-s", llm[1]])
    assert "the LLM server's is valid until" in " ".join(table.stdout.split())


def test_a_server_that_is_not_trusted_or_not_there_is_named(llm):
    code, ((what, said),) = doctor("-s", llm[0])
    assert (code, what) == (1, "llm") and "llm-ca-file" in said
    code, ((what, said),) = doctor("-s", "llm-address=127.0.0.1:1")
    assert (code, what) == (1, "llm") and "no answer from the LLM server 127.0.0.1:1" in said


def test_a_clock_that_is_wrong_is_told(llm, monkeypatch):
    Late = namedtuple("Late", "time monotonic")
    monkeypatch.setattr(account, "time", Late(lambda: time.time() + 3600, time.monotonic))
    code, ((what, said),) = doctor("-s", llm[0], "-s", llm[1])
    assert (code, what) == (1, "clock")
    assert "s behind the LLM server's; set both by NTP" in said


def test_a_model_that_loads_slowly_here_is_no_late_clock(llm, monkeypatch):
    late = [0.0]
    there = namedtuple("There", "time monotonic")(lambda: time.time() + late[0], time.monotonic)
    monkeypatch.setattr(checkup, "time", there)
    monkeypatch.setattr(preflight, "require_model", lambda *_: late.__setitem__(0, 3600.0))
    assert doctor("-s", llm[0], "-s", llm[1]) == (0, [])


def test_disk_models_and_folders_are_looked_at(monkeypatch, tmp_path):
    monkeypatch.setattr(checkup.shutil, "disk_usage", lambda path: Usage(1 << 20))
    code, found = doctor()
    assert code == 1 and [what for what, _ in found] == ["disk", "temporary files"]
    monkeypatch.undo()
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    code, found = doctor("-s", "run-dir=file/runs", "-s", "slm=./empty", "-s", "llm=./empty")
    assert code == 1 and {"models", "run-dir"} <= {what for what, _ in found}
    assert doctor("-s", "no-such-setting=1")[0] == 2
    assert doctor("--keys", "nowhere")[0] == 2


def test_keys_that_others_may_read_and_dates_are_told(tmp_path):
    for words in (["create", "keys"], ["issue", "phone", "-f", "keys"]):
        assert CliRunner().invoke(app, ["keys", *words]).exit_code == 0
    assert doctor("--keys", "keys") == (0, [])
    token = tmp_path / "keys" / "devices" / "phone" / "token"
    token.chmod(0o644)
    authority = Authority(tmp_path / "keys")
    expired, _ = authority.issue("localhost", expired=True)
    os.replace(expired, tmp_path / "keys" / "server.pem")
    code, ((first, expired), (second, open_key)) = doctor("--keys", "keys")
    assert (code, first, second) == (1, "certificate", "keys")
    assert "server.pem expired on" in expired and "chmod 600" in open_key


def test_a_port_that_something_else_has_is_a_note(monkeypatch):
    monkeypatch.undo()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(checkup, "SECONDS", 0.2)
        assert checkup._port(port, "serve llm").state == "note"
    assert checkup._port(port, "serve llm").state == "ok"
    with pytest.raises(ValueError, match=r"does not answer.*flower-superlink"):
        checkup._superlink(f"http://127.0.0.1:{port}", "")
