"""Tokens the LLM should have decided and did not: counted apart, said aloud, and a failed run."""

from __future__ import annotations

import numpy as np
import pytest
from rich.console import Console

from clients.records import Stage, TokenRecords, Traffic
from fedhlm_app.cli import run as run_module
from fedhlm_app.client import rounds as client_rounds
from fedhlm_app.client.device import Device
from fedhlm_app.compare.tally import Tally, Took
from fedhlm_app.results.report.rows import figures, text_lines
from fedhlm_app.results.runs import RunFolder
from fedhlm_app.results.unresolved import RunFailed, failure, needs_llm
from fedhlm_app.server import preflight, resuming
from fedhlm_app.server.rounds import Federation
from fedhlm_app.settings import Settings, SettingsError
from fedhlm_app.transport.transports import DirectTransport
from hlm.channels import LINKS, Times
from hlm.transport import LinkDown
from tests.fedhlm_app.in_process import LocalGrid, Runner, settings_of
from tests.served import make_service, serving


class Flaky:
    """A link to the LLM that is down for the exchanges of some numbers."""

    def __init__(self, link, down) -> None:
        self.link, self.down, self.count = link, down, 0

    def exchange(self, payload: bytes) -> bytes:
        self.count += 1
        if self.down(self.count):
            raise LinkDown("no answer from the LLM server 10.0.0.5:8471: refused")
        return self.link.exchange(payload)


@pytest.fixture(scope="module")
def runner():
    with pytest.MonkeyPatch.context() as patch:
        yield Runner(patch)


@pytest.fixture
def run(runner, tmp_path, monkeypatch):
    """A run of two clients whose links are down for the exchanges that `down` names."""

    def call(down, **changes):
        devices = {}

        def device(settings, client, _):
            if client not in devices:
                link = Flaky(DirectTransport(runner.service), down)
                devices[client] = Device(settings, client, link)
                # A link that was down is tried again at once.
                devices[client].uplink.link.back_off.first = 0.0
                devices[client].uplink.link.back_off._next = 0.0
            return devices[client]

        monkeypatch.setattr(client_rounds, "_device", device)
        settings = settings_of(clients=2, clusters=1, run_dir=str(tmp_path), **changes)
        folder = RunFolder.create(settings, {})
        federation = Federation(settings, None, folder, None)
        return federation, folder, LocalGrid(settings, runner.service)

    return call


def test_a_run_whose_llm_never_answered_fails_and_keeps_its_folder(run, caplog, capsys):
    federation, folder, grid = run(lambda count: True, initial_threshold=0.3)
    with pytest.raises(RunFailed, match=r"the LLM never answered: \d+ of 80 tokens"):
        federation.run(grid)
    found = folder.summary()
    lost = found["resolution"]["unresolved"]
    assert lost > 0 == found["resolution"]["llm_accepted"]
    assert found["trr"] == pytest.approx(1 - lost / 80)
    assert found["unresolved"] == lost / 80
    assert found["error"].startswith("the LLM never answered")
    for line in folder.metrics():
        assert line["unresolved"] == line["resolution"]["unresolved"] / 40
        assert f"round {line['round']}: {line['resolution']['unresolved']} of 40 tokens" in (
            caplog.text
        )
    for client in (0, 1):
        assert f"client {client}, round 2: " in caplog.text
    assert "the LLM never answered" in (folder.path / "report.html").read_text()
    # The certificate of nothing is no certificate of 0.
    rows = {row[0].strip(): row[1:] for row in figures(found) if row}
    assert rows["LLM not reached"] == (f"{lost}", f"{lost / 80:.2%}")
    assert rows["agreement, certificate"][0] == "unknown" and "certificate" not in rows
    assert any(line.startswith("  LLM not reached") for line in text_lines(found))
    # Going on with no round left shows the same end.
    again = resuming.settings_of(folder) | {"resume": str(folder.path)}
    result = run_module._finished(Settings.from_sources(again, {}))
    assert result.status == "finished:failed" and not result.ok
    run_module._explain(Console(stderr=True), result)
    assert "the LLM never answered" in capsys.readouterr().err


@pytest.mark.parametrize(("most", "fails"), [(0.0, True), (0.9, False), (1.0, False)])
def test_a_run_fails_where_more_is_lost_than_allowed(run, most, fails):
    federation, folder, grid = run(
        lambda count: count == 2, initial_threshold=0.3, max_unresolved=most
    )
    if fails:
        with pytest.raises(RunFailed, match="'max-unresolved' = 0 allows no more"):
            federation.run(grid)
    else:
        federation.run(grid)
    found = folder.summary()
    assert 0 < found["unresolved"] < 0.9
    assert bool(found["error"]) == fails


def test_a_run_that_keeps_every_token_needs_no_llm(run):
    federation, folder, grid = run(lambda count: True, policy="always")
    federation.run(grid)
    found = folder.summary()
    assert found["error"] == "" and found["trr"] == 1 and found["measured_tokens"] == 0
    assert not needs_llm(federation.settings)
    assert needs_llm(settings_of(policy="always", audit_rate=0.1))
    assert needs_llm(settings_of())


def test_one_never_fails():
    nothing = {"tokens": 10, "unresolved": 10, "link-failures": 3}
    assert "never answered" in failure(settings_of(), nothing)
    assert failure(settings_of(max_unresolved=1.0), nothing) == ""
    answered = nothing | {"bytes-downlink": 5}
    assert "100.0% of them" in failure(settings_of(), answered)
    assert failure(settings_of(), answered | {"unresolved": 0}) == ""


def test_an_actor_with_another_model_is_refused_before_the_first_round(run):
    federation, folder, grid = run(lambda count: False)

    class Host:
        def wait(self):
            return {"vocab": 97, "max_context": 128}

    federation.host = Host()
    with pytest.raises(SettingsError, match=r"'builtin' has a vocabulary of 4096 .* one of 97"):
        federation.run(grid)
    assert folder.metrics() == []


def test_a_served_llm_of_another_kind_is_refused_by_name():
    with serving(make_service()) as (port, served):
        settings = Settings.from_sources({"llm-address": f"127.0.0.1:{port}"}, {})
        with pytest.raises(SettingsError, match=r"\('random'\) one of \d+; serve the LLM"):
            preflight.check(settings)
        served.service.engine.vocab = 4096
        served.tokenizer = "0123456789abcdef"
        with pytest.raises(SettingsError, match="has another tokenizer"):
            preflight.check(settings)
        served.tokenizer = ""
        longer = settings.model_copy(update={"prompt_tokens": 60})
        with pytest.raises(SettingsError, match=r"texts of at most 64 tokens.* up to 70"):
            preflight.check(longer)
        preflight.check(settings)


def test_a_comparison_counts_them_apart():
    stages = [Stage.LOCAL, Stage.LLM_ACCEPTED, Stage.UNRESOLVED, Stage.UNRESOLVED]
    records = TokenRecords(1, len(stages))
    records.present[0] = True
    records.stage[0] = stages
    records.token[0] = records.draft[0] = 1
    tally = Tally(LINKS)
    took = Took(Times(LINKS), 0.5, 0.5, 1, [])
    tally.add_text(records, Traffic(), took, greedy=True, race=False)
    found = tally.figures()
    assert (found["tokens"], found["sent_to_llm"], found["unresolved"]) == (4, 1, 2)
    assert found["trr"] == 0.25


def test_the_log_of_a_run_shows_its_result():
    lines = text_lines(
        {
            "tokens": 10,
            "clients": 1,
            "rounds": 1,
            "resolution": dict.fromkeys(
                ("cache", "peer", "edge", "llm_accepted", "llm_resampled", "unresolved"), 0
            )
            | {"local": 10},
            "trr": 1.0,
            "llm_agreement": 1.0,
            "certificate": np.float64(0.0),
            "accuracy": {"token": None, "label": None},
            "threshold": {"global": 0.5, "clusters": {}, "clients": {}},
            "bytes": {"uplink": 0, "downlink": 0, "edge": 0},
            "seconds": {"total": 1.0, "slm": 0.0, "llm": 0.0, "flower": 0.0},
        }
    )
    assert "transmission reduction  100.00%  decided without the LLM" in lines
