"""Local training on a flat parameter vector, whose start, and the client's half of each method.

Pure arithmetic, given a function for the gradient. x is the vector a client starts from, y the
one it moves, g the gradient of the client's own loss, lr the learning rate, K the steps. The
server's halves stand in `strategies` under the same names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np

from hlm.arrays import FloatArray

Arrays = Mapping[str, FloatArray]
Personalisation = Literal["global", "cluster", "local", "shrunk"]


def _gradient(gradient: FloatArray, drift: FloatArray, mu: float, sent: Arrays) -> FloatArray:
    del drift, mu, sent
    return gradient


def _pulled(gradient: FloatArray, drift: FloatArray, mu: float, sent: Arrays) -> FloatArray:
    del sent
    return gradient + mu * drift


def _controlled(gradient: FloatArray, drift: FloatArray, mu: float, sent: Arrays) -> FloatArray:
    del drift, mu
    return gradient - sent["client_control"] + sent["control"]


def _nothing(mean_step: FloatArray, sent: Arrays) -> dict[str, FloatArray]:
    del mean_step, sent
    return {}


def _control_delta(mean_step: FloatArray, sent: Arrays) -> dict[str, FloatArray]:
    own = sent["client_control"]
    return {"control_delta": own - sent["control"] - mean_step - own}


@dataclass(frozen=True)
class LocalMethod:
    """What a client does under a federated strategy.

    Attributes
    ----------
    words : str
        For settings and documents.
    direction : callable
        What a step descends: from g(y), the drift y - x, mu, and the arrays that were sent.
    takes : tuple of str
        Arrays [d] that it reads of a message; zero where there are none.
    reply : callable
        Arrays to send back beside the policy, from (y - x) / (K lr) and those that were sent.
    plain : bool
        Whether the policy is all that travels, and gradients, pulled or not, all that moves it:
        then noise hides a client, and another optimizer may take the steps.
    """

    words: str
    direction: Callable[[FloatArray, FloatArray, float, Arrays], FloatArray] = _gradient
    takes: tuple[str, ...] = ()
    reply: Callable[[FloatArray, Arrays], dict[str, FloatArray]] = _nothing
    plain: bool = True

    def sent(self, arrays: Arrays, policy: FloatArray) -> Arrays:
        """Its arrays of a message, of the shape of `policy`."""
        zero = np.zeros_like(policy)
        return {name: _like(name, arrays.get(name, zero), policy) for name in self.takes}


LOCAL_METHODS = {
    "fedavg": LocalMethod("plain local steps"),
    "fedprox": LocalMethod("steps pulled towards the start", _pulled),  # arXiv 1812.06127
    # arXiv 1910.06378, option II: y <- y - lr (g(y) - c_i + c), c_i+ = c_i - c + (x - y) / (K lr).
    "scaffold": LocalMethod(
        "steps corrected by control variates",
        _controlled,
        ("control", "client_control"),
        _control_delta,
        plain=False,
    ),
    "fednova": LocalMethod("plain steps, which the server weighs by their number", plain=False),
}


@dataclass(frozen=True)
class LocalResult:
    """What local training yields.

    Attributes
    ----------
    policy : float64 [d]
        y after the last step.
    steps : int
        K, what FedNova's server needs as ``local-steps``.
    arrays : dict of str to float64 [d]
        What the method sends back beside the policy.
    """

    policy: FloatArray
    steps: int
    arrays: dict[str, FloatArray] = field(default_factory=dict)


def local_steps(
    policy: FloatArray,
    gradient_fn: Callable[[FloatArray], FloatArray],
    steps: int,
    learning_rate: float,
    method: str = "fedavg",
    mu: float = 0.0,
    arrays: Arrays | None = None,
    clip: tuple[float | FloatArray, float | FloatArray] | None = None,
) -> LocalResult:
    """Take `steps` gradient steps from `policy`.

    Parameters
    ----------
    policy : float64 [d]
        Start x; not modified.
    gradient_fn : callable
        float64 [d] -> float64 [d], the gradient of the local loss.
    steps : int
        K >= 1.
    learning_rate : float
        > 0.
    method : str
        A key of `LOCAL_METHODS`.
    mu : float
        Weight of a pull towards the start, >= 0.
    arrays : mapping of str to float64 [d], optional
        Those of the message; each method knows its own.
    clip : (low, high), optional
        Numbers or float64 [d]. Every step is projected onto this range. With SCAFFOLD the
        variates then describe the steps really taken, the projection included.

    Raises
    ------
    ValueError
        On an argument outside its range, or a gradient that is not finite or of another shape.
    """
    if method not in LOCAL_METHODS:
        raise ValueError(f"method: {method!r}; allowed: {', '.join(LOCAL_METHODS)}")
    if steps < 1:
        raise ValueError(f"steps: {steps}; allowed: >= 1")
    if not 0 < learning_rate < np.inf:
        raise ValueError(f"learning_rate: {learning_rate}; allowed: finite and > 0")
    if not 0 <= mu < np.inf:
        raise ValueError(f"mu: {mu}; allowed: finite and >= 0")
    if clip is not None and not np.all(np.less_equal(*clip)):
        raise ValueError(f"clip: {clip}; allowed: (low, high) with low <= high")
    kind = LOCAL_METHODS[method]
    start = np.array(policy, dtype=np.float64)
    sent = kind.sent({} if arrays is None else arrays, start)
    current = start
    for _ in range(steps):
        gradient = _like("gradient", gradient_fn(current.copy()), start)
        current = current - learning_rate * kind.direction(gradient, current - start, mu, sent)
        if clip is not None:
            current = np.clip(current, *clip)
    mean_step = (current - start) / (steps * learning_rate)
    return LocalResult(current, steps, kind.reply(mean_step, sent))


def idle(policy: FloatArray, method: str) -> LocalResult:
    """What a client sends back that had nothing to learn from.

    A server that adds up what clients changed counts on a change of zero; to others it would be
    bytes for nothing, in every reply of a rule that learns from sums.
    """
    zero = np.zeros_like(policy)
    kind = LOCAL_METHODS[method]
    return LocalResult(policy.copy(), 0, kind.reply(zero, kind.sent({}, zero)))


def starting_point(
    personalisation: Personalisation,
    policy: FloatArray,
    cluster: FloatArray | None = None,
    own: FloatArray | None = None,
    own_weight: float = 0.0,
    shrink_weight: float = 0.0,
) -> FloatArray:
    """Return what a client starts from, given what it was sent and what it kept.

    ``global`` and ``cluster``: `policy`, as sent. ``local``: its own, or the cluster's the first
    time. ``shrunk``: (n_k own + m cluster) / (n_k + m), so that a client that has seen little
    stays near its cluster.

    Parameters
    ----------
    personalisation : str
    policy : float64 [d]
        The message's array ``policy``.
    cluster : float64 [d], optional
        Its array ``cluster``; by default `policy`.
    own : float64 [d], optional
        What the client ended with last time; None the first time.
    own_weight : float
        n_k >= 0, tokens behind `own`.
    shrink_weight : float
        m >= 0, the message's ``shrink-weight``.
    """
    if personalisation not in get_args(Personalisation):
        raise ValueError(
            f"personalisation: {personalisation!r}; allowed: {get_args(Personalisation)}"
        )
    if not (own_weight >= 0 and shrink_weight >= 0):
        raise ValueError(f"own_weight, shrink_weight: {own_weight}, {shrink_weight}; allowed: >= 0")
    shared = np.array(policy, dtype=np.float64)
    if personalisation in ("global", "cluster"):
        return shared
    centre = shared if cluster is None else _like("cluster", cluster, shared)
    if own is None:
        return centre
    kept = _like("own", own, shared)
    total = own_weight + shrink_weight
    if personalisation == "local" or total == 0:
        return kept
    return (own_weight * kept + shrink_weight * centre) / total


def _like(name: str, value: FloatArray, reference: FloatArray) -> FloatArray:
    array = np.array(value, dtype=np.float64)
    if array.shape != reference.shape:
        raise ValueError(f"{name}: shape {array.shape}; allowed: {reference.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: a NaN or infinite entry; allowed: finite")
    return array
