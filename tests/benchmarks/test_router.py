from __future__ import annotations

from argparse import Namespace

import numpy as np
import pytest

from benchmarks._teacher_forced import Forced, articles, shared_folder
from benchmarks.router import SHARES, compare, judged_part, kept_loss, train
from clients.learning.feedback import Feedback
from clients.learning.router_model import RouterLearning, RouterModel


def rows(prompts: int, each: int, seed: int) -> Forced:
    rng = np.random.default_rng(seed)
    count = prompts * each
    whole = rng.integers(0, 9, (3, count))
    shares = rng.random((3, count)).astype(np.float32)
    return Forced(
        np.repeat(np.arange(prompts), each),
        np.tile(np.arange(each), prompts),
        *whole,
        *shares,
        rng.random((count, 4)).astype(np.float32),
        np.zeros(count, bool),
        rng.integers(0, 4, prompts),
    )


@pytest.mark.parametrize("prompts", [9, 60, 3500])
def test_choices_and_reports_share_no_article(prompts: int) -> None:
    data = rows(prompts, 3, 0)
    chosen, reported = (set(judged_part(data, p).prompt.tolist()) for p in ("choice", "report"))
    assert not chosen & reported and chosen | reported == set(range(prompts))
    assert len(chosen) == min(1000, prompts // 3)
    part = judged_part(data, "report")
    for name in ("hidden", "draft", "x_given"):
        assert len(getattr(part, name)) == 3 * len(reported)


@pytest.mark.skipif(shared_folder() is None, reason="needs AG News, see FEDHLM_SHARED")
def test_the_articles_of_the_earliest_choices_are_not_reported_on() -> None:
    everything = articles("validation", 0)
    data = rows(len(everything), 1, 0)
    chosen = np.unique(judged_part(data, "choice").prompt)
    assert [everything[row] for row in chosen] == articles("validation", 1000)


def test_kept_loss_equals_brute_force() -> None:
    rng = np.random.default_rng(1)
    score, beta, ties = rng.random(200), rng.random(200), rng.random(200)
    prompt = np.repeat(np.arange(20), 10)
    weights = np.stack([np.ones(20), rng.integers(0, 3, 20).astype(float)])
    found = kept_loss(score, beta, prompt, weights, ties)
    for row, counts in enumerate(weights):
        drawn = np.repeat(np.arange(200), counts[prompt].astype(int))
        order = drawn[np.argsort(-score[drawn], kind="stable")]
        for column, share in enumerate(SHARES):
            sent = int(np.ceil(share * len(order)))
            # A token drawn twice is sent twice, or not at all.
            while sent < len(order) and order[sent] == order[sent - 1]:
                sent += 1
            assert found[row, column] == pytest.approx(beta[order[sent:]].sum() / len(order))


def test_the_oracle_closes_all_and_chance_nothing() -> None:
    rng = np.random.default_rng(2)
    beta, prompt = rng.random(600), np.repeat(np.arange(30), 20)
    scores = {"closed-form": beta + 0.5 * rng.random(600)}
    found = compare(scores, {"eq. 3": beta}, prompt, 50, 0)["eq. 3"]
    for name, closed in (("oracle", 1.0), ("random", 0.0)):
        assert found[name]["area_closed"]["value"] == pytest.approx(closed)
    half = found["closed-form"]["share 0.5"]
    assert half["closed"]["low"] < half["closed"]["value"] < half["closed"]["high"] < 1
    assert half["gain"]["value"] == 0 < found["oracle"]["share 0.5"]["gain"]["low"]


def test_rounds_over_unequal_clients_learn_what_one_place_would() -> None:
    rng = np.random.default_rng(3)
    features = rng.standard_normal((3000, 5)).astype(np.float32)
    beta = (rng.random(3000) < 1 / (1 + np.exp(-2 * features[:, 0]))).astype(float)
    feedback = Feedback.create(np.zeros(3000), beta, features=features)
    # Each client has seen one side of the other columns only.
    owner = (features[:, 1] > 0) + 2 * (features[:, 2] > 1).astype(int)
    learning = RouterLearning(RouterModel(5), "loss", decay=0.0)
    settings = Namespace(rounds=12, batch=32, learning_rate=0.02, momentum=0.6, average=3, seed=0)
    policy = train(learning, feedback, owner, settings)
    assert policy[1] == pytest.approx(2.0, abs=0.35)
    assert np.abs(policy[2:]).max() < 0.35
    settings.average, settings.rounds = 1, 1
    assert learning.loss(policy, feedback) < learning.loss(
        train(learning, feedback, owner, settings), feedback
    )
