"""Runs that learn by gradients first and then certify what they have learned."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fedhlm_app.results.report.rows import text_lines
from fedhlm_app.settings import Settings, SettingsError
from hlm.wire.edge_update import EdgeAggregate
from servers.edge.averaging import Averaging
from tests.fedhlm_app.in_process import Runner

CERTIFY = {
    "learn_rounds": 2, "rounds": 5, "fidelity_budget": 0.5, "confidence": 0.4,
    "evaluate_every": 5, "preset": "fedhlm", "dirichlet_alpha": 10.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def runner():
    with pytest.MonkeyPatch.context() as patch:
        yield Runner(patch)


def test_gradients_learn_and_the_later_rounds_certify(runner, tmp_path) -> None:
    _, folder, grid = runner.run(tmp_path, **CERTIFY)
    summary, lines = folder.summary(), folder.metrics()
    assert summary["settings"]["learning"] == "primal-dual"
    learned = summary["guarantee"]["learned"]["0"]
    # Gradients moved it in the first rounds, and eq. 8 of these is where the search began.
    assert learned == lines[1]["threshold"]["global"] != lines[0]["threshold"]["global"] != 0.5
    assert not lines[1]["guarantee"]["certified"] and lines[1]["guarantee"]["trial"] == learned
    certified = summary["threshold"]["global"]
    assert 0 < certified <= learned
    assert set(summary["threshold"]["clients"].values()) == {certified}
    assert any(f"learned {learned:.4f}, certified {certified:.4f}: at most 50 %" in line
               for line in text_lines(summary))  # fmt: skip
    # n_k of eq. 7 counts tokens that taught something; later ones count what is certified.
    assert 0 < sum(lines[0]["weights"].values()) <= 80
    assert lines[0]["read"] > 0
    kept = [len(context.state.array_records["edge-tier-cache"]["tokens"].numpy())
            for context in grid.contexts.values()]  # fmt: skip
    stocks = [len(device.edge.cache.cache) for device in runner.devices.values() if device.edge]
    assert kept == stocks
    assert summary["copies"] <= summary["resolution"]["cache"]


def test_a_wrong_eq_7_breaks_the_result(runner, tmp_path, monkeypatch) -> None:
    def learned(folder) -> float:
        changes = {**CERTIFY, "learn_rounds": 1, "rounds": 2, "evaluate_every": 0}
        run = runner.run(tmp_path / folder, **changes)[1]
        return run.summary()["guarantee"]["learned"]["0"]

    def too_little(self: Averaging, number: int) -> EdgeAggregate:
        one = right_mean(self, number)
        return replace(one, mean=one.mean * 0.9)

    right, right_mean = learned("right"), Averaging.collect
    monkeypatch.setattr(Averaging, "collect", too_little)
    assert learned("wrong") == pytest.approx(0.9 * right)


def test_what_cannot_be_certified_is_refused_by_name() -> None:
    for given, says in (
        ({"privacy": "central"}, "'learn-rounds' = 5 and 'privacy' = 'central'"),
        ({"personalisation": "shrunk"}, "'learn-rounds' = 5 and 'personalisation' = 'shrunk'"),
        (
            {"personalisation": "cluster", "recluster-every": 2, "cluster-by": "profile"},
            "'learn-rounds' = 5 and 'recluster-every' = 2",
        ),
    ):
        with pytest.raises(SettingsError, match=says):
            Settings.from_sources({"learn-rounds": 5, **given}, {})


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        ({}, "primal-dual"),
        ({"strategy": "scaffold"}, "primal-dual"),
        ({"cost-transmit": 0.3}, "balanced"),
        ({"policy": "u-hlm"}, "linear"),
        ({"policy": "router"}, "balanced"),
        ({"learning": "certified"}, "certified"),
    ],
)
def test_auto_learns_towards_the_budget_where_it_will_be_certified(given, rule) -> None:
    assert Settings.from_sources({"learn-rounds": 5, **given}, {}).learning == rule
