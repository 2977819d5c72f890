"""What a device drafts by, and one drafted step: the same for routing and for drafting ahead."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hlm import lean
from hlm.arrays import Array, FloatArray, IntArray
from hlm.randomness import DrawKeys, session_keys
from hlm.sampling import Sampling, distribution
from hlm.verification import Draft, Greedy, Verifier

UncertaintyMeasure = Callable[[Array, Array, DrawKeys], Array]
"""(logits [rows, vocab], drafts int64 [rows], keys) -> float64 [rows] in [0, 1]."""

StepFeatures = Callable[
    [Array, Array, Array, IntArray, IntArray, NDArray[np.float32]],
    NDArray[np.float32],
]
"""(logits, hidden, drafts, positions, tokens, traces) -> float32 [rows, f], for learned policies.

``tokens`` int64 [rows, longest] are the texts and ``traces`` float32 [rows, longest, 3] how well
the small model predicted them (`clients.decoding.trace`); only the first ``positions`` of a row
may count.
"""


@dataclass(frozen=True)
class RouterConfig:
    """What stays the same for every text of a device.

    Attributes
    ----------
    sampling : Sampling
        How drafts are drawn.
    uncertainty : callable
        Measures uncertainty, see `UncertaintyMeasure`.
    seed : int
        Seed of all draws.
    client : int
        Number of the device; with a text's session number it keys the draws.
    end_tokens : frozenset of int
        Tokens that end a text.
    audit_rate : float
        Probability that a kept token is verified all the same, in [0, 1].
    features : callable or None
        Features of a step, for policies that need them.
    feature_count : int
        Their number.
    """

    sampling: Sampling
    uncertainty: UncertaintyMeasure
    seed: int
    client: int
    end_tokens: frozenset[int] = frozenset()
    audit_rate: float = 0.0
    features: StepFeatures | None = None
    feature_count: int = 0


@dataclass(frozen=True)
class Drafted:
    """What the small model proposes for one place of each of n texts.

    Attributes
    ----------
    draft : Draft
        Of n rows.
    keys : DrawKeys
        What the random numbers of these places are keyed by.
    uncertainty : numpy.ndarray
        float64 [n] in [0, 1].
    probability : numpy.ndarray
        float64 [n], x_d of eq. 3: of the softmax in greedy decoding, of the distribution drawn from
        otherwise.
    """

    draft: Draft
    keys: DrawKeys
    uncertainty: FloatArray
    probability: FloatArray


def draw_keys(config: RouterConfig, sessions: IntArray, positions: IntArray) -> DrawKeys:
    """What the random numbers of places (int64 [n]) are keyed by; see `draft_step`."""
    return DrawKeys(config.seed, session_keys(config.client, sessions), positions)


def draft_step(
    config: RouterConfig,
    verifier: Verifier,
    logits: Array,
    sessions: IntArray,
    positions: IntArray,
) -> Drafted:
    """Draft one token for each of n texts, and measure how uncertain it is.

    Parameters
    ----------
    config : RouterConfig
        How to draw and to measure.
    verifier : Verifier
        Draws.
    logits : Array
        float32 [n, vocab], the small model's.
    sessions, positions : numpy.ndarray
        int64 [n], the device's number for each text, and the place of the token in it.
    """
    keys = draw_keys(config, sessions, positions)
    if isinstance(logits, np.ndarray):
        draft, probability = lean.draft(logits, config.sampling, keys)
        return Drafted(draft, keys, config.uncertainty(logits, draft.tokens, keys), probability)
    import torch

    greedy = config.sampling.decoding == "greedy"
    if greedy and isinstance(verifier, Greedy):
        draft = verifier.draft_top(logits)
    else:
        draft = verifier.draft(distribution(logits, config.sampling), keys)
    if greedy:
        chosen = logits.gather(1, draft.tokens[:, None])[:, 0]
        probability = torch.exp(chosen - torch.logsumexp(logits, dim=1)).double().numpy()
    else:
        probability = draft.probabilities.numpy()
    uncertainty = config.uncertainty(logits, draft.tokens, keys).numpy()
    return Drafted(draft, keys, uncertainty, probability)
