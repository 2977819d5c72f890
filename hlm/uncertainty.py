"""How sure the small model is of its draft: a number in [0, 1] per token, 0 = certain.

All measures use the logits of the one forward pass that made the draft. Unless told otherwise
`logits` is [rows, vocab] in any floating dtype and results are float64 [rows].
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hlm.measures import HOTTEST
from hlm.sampling import Sampling, distribution, draw, probability_of, top_token


def _softmax(logits: Tensor, temperature: float) -> Tensor:
    return distribution(logits, Sampling("sampled", temperature=temperature))


def _check_draft(logits: Tensor, draft: Tensor) -> None:
    if logits.ndim != 2 or draft.shape != logits.shape[:1]:
        raise ValueError(
            f"draft has shape {tuple(draft.shape)} and logits {tuple(logits.shape)}: they must be "
            "[rows] and [rows, vocab]"
        )


def closed_form(logits: Tensor, draft: Tensor, temperature: float = 1.0) -> Tensor:
    """Chance that another sample would differ from the draft: 1 - softmax(logits / T)[draft].

    The expectation of `disagreement`, at no sampling noise (FedHLM, section IV-B, in the limit of
    many samples).

    Parameters
    ----------
    logits : Tensor [rows, vocab]
    draft : Tensor of int64 [rows]
    temperature : float
        T > 0.

    Returns
    -------
    Tensor of float64 [rows]

    Raises
    ------
    ValueError
        If shapes do not fit or the temperature is not positive.
    """
    _check_draft(logits, draft)
    return (1.0 - probability_of(logits, draft, temperature)).clamp(0.0, 1.0)


def disagreement(logits: Tensor, draft: Tensor, temperature: float, uniforms: Tensor) -> Tensor:
    """Share of K samples at temperature T that differ from the draft (FedHLM, section IV-B).

    Parameters
    ----------
    logits : Tensor [rows, vocab]
    draft : Tensor of int64 [rows]
    temperature : float
        T > 0.
    uniforms : Tensor of float64 [rows, K]
        One number in (0, 1) per sample.

    Returns
    -------
    Tensor of float64 [rows]
        A multiple of 1/K.

    Raises
    ------
    ValueError
        If shapes do not fit or the temperature is not positive.
    """
    _check_draft(logits, draft)
    if uniforms.ndim != 2 or uniforms.shape[1] == 0:
        raise ValueError(f"uniforms has shape {tuple(uniforms.shape)}: it must be [rows, K], K > 0")
    samples = draw(_softmax(logits, temperature), uniforms)
    return (samples != draft.unsqueeze(1)).to(torch.float64).mean(dim=1)


def temperature_sweep(logits: Tensor, draft: Tensor, uniforms: Tensor) -> Tensor:
    """Share of K samples, one at each of K temperatures in [0, 2], that differ from the draft.

    U-HLM (arXiv 2412.12687) with K = 20; all samples come from one forward pass. Temperature 0 is
    the most likely token.

    Parameters
    ----------
    logits : Tensor [rows, vocab]
    draft : Tensor of int64 [rows]
    uniforms : Tensor of float64 [rows, K]
        One number in (0, 1) per temperature; K >= 2.

    Returns
    -------
    Tensor of float64 [rows]
        A multiple of 1/K.

    Raises
    ------
    ValueError
        If shapes do not fit or K < 2.
    """
    _check_draft(logits, draft)
    if uniforms.ndim != 2 or uniforms.shape[1] < 2:
        raise ValueError(
            f"uniforms has shape {tuple(uniforms.shape)}: it must be [rows, K], K >= 2"
        )
    samples = uniforms.shape[1]
    differ = (top_token(logits) != draft).to(torch.float64)
    for step in range(1, samples):  # one temperature at a time keeps memory at [rows, vocab]
        heated = _softmax(logits, HOTTEST * step / (samples - 1))
        differ += draw(heated, uniforms[:, step]) != draft
    return differ / samples


def entropy(logits: Tensor) -> Tensor:
    """Shannon entropy of softmax(logits) over ln(vocab) (FedHLM, step 2, scaled to [0, 1]).

    Parameters
    ----------
    logits : Tensor [rows, vocab]
        vocab >= 2.

    Returns
    -------
    Tensor of float64 [rows]

    Raises
    ------
    ValueError
        If the vocabulary has fewer than two tokens.
    """
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ValueError(f"logits has shape {tuple(logits.shape)}: it must be [rows, vocab >= 2]")
    probabilities = _softmax(logits, 1.0)
    nats = -torch.xlogy(probabilities, probabilities).sum(dim=-1)
    return (nats / math.log(logits.shape[1])).clamp(0.0, 1.0)
