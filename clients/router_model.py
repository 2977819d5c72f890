"""A learned router: predicts beta of a draft from what the small model's step already yields.

The router takes the place of the uncertainty ``u``: its score lies in [0, 1], a draft is kept if
the score is at most the policy's threshold, and that threshold is calibrated by the same certified
rule (:mod:`clients.sums`). Model and threshold are one flat float64 array, so any federated
strategy can carry them.

Features of a step cost no further pass: the draft's uncertainty at several temperatures, margin,
entropy and tail masses of the law, position, a projection of the last hidden state, and the
drafted token's own embedding. The projections are drawn from a fixed seed, so all clients see the
same coordinates without exchanging them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clients.feedback import Feedback

__all__ = [
    "SCALAR_FEATURES",
    "RouterLearning",
    "RouterModel",
    "StepFeatures",
    "adam_steps",
    "minibatch_gradient",
    "rescored",
]

Vector = NDArray[np.float64]
Features = NDArray[np.float32]

_TEMPERATURES = (0.5, 1.0, 1.5, 2.0)
_TAILS = (2, 3, 5, 10, 32)

SCALAR_FEATURES = (
    "log-top-1",
    "log-top-2",
    "log-top-3",
    "log-margin",
    "entropy",
    *(f"closed-form-{temperature}" for temperature in _TEMPERATURES),
    *(f"log-tail-{size}" for size in _TAILS),
    "log-draft",
    "position",
    "log-position",
)
"""Names of the leading columns of :class:`StepFeatures`, in order; natural logarithms."""

# Mean and standard deviation of those columns on AG News with the built-in small model. They only
# bring columns to a common size, so another model or text shifts them without harm.
_MEAN: tuple[float, ...] = (-1.63, -2.83, -3.38, 1.2, 3.86, 0.39, 0.7, 0.87, 0.95)
_MEAN += (-0.81, -0.95, -1.12, -1.35, -1.81, -1.63, 0.69, 3.27)
_SCALE: tuple[float, ...] = (0.99, 1.02, 1.06, 1.43, 1.72, 0.29, 0.28, 0.18, 0.09)
_SCALE += (1.18, 1.31, 1.44, 1.5, 1.56, 0.99, 0.44, 0.92)

_LEAST_TAIL = 1e-6


@dataclass(frozen=True)
class StepFeatures:
    """Turns one step of the small model into what the router sees.

    Parameters
    ----------
    hidden_size : int
        Width of the hidden state, >= 1.
    projection : int
        Columns kept of the hidden state, and again of the draft's embedding: all of them if
        ``hidden_size`` is no larger, a Gaussian random projection otherwise. 0 leaves both out.
    embedding_size : int
        Width of the token embeddings; 0 leaves the drafted token's identity out.
    seed : int
        Seed of the projections, the same on every client.
    """

    hidden_size: int
    projection: int = 128
    embedding_size: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("hidden_size", 1), ("projection", 0), ("embedding_size", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")

    @property
    def count(self) -> int:
        """Number of columns f."""
        hidden = min(self.hidden_size, self.projection)
        return len(SCALAR_FEATURES) + hidden + min(self.embedding_size, self.projection)

    @torch.inference_mode()
    def __call__(
        self,
        logits: Tensor,
        hidden: Tensor,
        draft: Tensor,
        positions: Tensor,
        embeddings: Tensor | None = None,
    ) -> Features:
        """Features of each row of a step.

        Parameters
        ----------
        logits : float [rows, vocab]
            Raw logits, vocab >= 2.
        hidden : float [rows, hidden_size]
            Last hidden state, the one the logits come from.
        draft : int64 [rows]
            Drafted token.
        positions : int64 [rows]
            Number of tokens before the drafted one.
        embeddings : float [vocab, embedding_size], optional
            Input embeddings of the small model; needed if ``embedding_size`` > 0.

        Returns
        -------
        float32 [rows, f]
            Finite for finite input.

        Raises
        ------
        ValueError
            On shapes that disagree.
        """
        rows = len(logits)
        if logits.ndim != 2 or logits.shape[1] < 2:
            raise ValueError(f"logits must be [rows, vocab >= 2], got {tuple(logits.shape)}")
        if hidden.shape != (rows, self.hidden_size):
            raise ValueError(
                f"hidden must be [{rows}, {self.hidden_size}], got {tuple(hidden.shape)}"
            )
        if draft.shape != (rows,) or positions.shape != (rows,):
            raise ValueError(f"draft and positions must be [{rows}]")
        columns = [_scalars(logits.float(), draft, positions.float())]
        if self.projection:
            columns.append(self._project(hidden.float(), 0))
        if self.projection and self.embedding_size:
            if embeddings is None or embeddings.shape[1] != self.embedding_size:
                raise ValueError(f"embeddings must be [vocab, {self.embedding_size}]")
            columns.append(self._project(embeddings[draft].float(), 1))
        return torch.cat(columns, dim=1).cpu().numpy()

    def _project(self, vectors: Tensor, stream: int) -> Tensor:
        # Root mean square 1 a row, so that models with other norms give features of one size.
        size = vectors.pow(2).mean(dim=1, keepdim=True).clamp_min(1e-12).sqrt()
        unit = vectors / size
        if vectors.shape[1] <= self.projection:
            return unit
        matrix = _projection(vectors.shape[1], self.projection, self.seed, stream)
        return unit @ matrix.to(unit.device)


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

    def grown(self, logistic: Vector, seed: int = 0) -> Vector:
        """Start of this model that scores exactly like a trained logistic one, float64 [m]."""
        if len(logistic) != 1 + self.features:
            raise ValueError(
                f"a logistic router of {self.features} features has {1 + self.features} "
                f"parameters, got {len(logistic)}"
            )
        parameters = self.initial(seed)
        parameters[: len(logistic)] = logistic
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
    """The router as a learning rule over ``[threshold, model parameters]``.

    Fits :class:`clients.threshold.ThresholdLearning`, so :func:`clients.threshold.descend` and
    every strategy apply. The threshold's gradient is zero: it is calibrated, not descended.

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
    def size(self) -> int:
        """Threshold and model parameters."""
        return 1 + self.model.size

    @property
    def bounds(self) -> tuple[Vector, Vector]:
        """Threshold in [-1, 1] (-1 escalates everything), parameters in [-50, 50]."""
        upper = np.full(self.size, 50.0)
        upper[0] = 1.0
        return -upper, upper

    def initial(self, threshold: float, seed: int = 0) -> Vector:
        """Threshold and untrained model, float64 [size]."""
        return np.concatenate([[threshold], self.model.initial(seed)])

    def examples(self, feedback: Feedback) -> int:
        """Tokens of known beta that have features."""
        return 0 if feedback.features is None else int(feedback.known.sum())

    def loss(self, policy: Vector, feedback: Feedback) -> float:
        """Weighted mean cross-entropy plus the penalty."""
        features, target, weight = self._known(feedback)
        penalty = 0.5 * self.decay * float(policy[2:] @ policy[2:])
        return self.model.loss(policy[1:], features, target, weight) + penalty

    def gradient(self, policy: Vector, feedback: Feedback) -> Vector:
        """Gradient float64 [size]; its first entry, the threshold's, is 0."""
        gradient = np.zeros(self.size)
        gradient[1:] = self.model.gradient(policy[1:], *self._known(feedback))
        gradient[2:] += self.decay * policy[2:]
        return gradient

    def _known(self, feedback: Feedback) -> tuple[Features, Vector, Vector]:
        if feedback.features is None:
            if len(feedback):
                raise ValueError("the learned router needs feedback with features")
            return np.zeros((0, self.model.features), np.float32), np.zeros(0), np.zeros(0)
        rows = feedback.known
        beta = feedback.beta if self.target == "loss" else feedback.ratio_beta
        return feedback.features[rows], beta[rows], feedback.weight[rows]


def minibatch_gradient(
    learning: RouterLearning, feedback: Feedback, batch_size: int, generator: np.random.Generator
) -> Callable[[Vector], Vector]:
    """Gradient on ``batch_size`` >= 1 tokens at a time, reshuffled after each pass over them.

    Returns a function float64 [size] -> float64 [size] that moves on with every call: what a
    client's local SGD steps take as gradient.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    known = feedback.select(feedback.known)
    order = np.zeros(0, np.int64)

    def gradient(policy: Vector) -> Vector:
        nonlocal order
        if not len(order):
            order = generator.permutation(len(known)).astype(np.int64)
        rows, order = order[:batch_size], order[batch_size:]
        return learning.gradient(policy, known.select(rows))

    return gradient


def adam_steps(
    policy: Vector,
    gradient: Callable[[Vector], Vector],
    steps: int,
    learning_rate: float,
    momentum: float = 0.9,
    memory: float = 0.999,
) -> Vector:
    """Local training by Adam (arXiv 1412.6980), its moments starting at zero each round.

    The router's features are of one size but far from independent, which plain SGD pays for with
    several times the steps. Methods that correct SGD's own drift (SCAFFOLD, FedNova) keep SGD.

    Parameters
    ----------
    policy : float64 [size]
        Start; not modified.
    gradient : callable
        float64 [size] -> float64 [size], e.g. from :func:`minibatch_gradient`.
    steps : int
        >= 0.
    learning_rate : float
        > 0; falls linearly to a tenth over the steps.
    momentum, memory : float
        Decay of the first and second moment, in [0, 1).

    Returns
    -------
    float64 [size]
    """
    if steps < 0 or not learning_rate > 0:
        raise ValueError(f"steps must be >= 0 and learning_rate > 0, got {steps}, {learning_rate}")
    current = np.array(policy, dtype=np.float64)
    first, second = np.zeros_like(current), np.zeros_like(current)
    for step in range(1, steps + 1):
        direction = gradient(current)
        first = momentum * first + (1 - momentum) * direction
        second = memory * second + (1 - memory) * direction**2
        rate = learning_rate * (1 - 0.9 * (step - 1) / steps)
        scale = np.sqrt(second / (1 - memory**step)) + 1e-8
        current = current - rate * first / (1 - momentum**step) / scale
    return current


def rescored(model: RouterModel, policy: Vector, feedback: Feedback) -> Feedback:
    """Feedback with the score of ``policy`` = [threshold, parameters] in place of u."""
    if feedback.features is None:
        raise ValueError("the learned router needs feedback with features")
    return feedback.with_scores(model.score(policy[1:], feedback.features))


def _scalars(logits: Tensor, draft: Tensor, positions: Tensor) -> Tensor:
    """Leading columns, standardised: float32 [rows, len(SCALAR_FEATURES)]."""
    log_law = torch.log_softmax(logits, dim=1)
    law = log_law.exp()
    largest = law.topk(min(max(_TAILS), logits.shape[1]), dim=1).values
    top = largest.new_full((len(logits), 3), _LEAST_TAIL)
    top[:, : largest.shape[1]] = largest[:, :3]
    log_top = top.clamp_min(_LEAST_TAIL).log()
    columns = [log_top[:, 0], log_top[:, 1], log_top[:, 2], log_top[:, 0] - log_top[:, 1]]
    columns.append(-torch.xlogy(law, law).sum(dim=1))
    for temperature in _TEMPERATURES:
        heated = torch.softmax(logits / temperature, dim=1)
        columns.append(1 - heated.gather(1, draft[:, None])[:, 0])
    mass = largest.cumsum(dim=1)
    for size in _TAILS:
        tail = 1 - mass[:, min(size, mass.shape[1]) - 1]
        columns.append(tail.clamp_min(_LEAST_TAIL).log())
    columns.append(log_law.gather(1, draft[:, None])[:, 0].clamp_min(-30.0))
    columns += [positions / 50, torch.log1p(positions)]
    raw = torch.stack(columns, dim=1)
    return (raw - raw.new_tensor(_MEAN)) / raw.new_tensor(_SCALE)


@lru_cache(maxsize=8)
def _projection(size: int, columns: int, seed: int, stream: int) -> Tensor:
    """Gaussian projection float32 [size, columns] that keeps the size of a unit entry."""
    # numpy's generator gives the same numbers on every platform, torch's need not.
    matrix = np.random.default_rng([seed, stream]).standard_normal((size, columns))
    return torch.from_numpy((matrix / np.sqrt(size)).astype(np.float32))


def _sigmoid(logit: Vector) -> Vector:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * logit)), dtype=np.float64)
