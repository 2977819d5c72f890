"""Local training on a flat parameter vector: FedAvg, FedProx, SCAFFOLD, FedNova, and whose start.

Pure arithmetic, given a function for the gradient. x is the vector a client starts from, y the
one it moves, g the gradient of the client's own loss, lr the learning rate, K the steps.

- ``fedavg`` and ``fednova``: y <- y - lr g(y). FedNova differs on the server, which needs K.
- ``fedprox`` (arXiv 1812.06127): y <- y - lr (g(y) + mu (y - anchor)).
- ``scaffold`` (arXiv 1910.06378): y <- y - lr (g(y) - c_i + c), and after K steps, option II,
  c_i+ = c_i - c + (x - y) / (K lr).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
Method = Literal["fedavg", "fedprox", "scaffold", "fednova"]
Personalisation = Literal["global", "cluster", "local", "shrunk"]


@dataclass(frozen=True)
class LocalResult:
    """What local training yields.

    Attributes
    ----------
    policy : float64 [d]
        y after the last step.
    delta : float64 [d]
        y - x; for ``fednova`` divided by `steps`.
    steps : int
        K, what FedNova's server needs as ``local-steps``.
    control_delta : float64 [d] or None
        c_i+ - c_i (``scaffold`` only).
    new_client_control : float64 [d] or None
        c_i+ (``scaffold`` only), for the client to keep.
    """

    policy: FloatArray
    delta: FloatArray
    steps: int
    control_delta: FloatArray | None = None
    new_client_control: FloatArray | None = None


def local_steps(
    policy: FloatArray,
    gradient_fn: Callable[[FloatArray], FloatArray],
    steps: int,
    learning_rate: float,
    method: Method = "fedavg",
    anchor: FloatArray | None = None,
    mu: float = 0.0,
    server_control: FloatArray | None = None,
    client_control: FloatArray | None = None,
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
        ``fedavg``, ``fedprox``, ``scaffold`` or ``fednova``.
    anchor : float64 [d], optional
        Where FedProx pulls to; by default `policy`.
    mu : float
        FedProx's weight, >= 0.
    server_control, client_control : float64 [d], optional
        SCAFFOLD's c and c_i; by default zero.
    clip : (low, high), optional
        Numbers or float64 [d]. Every step is projected onto this range. With SCAFFOLD the
        variates then describe the steps really taken, the projection included.

    Raises
    ------
    ValueError
        On an argument outside its range, or a gradient that is not finite or of another shape.
    """
    if method not in get_args(Method):
        raise ValueError(f"method: {method!r}; allowed: {', '.join(get_args(Method))}")
    if steps < 1:
        raise ValueError(f"steps: {steps}; allowed: >= 1")
    if not 0 < learning_rate < np.inf:
        raise ValueError(f"learning_rate: {learning_rate}; allowed: finite and > 0")
    if not 0 <= mu < np.inf:
        raise ValueError(f"mu: {mu}; allowed: finite and >= 0")
    if clip is not None and not np.all(np.less_equal(*clip)):
        raise ValueError(f"clip: {clip}; allowed: (low, high) with low <= high")
    start = np.array(policy, dtype=np.float64)
    zero = np.zeros_like(start)
    centre = start if anchor is None else _like("anchor", anchor, start)
    server = zero if server_control is None else _like("server_control", server_control, start)
    own = zero if client_control is None else _like("client_control", client_control, start)
    current = start
    for _ in range(steps):
        direction = _like("gradient", gradient_fn(current.copy()), start)
        if method == "fedprox":
            direction = direction + mu * (current - centre)
        elif method == "scaffold":
            direction = direction - own + server
        current = current - learning_rate * direction
        if clip is not None:
            current = np.clip(current, *clip)
    change = current - start
    if method != "scaffold":
        return LocalResult(current, change / steps if method == "fednova" else change, steps)
    new_control = own - server - change / (steps * learning_rate)
    return LocalResult(current, change, steps, new_control - own, new_control)


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
