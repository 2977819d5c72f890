"""Probabilities as integer weights, so that both sides of a link know the same to the last bit."""

from __future__ import annotations

import torch
from torch import Tensor

from hlm.sampling import check_probs

MOST_BITS = 24


def _scaled(probs: Tensor, bits: int) -> tuple[Tensor, int]:
    if not 1 <= bits <= MOST_BITS:
        raise ValueError(f"bits = {bits}: allowed are 1 to {MOST_BITS}")
    exact = check_probs("probs", probs)
    return exact / exact.sum(dim=-1, keepdim=True), 2**bits


def quantise(probs: Tensor, bits: int) -> Tensor:
    """Round a distribution to integer weights by largest remainders.

    A distribution both sides must know exactly travels as these integers, and the draft is drawn
    from them (`probs_from_weights`): that keeps verification exact although the distribution was
    rounded.

    Parameters
    ----------
    probs : Tensor [rows, vocab]
        The distribution to round.
    bits : int
        The weights of a row sum to exactly 2**bits; 1 to 24.

    Returns
    -------
    Tensor of int64 [rows, vocab]
        Each within 1 of probs * 2**bits; 0 where the distribution is 0. Ties go to the lowest id.

    Raises
    ------
    ValueError
        If `bits` is out of range or `probs` is no distribution.
    """
    exact, total = _scaled(probs, bits)
    scaled = exact * total
    weights = scaled.floor()
    missing = (total - weights.sum(dim=-1, keepdim=True)).to(torch.int64)
    order = torch.sort(scaled - weights, dim=-1, descending=True, stable=True).indices
    ranks = torch.arange(exact.shape[1], device=exact.device).expand_as(order)
    extra = torch.zeros_like(order).scatter_(1, order, (ranks < missing).to(torch.int64))
    return weights.to(torch.int64) + extra


def quantise_dithered(probs: Tensor, bits: int, uniforms: Tensor) -> Tensor:
    """Round a distribution to integer weights at random, without bias.

    The weights are floor(C_i + U) - floor(C_{i-1} + U) for the cumulative distribution C in units
    of 2**-bits and one uniform U per row (systematic sampling): every weight has the expectation
    probs * 2**bits, so a token drawn from the rounded distribution has exactly the distribution
    that was rounded.

    Parameters
    ----------
    probs : Tensor [rows, vocab]
        The distribution to round.
    bits : int
        The weights of a row sum to exactly 2**bits; 1 to 24.
    uniforms : Tensor of float64 [rows]
        Numbers in (0, 1).

    Returns
    -------
    Tensor of int64 [rows, vocab]
        Each within 1 of probs * 2**bits; 0 where the distribution is 0.

    Raises
    ------
    ValueError
        If `bits` is out of range, `probs` is no distribution or shapes do not fit.
    """
    exact, total = _scaled(probs, bits)
    if uniforms.shape != exact.shape[:1]:
        raise ValueError(f"uniforms has shape {tuple(uniforms.shape)}: it must be [rows]")
    cumulative = exact.cumsum(dim=-1)
    cumulative = cumulative / cumulative[:, -1:] * total  # the last one is then exactly 2**bits
    offset = uniforms.to(device="cpu", dtype=torch.float64).unsqueeze(1)
    # an offset within 2**-37 of 1 would round the last step up to 2**bits + 1
    steps = (cumulative + offset).floor().clamp(max=total).to(torch.int64)
    before = torch.cat([torch.zeros_like(steps[:, :1]), steps[:, :-1]], dim=-1)
    return steps - before


def probs_from_weights(weights: Tensor, bits: int) -> Tensor:
    """The distribution that integer weights stand for: weights / 2**bits, exact in float64.

    Parameters
    ----------
    weights : Tensor of integers [rows, vocab]
        Non-negative.
    bits : int
        Rows of `weights` must sum to 2**bits.

    Returns
    -------
    Tensor of float64 [rows, vocab]

    Raises
    ------
    ValueError
        If a weight is negative or a row sums to something else.
    """
    integers = weights.to(torch.int64)
    if integers.numel() and int(integers.amin()) < 0:
        raise ValueError(f"weights holds {int(integers.amin())}: allowed are values from 0")
    wrong = integers.sum(dim=-1) != 2**bits
    if bool(wrong.any()):
        raise ValueError(f"weights: {int(wrong.sum())} rows do not sum to 2**{bits}")
    return integers.to(torch.float64).mul(2.0**-bits)
