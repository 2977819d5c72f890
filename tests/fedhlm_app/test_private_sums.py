"""Runs whose sums carry noise: what is on the wire, what is accounted for, what is refused."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from clients.learning.feedback import Feedback
from fedhlm_app.learning.rules import sums_rule
from fedhlm_app.learning.rules.certified import GRID
from fedhlm_app.results.report.page import render
from fedhlm_app.results.report.rows import figures as table_rows
from fedhlm_app.settings import Settings, SettingsError
from hlm.line import LineSums
from hlm.privacy import gaussian_epsilon
from hlm.risk import CurveRelease, risk_sums
from hlm.risk.private import square_root_sums


def _in_process():
    path = Path(__file__).with_name("in_process.py")
    spec = importlib.util.spec_from_file_location("in_process", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["in_process"] = module
    spec.loader.exec_module(module)
    return module


in_process = _in_process()
SLOW = pytest.mark.slow


@pytest.fixture(scope="module")
def runner():
    with pytest.MonkeyPatch.context() as patch:
        yield in_process.Runner(patch)


def settings(**changes) -> Settings:
    given = {"workload": "score", **changes}
    return Settings.from_sources({k.replace("_", "-"): v for k, v in given.items()}, {})


def feedback(seed=0, prompts=3, each=10) -> Feedback:
    rng = np.random.default_rng(seed)
    u = rng.random(prompts * each)
    wrong = (rng.random(len(u)) < u / 2).astype(float)
    return Feedback.create(u, wrong, prompt=np.repeat(np.arange(prompts), each))


RULES = ["linear", "certified", "certified-high-probability"]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("where", ["local", "central"])
def test_a_device_sends_what_the_server_expects(rule, where):
    chosen = settings(learning=rule, privacy=where)
    for data in (feedback(), feedback(prompts=1), Feedback.empty()):
        found = sums_rule(chosen).sums(data, np.random.default_rng(0))
        assert {k: len(v) for k, v in found.items()} == dict(
            sums_rule(chosen).calibration().lengths()
        )
        assert sums_rule(chosen).problem({k: np.array(v) for k, v in found.items()}) == ""


@pytest.mark.parametrize("rule", RULES)
def test_noise_is_on_the_wire_with_local_privacy_only(rule):
    name = "line-sums" if rule == "linear" else "risk-curve"
    for where, differs in (("local", True), ("central", False)):
        chosen = settings(learning=rule, privacy=where)
        one, other = (
            np.array(sums_rule(chosen).sums(feedback(), np.random.default_rng(seed))[name])
            for seed in (0, 1)
        )
        public = 1 if rule == "linear" else 2
        assert (one[:public] == other[:public]).all()
        assert (one[public:] != other[public:]).all() == differs
    # Without a generator the operating system seeds one: no two replies are alike.
    chosen = settings(learning=rule, privacy="local")
    assert sums_rule(chosen).sums(feedback())[name] != sums_rule(chosen).sums(feedback())[name]


def test_the_number_of_prompts_is_a_matter_of_the_settings():
    chosen = settings(learning="certified", privacy="local")
    assert sums_rule(chosen).prompts == 3
    for data in (feedback(), feedback(prompts=1), Feedback.empty()):
        assert sums_rule(chosen).sums(data)["risk-curve"][:2] == [3, 1]
    assert sums_rule(settings(learning="certified", workload="classify")).prompts == 30
    assert (
        sums_rule(settings(learning="certified", tokens_per_round=12, tokens_per_prompt=8)).prompts
        == 1
    )
    audited = sums_rule(settings(learning="certified", privacy="local", audit_rate=0.25)).release
    assert isinstance(audited, CurveRelease) and audited.bound == 4.0


@pytest.mark.parametrize("rule", ["certified", "certified-high-probability"])
def test_pooled_noisy_curves_give_a_careful_threshold(rule):
    plain = settings(learning=rule, fidelity_budget=0.2, confidence=0.1)
    chosen = plain.model_copy(update={"privacy": "local", "privacy_noise": 0.05})
    rng = np.random.default_rng(0)
    parts = [feedback(seed) for seed in range(40)]
    found = []
    for made in [plain] + [chosen] * 20:
        calibration = sums_rule(made).calibration()
        replies = {
            client: {"risk-curve": np.array(sums_rule(made).sums(part, rng)["risk-curve"])}
            for client, part in enumerate(parts)
        }
        calibration.absorb(0, replies, range(40))
        found.append(calibration.result(0))
    # One draw of the noise may be lucky; on the whole it costs.
    assert -1 < np.mean(found[1:]) < found[0]
    truth = sum(risk_sums(p.u, p.beta, p.prompt, GRID).risk for p in parts)
    read = sums_rule(chosen).release.read(calibration.sums[0])
    # 64 correlated normal errors: all within six deviations (false alarm below 2e-7).
    assert (np.abs(read.risk - truth) < 6 * read.deviation).all()
    assert read.prompts == 120


def test_a_line_drowned_in_noise_keeps_the_threshold_and_says_so(caplog):
    chosen = settings(learning="linear", privacy="central", initial_threshold=0.4)
    calibration = sums_rule(chosen).calibration()
    vector = sums_rule(chosen).release.encode(LineSums.of(feedback().u, feedback().beta))
    calibration.absorb(0, {0: {"line-sums": vector}}, {0})
    assert calibration.result(0) == 0.4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning": "certified", "workload": "generate"}, "no rising risk curve"),
        ({"learning": "certified", "personalisation": "local"}, "drown|starts"),
        ({"learning": "linear", "personalisation": "shrunk"}, "drown|starts"),
        ({"learning": "certified", "edge_rule": "fedmedian"}, "adds up sums"),
        ({"learning": "certified", "strategy": "scaffold"}, "adds up sums"),
    ],
)
@pytest.mark.parametrize("where", ["local", "central"])
def test_what_has_no_bound_is_refused(changes, message, where):
    with pytest.raises(SettingsError, match=message):
        settings(privacy=where, **changes)


def test_a_log_of_single_tokens_is_refused():
    with pytest.raises(SettingsError, match="token-log"):
        settings(privacy="local", token_log=True)


@pytest.mark.parametrize("where", ["local", "central"])
def test_a_private_run_states_what_it_spent(runner, tmp_path, where):
    federation, folder, grid = runner.run(
        tmp_path,
        workload="score",
        learning="certified",
        fidelity_budget=0.6,
        calibration_rounds=2,
        rounds=3,
        privacy=where,
        privacy_noise=0.05,
        privacy_delta=1e-6,
    )
    summary = folder.summary()
    spent = gaussian_epsilon(0.05, 2, 1e-6)
    assert summary["epsilon"] == spent
    assert summary["privacy"] == {
        "mechanism": "Gaussian",
        "where": {"local": "device", "central": "server"}[where],
        "unit": "client",
        "covers": ["sums of the threshold"],
        "noise": 0.05,
        "releases": 2,
        "epsilon": spent,
        "delta": 1e-6,
    }
    lines = folder.metrics()
    assert lines[0]["epsilon"] < lines[1]["epsilon"] == lines[2]["epsilon"] == spent
    # 2 rounds, 4 clients, 4 prompts each; noise of every reply, or one for every round.
    sums = federation.strategy.calibration.rule.sums[0]
    assert sums[:2].tolist() == [32, 8 if where == "local" else 2]
    replies = [r.content.metric_records["metrics"] for r in grid.replies if r.has_content()]
    curves = np.array([m["risk-curve"] for m in replies if "risk-curve" in m])
    assert len(curves) == 8 and (curves[:, 1] == (where == "local")).all()
    rises = np.linalg.solve(square_root_sums(len(GRID)), curves[:, 2:].T)
    assert (rises > -1e-9).all() == (where == "central")
    if where == "local":
        counts = [m["num-examples"] for m in replies if "risk-curve" in m]
        assert counts == [20] * 8
    row = next(row for row in table_rows(summary) if row and row[0] == "privacy, epsilon")
    assert row[1] == f"{spent:.3g}" and "per client, 2 releases" in row[2]
    page = render("run", folder.config(), lines, summary)
    assert "epsilon at delta 1e-06, per client" in page


@SLOW
@pytest.mark.parametrize("where", ["local", "central"])
def test_a_routers_weights_and_sums_carry_noise(runner, tmp_path, where):
    federation, folder, grid = runner.run(
        tmp_path,
        policy="router",
        workload="score",
        learning="certified",
        fidelity_budget=0.6,
        rounds=4,
        router_rounds=2,
        calibration_rounds=1,
        privacy=where,
        privacy_noise=0.05,
        privacy_clip=0.5,
    )
    summary, lines = folder.summary(), folder.metrics()
    assert summary["privacy"]["covers"] == ["sums of the threshold", "router"]
    assert summary["privacy"]["releases"] == 3
    assert summary["epsilon"] == gaussian_epsilon(0.05, 3, 1e-5)
    # Held where everything is escalated, whatever the noise.
    assert [line["threshold"]["global"] for line in lines[:2]] == [-1, -1]
    assert lines[0]["resolution"]["local"] == lines[1]["resolution"]["local"] == 0
    models = [np.array(line["policy"]["router"]) for line in lines]
    assert not np.array_equal(models[0], models[1])
    np.testing.assert_array_equal(models[1], models[3])
    trained = [
        reply.content.array_records["arrays"]["router"].numpy()
        for reply in grid.replies
        if reply.has_content() and "arrays" in reply.content.array_records
    ][:4]
    # The first round's changes: within the clip without noise, beyond it with it.
    moved = [np.linalg.norm(router - initial_weights(federation)) for router in trained]
    if where == "local":
        dims = len(trained[0])
        assert np.mean(moved) == pytest.approx(2 * 0.5 * 0.05 * math.sqrt(dims), rel=0.6)
    _, other, _ = runner.run(
        tmp_path / "again",
        policy="router",
        workload="score",
        learning="balanced",
        rounds=2,
        router_rounds=1,
        privacy=where,
        privacy_noise=2.0,
    )
    spent = other.summary()["privacy"]
    assert (spent["covers"], spent["releases"]) == (["policy"], 2)
    assert spent["epsilon"] == gaussian_epsilon(2.0, 2, 1e-5)


def initial_weights(federation):
    from fedhlm_app.learning.gradients import initial_policy

    return initial_policy(federation.settings)["router"]
