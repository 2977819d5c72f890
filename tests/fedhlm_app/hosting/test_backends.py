"""A further LLM backend is its module and a line; a run that it cannot serve never starts."""

from __future__ import annotations

import time

import numpy as np
import pytest

from fedhlm_app.hosting.backends import BACKENDS, BackendKind, build_backend, check_backend
from fedhlm_app.hosting.llm import build_service
from fedhlm_app.models.load import load_llm
from fedhlm_app.server import preflight
from fedhlm_app.settings import SettingsError
from fedhlm_app.transport.llm_access import require_verifier
from hlm.verifiers import VERIFIERS, Need
from servers.backend import Feed
from tests.fedhlm_app.in_process import Runner, settings_of
from tests.servers.top_tokens import TopTokens


@pytest.fixture
def arguments(monkeypatch):
    found = []

    def build(settings, argument):
        found.append(argument)
        return TopTokens(load_llm(settings.llm), settings.llm_sessions, settings.llm_context)

    monkeypatch.setitem(BACKENDS, "top-tokens", BackendKind(Need.TOP, build))
    return found


def test_a_registered_backend_serves_a_run(arguments, monkeypatch, tmp_path):
    changes = {"rounds": 1, "clients": 2, "clusters": 1}
    runner = Runner(monkeypatch)
    runner.service = build_service(settings_of(llm_backend="top-tokens:far away", **changes))
    assert arguments == ["far away"]
    _, folder, _ = runner.run(tmp_path / "top", llm_backend="top-tokens", **changes)
    runner.service, runner.devices = build_service(settings_of(**changes)), {}
    assert runner.service.engine.offers == BACKENDS["engine"].offers
    _, other, _ = runner.run(tmp_path / "engine", **changes)
    found, expected = folder.summary(), other.summary()
    assert found["resolution"] == expected["resolution"] and found["bytes"] == expected["bytes"]


@pytest.mark.parametrize("verification", [name for name in VERIFIERS if name != "greedy"])
def test_a_verifier_that_needs_more_than_the_backend_offers_is_refused(arguments, verification):
    settings = settings_of(llm_backend="top-tokens", decoding="sampled", verification=verification)
    with pytest.raises(SettingsError, match=rf"'{verification}': it needs whole.*with it: greedy"):
        preflight.check(settings)
    assert arguments == []  # nothing was built


def test_a_served_llm_is_held_to_what_it_says_of_itself():
    sampled = settings_of(decoding="sampled")
    require_verifier(sampled, {"verifiers": list(VERIFIERS)})
    require_verifier(sampled, {})  # of an earlier version
    require_verifier(settings_of(), {"verifiers": ["greedy"]})
    with pytest.raises(SettingsError, match=r"'verification' = 'coupled'.*with it: greedy"):
        require_verifier(sampled, {"verifiers": ["greedy"]})


def test_a_pace_is_what_every_pass_takes_at_least_whatever_its_batch():
    settings = settings_of(llm_backend="engine:40")
    check_backend(settings)
    engine = build_backend(settings)
    none = np.empty(0, np.int64)
    for texts in (1, 6):
        feeds = [Feed(key, 0, np.array([1, 5, 9]), np.array([3])) for key in range(texts)]
        begin = time.perf_counter()
        engine.score(feeds)
        assert time.perf_counter() - begin >= 0.04
    before = engine.stats.seconds
    engine.score([Feed(0, 3, np.array([7]), none)])
    assert engine.stats.seconds == before  # nothing was read
