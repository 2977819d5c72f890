"""The way to a served LLM: URL, certificates and token work end to end, and fail by name."""

from __future__ import annotations

import logging
import re
from contextlib import contextmanager
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from typer.testing import CliRunner

from clients.policy import FixedPolicy
from fedhlm_app.cli import app
from fedhlm_app.cli.listening import read_access
from fedhlm_app.client.rounds import _device
from fedhlm_app.results.runs import RunFolder
from fedhlm_app.settings import Settings, SettingsError
from fedhlm_app.settings.address import Address, parse_address
from fedhlm_app.transport.llm_access import check_llm, llm_link, read_token, require_access
from hlm.transport import LinkDown, LinkRefused
from servers.access import Tokens
from servers.llm import LanguageModelService
from servers.service import ServedLanguageModel, ServiceOptions
from tests.certificates import Authority
from tests.models import VOCAB, random_model
from tests.routed import build, make_prompts
from tests.served import make_service, payload, serving, serving_app
from tests.servers.top_tokens import TopTokens

TOKEN = "a-token-of-a-test-0123456789"
OTHER = "another-token-of-a-test-0123"


@pytest.fixture(autouse=True)
def no_token_outside(monkeypatch):
    monkeypatch.delenv("FEDHLM_LLM_TOKEN", raising=False)


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def token_file(tmp_path):
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")
    return str(file)


def settings(address, ca="", token_file="", **others):
    given = {"llm-address": address, "llm-ca-file": str(ca), "llm-token-file": token_file}
    return Settings.from_sources({**given, **others}, {})


@contextmanager
def secured(authority, *hosts, token=TOKEN, **issued):
    """A server that speaks TLS, and wants a token."""
    certificate, key = authority.issue(*(hosts or ("127.0.0.1", "localhost")), **issued)
    with serving(make_service(), token=token, certificate=certificate, key=key) as (port, served):
        yield port, served


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("127.0.0.1:8471", Address(False, "127.0.0.1", 8471, "")),
        ("[::1]:80", Address(False, "::1", 80, "")),
        ("http://edge.example", Address(False, "edge.example", 80, "")),
        ("https://edge.example/llm/", Address(True, "edge.example", 443, "/llm")),
        ("https://edge.example:8443", Address(True, "edge.example", 8443, "")),
    ],
)
def test_addresses_are_taken_apart_and_allowed_as_settings(address, parts):
    assert parse_address(address) == parts
    assert settings(address).llm_address == address


@pytest.mark.parametrize(
    "address", ["localhost", ":80", "h:0", "h:70000", "ftp://h:1", "h:x", "http://h/?a=b", "a b:80"]
)
def test_what_is_no_address_is_refused(address):
    with pytest.raises(SettingsError, match=r"setting 'llm-address' = .*host:port or an http\(s\)"):
        settings(address)


@pytest.mark.parametrize("address", ["https://me:hunter2@llm.example/", "hunter2@llm.example:80"])
def test_credentials_in_the_address_are_refused_and_not_repeated(address):
    with pytest.raises(SettingsError, match=r"holds credentials .*llm-token-file") as told:
        settings(address)
    assert "hunter2" not in str(told.value)
    answer = CliRunner().invoke(app, ["run", "-s", f"llm-address={address}"])
    assert answer.exit_code == 2
    assert "hunter2" not in answer.output


def test_files_without_a_use_are_refused(tmp_path):
    with pytest.raises(SettingsError, match=r"'llm-ca-file' .* only an https:// address"):
        settings("127.0.0.1:80", tmp_path / "ca.pem")
    with pytest.raises(SettingsError, match=r"'llm-token-file' .* no server to give the token to"):
        settings("", token_file="/etc/token")
    wanted = settings("https://h", tmp_path / "ca.pem", str(tmp_path / "token"))
    with pytest.raises(SettingsError, match=r"'llm-ca-file'.*\n.*'llm-token-file'.*no such file"):
        wanted.check_paths()


def test_a_token_comes_from_a_file_or_the_environment(token_file, tmp_path):
    assert read_token(token_file, "x", {"FEDHLM_LLM_TOKEN": OTHER}) == TOKEN
    assert read_token("", "x", {"FEDHLM_LLM_TOKEN": OTHER}) == OTHER
    assert read_token("", "x", {}) == ""
    for wrong in ("short", "has spaces in it, and a comma", "line\nbreaks-in-the-middle-of-it"):
        (tmp_path / "wrong").write_text(wrong)
        with pytest.raises(SettingsError, match=r"--token-file = .*no bearer token") as told:
            read_token(str(tmp_path / "wrong"), "--token-file", {})
        assert wrong not in str(told.value)
    with pytest.raises(SettingsError, match="cannot be read: No such file"):
        read_token(str(tmp_path / "absent"), "--token-file", {})


def test_the_variable_of_the_token_is_no_setting_and_a_misspelt_one_is_refused():
    assert Settings.from_sources({}, {"FEDHLM_LLM_TOKEN": TOKEN}) == Settings.from_sources({}, {})
    with pytest.raises(SettingsError, match="did you mean 'FEDHLM_LLM_TOKEN'"):
        Settings.from_sources({}, {"FEDHLM_LLM_TOKN": TOKEN})


def test_a_token_does_not_travel_unencrypted(token_file):
    with pytest.raises(SettingsError, match="would travel unencrypted; use an https://"):
        llm_link(settings("http://llm.example", token_file=token_file))
    llm_link(settings("127.0.0.1:1", token_file=token_file))


def test_over_tls_with_a_token_the_bytes_are_those_of_the_service(
    authority, token_file, monkeypatch
):
    with secured(authority) as (port, served):
        address = f"https://127.0.0.1:{port}"
        from_file = llm_link(settings(address, authority.file, token_file))
        monkeypatch.setenv("FEDHLM_LLM_TOKEN", TOKEN)
        from_environment = llm_link(settings(address, authority.file))
        for link in (from_file, from_environment):
            assert link.exchange(payload(3)) == make_service().handle(payload(3))
            link.close()
        assert check_llm(settings(address, authority.file, token_file))["vocab"] == VOCAB
        assert served.counts["401"] == 0


def test_a_path_may_stand_before_the_servers_own():
    inner = ServedLanguageModel(make_service(), ServiceOptions()).app
    with serving_app(Starlette(routes=[Mount("/models/llm", app=inner)])) as port:
        link = llm_link(settings(f"http://127.0.0.1:{port}/models/llm/"))
        assert link.exchange(payload()) == make_service().handle(payload())
        link.close()


WRONG = {
    "no token": ("token", "wants a bearer token .*FEDHLM_LLM_TOKEN"),
    "wrong token": ("token", r"refuses the bearer token \(status 401\)"),
    "unknown authority": ("certificate", "authority that is not trusted here.*llm-ca-file"),
    "other host": ("certificate", "certificate is for another host than 127.0.0.1"),
    "other name": ("certificate", "certificate is for another host than localhost"),
    "expired": ("certificate", "certificate has expired"),
    "later": ("certificate", "certificate is not valid yet; is this machine's clock right"),
    "no tls": ("certificate", "does not speak TLS"),
}


@contextmanager
def misconfigured(name, authority, token_file, tmp_path):
    """Settings that cannot reach a server which is there."""
    ca, hosts, issued = authority.file, (), {}
    host = "127.0.0.1"
    if name == "unknown authority":
        ca = Authority(tmp_path / "other").file
    elif name == "other host":
        hosts = ("127.0.0.2", "llm.example")
    elif name == "other name":
        host, hosts = "localhost", ("127.0.0.1", "llm.example")
    elif name in ("expired", "later"):
        issued = {name: True}
    elif name == "no token":
        token_file = ""
    elif name == "wrong token":
        token_file = str(tmp_path / "wrong")
        (tmp_path / "wrong").write_text(OTHER)
    if name == "no tls":
        with serving(make_service(), token=TOKEN) as (port, served):
            yield settings(f"https://127.0.0.1:{port}", ca, token_file), served
        return
    with secured(authority, *hosts, **issued) as (port, served):
        yield settings(f"https://{host}:{port}", ca, token_file), served


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_token_or_certificate_is_told_from_a_link_that_is_down(
    name, authority, token_file, tmp_path, caplog
):
    cause, words = WRONG[name]
    with misconfigured(name, authority, token_file, tmp_path) as (wrong, served):
        # Before a run: one line.
        for check in (check_llm, require_access):
            with pytest.raises(SettingsError, match=words) as told:
                check(wrong)
            assert len(str(told.value).splitlines()) == 1
        # During one: by name in the log and in the figures.
        setup = build(random_model("llama", 1), random_model("llama", 2), FixedPolicy(kept=False))
        setup.uplink.link.transport = link = llm_link(wrong)
        with pytest.raises(LinkRefused) as refused:
            link.exchange(payload())
        assert refused.value.cause == cause
        with caplog.at_level(logging.WARNING):
            _, records, traffic = setup.generate(make_prompts(VOCAB, 2), 3)
        assert served.counts["200"] == 0
    assert records.stage_counts()["unresolved"] == records.tokens > 0
    kinds = {"token": traffic.refused, "certificate": traffic.untrusted}
    assert kinds.pop(cause) == traffic.failures > 0
    assert set(kinds.values()) == {0}
    told = [record.getMessage() for record in caplog.records if "clients" in record.name]
    assert len(told) == 1  # and not once a token
    assert f"LLM server {wrong.llm_address}" in told[0]
    for shown in (caplog.text, str(refused.value), repr(wrong)):
        assert TOKEN not in shown and OTHER not in shown


def test_a_server_that_is_gone_is_down_and_not_refused(caplog):
    link = llm_link(settings("127.0.0.1:1"))
    with pytest.raises(LinkDown) as down:
        link.exchange(payload())
    assert not isinstance(down.value, LinkRefused)
    with pytest.raises(SettingsError, match="'llm-address': no answer from the LLM server"):
        check_llm(settings("127.0.0.1:1"))
    # A device that serves goes on without it.
    require_access(settings("127.0.0.1:1")).close()
    assert "tried again" in caplog.text


def test_a_server_that_speaks_tls_to_a_link_that_does_not_is_suspected(authority):
    with secured(authority) as (port, _):
        with pytest.raises(SettingsError, match="if it speaks TLS, llm-address must begin with"):
            check_llm(settings(f"http://127.0.0.1:{port}"))


def test_a_file_that_holds_no_certificates_is_refused_by_name(tmp_path):
    (tmp_path / "ca.pem").write_text("nothing")
    with pytest.raises(SettingsError, match=r"'llm-ca-file' = .*no file of certificates in PEM"):
        llm_link(settings("https://127.0.0.1:1", tmp_path / "ca.pem"))


@pytest.mark.parametrize("name", ["wrong token", "expired"])
def test_a_run_that_cannot_reach_its_llm_is_not_started(
    name, authority, token_file, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    with misconfigured(name, authority, token_file, tmp_path) as (wrong, _):
        words = [f"-s{key}={value}" for key, value in wrong.changed().items()]
        answer = CliRunner().invoke(app, ["run", *words])
    assert answer.exit_code == 2
    assert len(answer.stderr.strip().splitlines()) == 1
    assert wrong.llm_address in answer.stderr
    assert not (tmp_path / "runs").exists()


def test_no_file_of_a_run_holds_the_token(authority, token_file, tmp_path, monkeypatch):
    """What is written down: settings, the device's link, and its log."""
    monkeypatch.setenv("FEDHLM_LLM_TOKEN", OTHER)
    with secured(authority) as (port, _):
        of_run = settings(
            f"https://127.0.0.1:{port}", authority.file, token_file, **{"run-dir": str(tmp_path)}
        )
        folder = RunFolder.create(of_run, {})
        device = _device(of_run, 0, 1)
        shown = [repr(device.uplink.link.transport), str(vars(of_run)), str(of_run.changed())]
    shown += [file.read_text() for file in folder.path.rglob("*") if file.is_file()]
    assert any("llm-token-file" in text for text in shown)
    for text in shown:
        assert TOKEN not in text and OTHER not in text


def test_the_commands_of_the_docs_make_files_that_work(tmp_path, monkeypatch):
    text = (Path(__file__).resolve().parents[3] / "docs" / "deploy.md").read_text("utf-8")
    block = text.partition("## Encryption and access")[2].split("```")[1]
    *commands, serve = block.strip().splitlines()
    monkeypatch.chdir(tmp_path)
    for line in commands:
        done = CliRunner().invoke(app, line.replace("10.0.0.5", "127.0.0.2").split()[1:])
        assert done.exit_code == 0, done.output
    given = dict(zip(*[iter(serve.split()[3:])] * 2, strict=True))
    files = {"certificate": given["--tls-cert"], "key": given["--tls-key"]}
    own = tmp_path / "keys" / "devices" / "tablet"
    secret = [*own.glob("*.key"), own / "token", tmp_path / "keys" / "ca.key", Path(files["key"])]
    assert len(secret) == 4 and not [one for one in secret if one.stat().st_mode & 0o077]
    tokens = Tokens(file=Path(given["--token-file"]))
    with serving(make_service(), token=tokens, **files) as (port, _):
        access = (own / "ca.pem", str(own / "token"))
        check_llm(settings(f"https://127.0.0.1:{port}", *access))
        # Renewed by the same authority, nothing new is needed on devices.
        CliRunner().invoke(app, ["keys", "create", "keys"])
        check_llm(settings(f"https://localhost:{port}", *access))
        assert "tablet" in CliRunner().invoke(app, ["keys", "list", "-f", "keys"]).output
        done = CliRunner().invoke(app, ["keys", "revoke", "tablet", "-f", "keys"])
        assert done.exit_code == 0, done.output
        with pytest.raises(SettingsError, match="refuses the bearer token"):
            check_llm(settings(f"https://127.0.0.1:{port}", *access))


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["issue", "phone"], "keys: not there; `fedhlm keys create` makes it"),
        (["issue", "phone", "-f", "."], "ca.pem: not there; `fedhlm keys create` makes it"),
        (["list"], "ca.pem: not there"),
        (["revoke", "phone", "-f", "."], "device 'phone' has no token; devices that have: none"),
        (["create", "-n", "bücher"], "'bücher' is no name of a server"),
        (["create", "file"], "file"),
    ],
)
def test_keys_that_cannot_be_made_are_refused_in_one_line(words, why, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    done = CliRunner().invoke(app, ["keys", *words])
    assert done.exit_code == 2
    (line,) = done.stderr.strip().splitlines()
    assert re.search(why, line), line


@pytest.mark.parametrize("command", ["llm", "device"])
def test_others_are_let_in_by_certificate_and_token_or_when_it_is_said_twice(command):
    done = CliRunner().invoke(app, ["serve", command, "--host", "10.0.0.5"])
    assert done.exit_code == 2
    assert "--host 10.0.0.5: whoever reaches it would be answered" in done.stderr
    assert "--tls-cert and --token-file" in done.stderr


def test_loopback_needs_neither(authority, token_file):
    certificate, key = authority.issue("localhost")
    for host in ("127.0.0.1", "localhost", "::1", "127.8.0.1"):
        assert read_access(host, "", "", "", environ={}).tokens is None
    with pytest.raises(SettingsError, match="able to listen in; give --tls-cert"):
        read_access("0.0.0.0", "", "", token_file)
    assert read_access("0.0.0.0", "", "", "", insecure=True, environ={}).tokens is None
    found = read_access("0.0.0.0", certificate, key, token_file)
    assert found.tokens is not None and found.tokens.device(TOKEN) == ""
    assert TOKEN not in repr(found)


def test_a_device_that_waits_no_longer_than_its_server_is_refused(tmp_path):
    with serving(make_service(), answer_seconds=54) as (port, _):
        address = f"127.0.0.1:{port}"
        assert check_llm(settings(address))["answer_seconds"] == 54
        with pytest.raises(SettingsError, match=r"'llm-timeout' = 54: .* may take 54 s"):
            check_llm(settings(address, **{"llm-timeout": 54}))


def test_a_device_whose_verifier_the_server_cannot_serve_is_refused():
    service = LanguageModelService(TopTokens(random_model("llama", 2)))
    with serving(service) as (port, _):
        address = f"127.0.0.1:{port}"
        with pytest.raises(SettingsError, match=r"'slm' = 'builtin' has .* of 4096.* one of 64;"):
            require_access(settings(address))
        service.engine.vocab = 4096
        require_access(settings(address)).close()
        with pytest.raises(SettingsError, match=r"'verification' = 'scalar'.*with it: greedy"):
            require_access(settings(address, decoding="sampled", verification="scalar"))
