"""What truncation is held against: the deviation by its definition, and rows to try it on."""

import math

import numpy as np


def deviations(x):
    """sum_{i>k} |x_i - xhat_i| for k = 1 ... V by the definition, [V]."""
    ordered = sorted(x, reverse=True)
    vocab = len(ordered)
    result = []
    for count in range(1, vocab + 1):
        tail = ordered[count:]
        mean = sum(tail) / len(tail) if tail else 0.0
        result.append(sum(abs(value - mean) for value in tail))
    return result


def scale(x_d, beta_d):
    return (1 - x_d) * math.log(1 + math.exp(-1)) + x_d * math.log(1 + math.exp(-beta_d))


def random_probs(seed, vocab, sharpness):
    weights = np.exp(np.random.default_rng(seed).normal(size=vocab) * sharpness)
    return weights / weights.sum()
