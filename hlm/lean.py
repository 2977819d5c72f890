"""Drafts and their uncertainty from numpy logits, on a device without PyTorch.

The functions do what those of `hlm.sampling`, `hlm.verification` and `hlm.uncertainty` do, whose
docstrings hold here too; results differ from theirs by the rounding of an exponential or a sum.
`logits` is float [rows, vocab], results are float64 [rows], and the only verifiers are those that
send nothing but the draft's id: `greedy` and `coupled`.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from hlm.arrays import FloatArray, IntArray
from hlm.measures import HOTTEST
from hlm.randomness import DrawKeys, exponential_matrix
from hlm.sampling import Sampling
from hlm.verification import Claim, Draft

Logits = NDArray[np.float32]


def distribution(logits: Logits, temperature: float = 1.0, top_p: float = 1.0) -> FloatArray:
    """What sampled decoding draws from, float64 [rows, vocab]."""
    highest = logits.max(axis=1, keepdims=True)
    if not np.isfinite(highest).all():
        raise ValueError("logits: each row needs a finite maximum and no NaN or +inf")
    probs: FloatArray = np.exp((logits.astype(np.float64) - highest) / temperature)
    probs /= probs.sum(axis=1, keepdims=True)
    if top_p < 1:
        order = np.argsort(-probs, axis=1, kind="stable")
        ordered = np.take_along_axis(probs, order, axis=1)
        ordered *= ordered.cumsum(axis=1) - ordered < top_p
        ordered /= ordered.sum(axis=1, keepdims=True)
        np.put_along_axis(probs, order, ordered, axis=1)
    return probs


def draw(probs: FloatArray, uniforms: FloatArray) -> IntArray:
    """Tokens [rows, draws] by inverting the cumulative distribution; uniforms [rows, draws]."""
    found = np.empty(uniforms.shape, np.int64)
    for row, (one, numbers) in enumerate(zip(probs, uniforms, strict=True)):
        cumulative = one.cumsum()
        found[row] = cumulative.searchsorted(numbers * cumulative[-1], side="right")
        # rounding may carry a number near 1 past the end
        np.minimum(found[row], np.flatnonzero(one)[-1], out=found[row])
    return found


def draft(logits: Logits, sampling: Sampling, keys: DrawKeys) -> tuple[Draft, FloatArray]:
    """Drafts, and the probability of each (`clients.decoding.drafting.Drafted`)."""
    if sampling.decoding == "greedy":
        probs, tokens = distribution(logits), logits.argmax(axis=1)
    else:
        probs = distribution(logits, sampling.temperature, sampling.top_p)
        with np.errstate(divide="ignore", over="ignore"):
            waiting = exponential_matrix(keys, probs.shape[1]) / probs
        never = np.isinf(waiting).all(axis=1)
        waiting[never] = -probs[never]
        tokens = waiting.argmin(axis=1)
    probability = _of_tokens(probs, tokens)
    certain = np.ones(len(tokens)) if sampling.decoding == "greedy" else probability
    return Draft(tokens, certain, None, Claim(tokens)), probability


def _of_tokens(probs: FloatArray, tokens: IntArray) -> FloatArray:
    return probs[np.arange(len(tokens)), tokens]


def closed_form(logits: Logits, draft: IntArray, temperature: float) -> FloatArray:
    """See `hlm.uncertainty.closed_form`."""
    return (1.0 - _of_tokens(distribution(logits, temperature), draft)).clip(0.0, 1.0)


def disagreement(
    logits: Logits, draft: IntArray, temperature: float, uniforms: FloatArray
) -> FloatArray:
    """See `hlm.uncertainty.disagreement`."""
    samples = draw(distribution(logits, temperature), uniforms)
    return np.asarray((samples != draft[:, None]).mean(axis=1))


def temperature_sweep(logits: Logits, draft: IntArray, uniforms: FloatArray) -> FloatArray:
    """See `hlm.uncertainty.temperature_sweep`."""
    samples = uniforms.shape[1]
    differ = (logits.argmax(axis=1) != draft).astype(np.float64)
    for step in range(1, samples):
        heated = distribution(logits, HOTTEST * step / (samples - 1))
        differ += draw(heated, uniforms[:, step : step + 1])[:, 0] != draft
    return np.asarray(differ / samples)


def entropy(logits: Logits) -> FloatArray:
    """See `hlm.uncertainty.entropy`."""
    probs = distribution(logits)
    nats = -(probs * np.log(np.where(probs > 0, probs, 1.0))).sum(axis=1)
    return np.asarray((nats / math.log(logits.shape[1])).clip(0.0, 1.0))
