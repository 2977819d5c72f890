"""A learned router: predicts beta of a draft from the features of its step.

The router takes the place of the uncertainty ``u``: its score lies in [0, 1], a draft is kept if
the score is at most the policy's threshold, and that threshold is calibrated by the same certified
rule. The features are those of :mod:`clients.decoding.step_features`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from clients.learning.feedback import Feedback

Vector = NDArray[np.float64]
Features = NDArray[np.float32]
_FIRST, _SECOND = 0.9, 0.999  # Adam's decay of momentum and variance


@dataclass(frozen=True)
class RouterModel:
    """Logistic regression, or the same plus one hidden layer of tanh units.

    ``score = sigmoid(b + X w + tanh(X W1 + b1) w2)``; flat order ``[b, w, w2, b1, W1]`` with
    ``W1`` [f, hidden] row by row.

    Parameters
    ----------
    features : int
        Columns f of the input, >= 1.
    hidden : int
        Tanh units; 0 is logistic regression.
    """

    features: int
    hidden: int = 0

    def __post_init__(self) -> None:
        if self.features < 1 or self.hidden < 0:
            raise ValueError(
                f"features must be at least 1 and hidden not negative, got {self.features}, "
                f"{self.hidden}"
            )

    @property
    def size(self) -> int:
        """Length m of the flat array."""
        return 1 + self.features + self.hidden * (2 + self.features)

    def initial(self, seed: int = 0) -> Vector:
        """Zero output, with random hidden directions to break their symmetry: float64 [m]."""
        parameters = np.zeros(self.size)
        random = np.random.default_rng(seed).standard_normal(self.hidden * self.features)
        parameters[1 + self.features + 2 * self.hidden :] = random / np.sqrt(self.features)
        return parameters

    def score(self, parameters: Vector, features: Features) -> Vector:
        """Predicted beta float64 [rows] in [0, 1], of ``parameters`` [m] and features [rows, f]."""
        return np.asarray(_sigmoid(self._forward(parameters, features)[0]), dtype=np.float64)

    def loss(self, parameters: Vector, features: Features, target: Vector, weight: Vector) -> float:
        """Weighted mean cross-entropy (nats) against soft labels in [0, 1]; 0 without weight."""
        total = weight.sum()
        if not total > 0:
            return 0.0
        logit, _ = self._forward(parameters, features)
        # log(1 + e^z) - t z, without overflow.
        return float(weight @ (np.logaddexp(0.0, logit) - target * logit) / total)

    def gradient(
        self, parameters: Vector, features: Features, target: Vector, weight: Vector
    ) -> Vector:
        """Gradient of :meth:`loss` in closed form, float64 [m]."""
        total = weight.sum()
        if not total > 0:
            return np.zeros(self.size)
        logit, activation = self._forward(parameters, features)
        error = weight * (_sigmoid(logit) - target) / total
        inputs = features.astype(np.float64)
        parts = [np.array([error.sum()]), error @ inputs]
        if self.hidden:
            output = parameters[1 + self.features : 1 + self.features + self.hidden]
            inner = error[:, None] * (1 - activation**2) * output
            parts += [error @ activation, inner.sum(axis=0), (inputs.T @ inner).ravel()]
        return np.concatenate(parts)

    def _forward(self, parameters: Vector, features: Features) -> tuple[Vector, Vector]:
        if parameters.shape != (self.size,):
            raise ValueError(f"parameters must be [{self.size}], got {parameters.shape}")
        if features.ndim != 2 or features.shape[1] != self.features:
            raise ValueError(f"features must be [rows, {self.features}], got {features.shape}")
        inputs = features.astype(np.float64)
        edges = np.cumsum([1, self.features, self.hidden, self.hidden])
        bias, linear, output, inner_bias, inner = np.split(parameters, edges)
        logit = bias[0] + inputs @ linear
        if not self.hidden:
            return logit, np.zeros((len(inputs), 0))
        activation = np.tanh(inputs @ inner.reshape(self.features, self.hidden) + inner_bias)
        return logit + activation @ output, activation


@dataclass(frozen=True)
class RouterLearning:
    """The router as a learning rule over its model's parameters.

    :func:`hlm.local_steps.local_steps` and every strategy apply.

    Parameters
    ----------
    model : RouterModel
        The model.
    target : {"loss", "ratio"}
        Predict the decoding's own loss (in greedy decoding the indicator) or eq. 3's value.
    decay : float
        L2 penalty on all parameters but the bias, ``decay / 2 |w|^2``, >= 0.
    """

    model: RouterModel
    target: Literal["loss", "ratio"] = "loss"
    decay: float = 1e-4

    def __post_init__(self) -> None:
        if self.target not in ("loss", "ratio"):
            raise ValueError(f"target must be loss or ratio, got {self.target!r}")
        if not (np.isfinite(self.decay) and self.decay >= 0):
            raise ValueError(f"decay must be finite and not negative, got {self.decay}")

    @property
    def bounds(self) -> tuple[Vector, Vector]:
        """Parameters in [-50, 50], float64 [m] each."""
        upper = np.full(self.model.size, 50.0)
        return -upper, upper

    def examples(self, feedback: Feedback) -> int:
        """Tokens of known beta that have features."""
        return 0 if feedback.features is None else int(feedback.known.sum())

    def loss(self, parameters: Vector, feedback: Feedback) -> float:
        """Weighted mean cross-entropy plus the penalty."""
        features, target, weight = self._known(feedback)
        penalty = 0.5 * self.decay * float(parameters[1:] @ parameters[1:])
        return self.model.loss(parameters, features, target, weight) + penalty

    def gradient(self, policy: Vector, feedback: Feedback) -> Vector:
        """Gradient float64 [m] at the parameters `policy`."""
        gradient = self.model.gradient(policy, *self._known(feedback))
        gradient[1:] += self.decay * policy[1:]
        return gradient

    def _known(self, feedback: Feedback) -> tuple[Features, Vector, Vector]:
        if feedback.features is None:
            if len(feedback):
                raise ValueError("the learned router needs feedback with features")
            return np.zeros((0, self.model.features), np.float32), np.zeros(0), np.zeros(0)
        rows = feedback.known
        beta = feedback.beta if self.target == "loss" else feedback.ratio_beta
        return feedback.features[rows], beta[rows], feedback.weight[rows]


def adam_steps(
    policy: Vector,
    gradient: Callable[[Vector], Vector],
    steps: int,
    learning_rate: float,
) -> Vector:
    """Local training by Adam (arXiv 1412.6980), whose moments begin anew each round.

    The router's features are of one size but far from independent, which plain SGD pays for with
    several times the steps. Methods that correct SGD's own drift (SCAFFOLD, FedNova) keep SGD.

    Parameters
    ----------
    policy : float64 [size]
        Start; not modified.
    gradient : callable
        float64 [size] -> float64 [size], for example from
        :func:`clients.learning.minibatches.minibatch_gradient`.
    steps : int
        >= 0.
    learning_rate : float
        > 0; it falls linearly to a tenth over the steps.

    Returns
    -------
    float64 [size]
    """
    if steps < 0 or not learning_rate > 0:
        raise ValueError(f"steps must be >= 0 and learning_rate > 0, got {steps}, {learning_rate}")
    current = np.array(policy, dtype=np.float64)
    momentum = variance = np.zeros_like(current)
    for step in range(steps):
        direction = gradient(current)
        momentum = _FIRST * momentum + (1 - _FIRST) * direction
        variance = _SECOND * variance + (1 - _SECOND) * direction**2
        rate = learning_rate * (1 - 0.9 * step / steps)
        scale = np.sqrt(variance / (1 - _SECOND ** (step + 1))) + 1e-8
        current = current - rate * momentum / (1 - _FIRST ** (step + 1)) / scale
    return current


def rescored(model: RouterModel, parameters: Vector, feedback: Feedback) -> Feedback:
    """Feedback with the model's score in place of u."""
    if feedback.features is None:
        raise ValueError("the learned router needs feedback with features")
    return feedback.with_scores(model.score(parameters, feedback.features))


def _sigmoid(logit: Vector) -> Vector:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * logit)), dtype=np.float64)
