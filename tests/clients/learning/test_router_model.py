"""The learned router: forward pass, gradient against autograd, and that it learns."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clients.learning.feedback import Feedback
from clients.learning.minibatches import minibatch_gradient
from clients.learning.router_model import (
    RouterLearning,
    RouterModel,
    adam_steps,
    rescored,
)
from hlm.local_steps import local_steps


@pytest.mark.parametrize("hidden", [0, 5])
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_gradient_equals_autograd(hidden: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    model = RouterModel(7, hidden)
    features = rng.standard_normal((30, 7)).astype(np.float32)
    known = rng.random(30) < 0.7
    feedback = Feedback.create(
        rng.random(30),
        np.where(known, rng.random(30), np.nan),
        known=known,
        weight=1 + 4 * rng.random(30),
        features=features,
    )
    learning = RouterLearning(model, decay=0.01)
    policy = rng.standard_normal(model.size)
    theta = torch.tensor(policy, requires_grad=True)
    bias, linear, output, inner_bias, inner = torch.split(theta, [1, 7, hidden, hidden, 7 * hidden])
    inputs = torch.tensor(features[known], dtype=torch.float64)
    logit = (
        bias + inputs @ linear + torch.tanh(inputs @ inner.reshape(7, hidden) + inner_bias) @ output
    )
    weight = torch.tensor(feedback.weight[known])
    terms = torch.nn.functional.binary_cross_entropy_with_logits(
        logit, torch.tensor(feedback.beta[known]), weight=weight, reduction="sum"
    )
    loss = terms / weight.sum() + 0.005 * theta[1:].square().sum()
    loss.backward()
    assert learning.loss(policy, feedback) == pytest.approx(loss.item(), abs=1e-10)
    assert theta.grad is not None
    np.testing.assert_allclose(learning.gradient(policy, feedback), theta.grad.numpy(), atol=1e-10)
    np.testing.assert_allclose(
        model.score(policy, features[known]), torch.sigmoid(logit).detach().numpy(), atol=1e-12
    )


def learnable(rows: int, seed: int) -> Feedback:
    """beta depends on a product of two features: out of reach of u and of a logistic router."""
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((rows, 4)).astype(np.float32)
    chance = 1 / (1 + np.exp(-3 * features[:, 0] * features[:, 1] - features[:, 2]))
    beta = (rng.random(rows) < chance).astype(float)
    return Feedback.create(rng.random(rows), beta, features=features)


def test_training_helps_and_the_hidden_layer_helps_more() -> None:
    train, held_out = learnable(4_000, 1), learnable(4_000, 2)
    losses = {}
    for hidden in (0, 16):
        learning = RouterLearning(RouterModel(4, hidden))
        gradient = partial(learning.gradient, feedback=train)
        start = learning.model.initial()
        policy = local_steps(start, gradient, 400, 1.0, clip=learning.bounds).policy
        losses[hidden] = learning.loss(policy, held_out)
    assert losses[16] < losses[0] - 0.1 < np.log(2) - 0.1


def test_minibatches_pass_over_every_token_once() -> None:
    feedback = learnable(50, 3)
    learning = RouterLearning(RouterModel(4), decay=0.0)
    policy = learning.model.initial()
    gradient = minibatch_gradient(learning, feedback, 10, np.random.default_rng(0))
    for _ in range(2):
        mean = np.mean([gradient(policy) for _ in range(5)], axis=0)
        np.testing.assert_allclose(mean, learning.gradient(policy, feedback), atol=1e-12)
    repeated = minibatch_gradient(learning, feedback, 10, np.random.default_rng(0))
    again = minibatch_gradient(learning, feedback, 10, np.random.default_rng(0))
    np.testing.assert_array_equal(repeated(policy), again(policy))


def test_adam_equals_torch() -> None:
    feedback = learnable(60, 6)
    learning = RouterLearning(RouterModel(4, 3))
    start = learning.model.initial()
    moved = adam_steps(start, lambda policy: learning.gradient(policy, feedback), 25, 0.05)
    theta = torch.nn.Parameter(torch.tensor(start))
    optimizer = torch.optim.Adam([theta], lr=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - 0.9 * step / 25)
    for _ in range(25):
        theta.grad = torch.tensor(learning.gradient(theta.detach().numpy(), feedback))
        optimizer.step()
        schedule.step()
    np.testing.assert_allclose(moved, theta.detach().numpy(), atol=1e-10)
    assert not np.array_equal(moved, start)
    with pytest.raises(ValueError, match="learning_rate"):
        adam_steps(start, lambda policy: policy, 1, 0.0)


def test_rescored_feedback_carries_scores_in_the_unit_interval() -> None:
    feedback = learnable(20, 4)
    model = RouterModel(4, 3)
    policy = 30 * np.random.default_rng(1).standard_normal(model.size)
    scored = rescored(model, policy, feedback)
    assert ((scored.u >= 0) & (scored.u <= 1)).all() and not np.array_equal(scored.u, feedback.u)


def test_empty_and_featureless_feedback() -> None:
    learning = RouterLearning(RouterModel(4, 2))
    policy = learning.model.initial()
    empty = Feedback.empty()
    assert learning.examples(empty) == 0
    bare = Feedback.create([0.1], [0.0])
    with pytest.raises(ValueError, match="features"):
        learning.loss(policy, bare)
    with pytest.raises(ValueError, match="features"):
        rescored(learning.model, policy, bare)


def test_bad_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="features"):
        RouterModel(0)
    model = RouterModel(4)
    with pytest.raises(ValueError, match="parameters"):
        model.score(np.zeros(3), np.zeros((1, 4), np.float32))
    with pytest.raises(ValueError, match="features"):
        model.score(np.zeros(5), np.zeros((1, 3), np.float32))
    with pytest.raises(ValueError, match="target"):
        RouterLearning(model, target="beta")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="decay"):
        RouterLearning(model, decay=-1.0)
    with pytest.raises(ValueError, match="batch_size"):
        minibatch_gradient(RouterLearning(model), learnable(5, 0), 0, np.random.default_rng(0))
