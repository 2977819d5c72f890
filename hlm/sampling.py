"""From logits to the distribution a token is really drawn from, and from a distribution to a token.

A *distribution* is a probability distribution over the vocabulary after temperature and top-p,
float64 [rows, vocab]. Everything that is proved about verification (hlm.verification) speaks of
distributions, never of raw softmax values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

_SUM_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn from logits.

    Attributes
    ----------
    decoding : {"greedy", "sampled"}
        Greedy takes the most likely token; its distribution is a point mass.
    temperature : float
        Divides the logits before the softmax, > 0. Unused in greedy decoding.
    top_p : float
        Keep the fewest most likely tokens whose probabilities reach this sum, in (0, 1]. The token
        that crosses the boundary is kept. Unused in greedy decoding.

    Raises
    ------
    ValueError
        If a field is out of range.
    """

    decoding: Literal["greedy", "sampled"] = "greedy"
    temperature: float = 1.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.decoding not in ("greedy", "sampled"):
            raise ValueError(f"decoding = {self.decoding!r}: allowed are 'greedy' and 'sampled'")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"temperature = {self.temperature}: allowed are finite values > 0")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p = {self.top_p}: allowed are values in (0, 1]")


def top_token(scores: Tensor) -> Tensor:
    """The most likely token of each row, the lowest id on ties.

    Parameters
    ----------
    scores : Tensor [rows, vocab]
        Logits or a distribution.

    Returns
    -------
    Tensor of int64 [rows]
    """
    # half-precision logits tie often, and both sides must then name the same token; torch.argmax
    # promises the first maximum.
    return scores.argmax(dim=-1)


def _check_shape(logits: Tensor) -> None:
    if logits.ndim != 2 or logits.shape[1] == 0:
        raise ValueError(f"logits has shape {tuple(logits.shape)}: it must be [rows, vocab]")


def _check_highest(highest: Tensor) -> None:
    # NaN counts as the highest, and a row of -inf has no distribution
    if not all(map(math.isfinite, highest.flatten().tolist())):
        raise ValueError("logits: each row needs a finite maximum and no NaN or +inf")


def checked_top_token(logits: Tensor) -> Tensor:
    """`top_token` of checked logits: what greedy decoding draws, without the distribution.

    Parameters
    ----------
    logits : Tensor [rows, vocab]
        As for `distribution`.

    Returns
    -------
    Tensor of int64 [rows]

    Raises
    ------
    ValueError
        As `distribution`.
    """
    _check_shape(logits)
    tokens = top_token(logits)
    _check_highest(logits.gather(1, tokens.unsqueeze(1)))
    return tokens


def probability_of(logits: Tensor, tokens: Tensor, temperature: float) -> Tensor:
    """Softmax probability of one token a row.

    Parameters
    ----------
    logits : Tensor [rows, vocab]
        As for `distribution`.
    tokens : Tensor of int64 [rows]
    temperature : float
        > 0.

    Returns
    -------
    Tensor of float64 [rows]
        In [0, 1].

    Raises
    ------
    ValueError
        As `distribution` and `Sampling`.
    """
    Sampling("sampled", temperature)
    _check_shape(logits)
    highest = logits.amax(dim=-1, keepdim=True)
    _check_highest(highest)
    scaled = logits
    if temperature != 1.0:
        scaled = (logits.double() - highest) / temperature
    probabilities = scaled.double().softmax(dim=-1)
    return probabilities.gather(1, tokens.unsqueeze(1)).squeeze(1)


def _checked_logits(logits: Tensor) -> Tensor:
    _check_shape(logits)
    exact = logits.double()
    _check_highest(exact.amax(dim=-1))
    return exact


def distribution(logits: Tensor, sampling: Sampling) -> Tensor:
    """The distribution that `sampling` draws from.

    Parameters
    ----------
    logits : Tensor [rows, vocab]
        Any floating dtype; -inf marks a forbidden token.
    sampling : Sampling
        Decoding, temperature and top-p.

    Returns
    -------
    Tensor of float64 [rows, vocab]
        Rows sum to 1. Greedy: one-hot.

    Raises
    ------
    ValueError
        If `logits` is not [rows, vocab] or a row has NaN, +inf, or nothing but -inf.
    """
    if sampling.decoding == "greedy":
        tokens = checked_top_token(logits)
        point_mass = logits.new_zeros(logits.shape).double()
        return point_mass.scatter_(1, tokens.unsqueeze(1), 1.0)
    exact = _checked_logits(logits)
    # the maximum goes first: a tiny temperature would turn large logits into inf - inf
    exact = (exact - exact.amax(dim=-1, keepdim=True)) / sampling.temperature
    probabilities = exact.softmax(dim=-1)
    if sampling.top_p == 1.0:
        return probabilities
    ordered, tokens = probabilities.sort(dim=-1, descending=True, stable=True)
    mass_before = ordered.cumsum(dim=-1) - ordered
    # "before" keeps the token that crosses the boundary, and so never keeps none
    nucleus = ordered * (mass_before < sampling.top_p)
    nucleus /= nucleus.sum(dim=-1, keepdim=True)
    return probabilities.new_zeros(probabilities.shape).scatter_(1, tokens, nucleus)


def check_probs(name: str, candidate: Tensor) -> Tensor:
    """Return `candidate` as float64 on the CPU, or refuse it.

    Decisions about tokens are made on the CPU, where float64 sums do not depend on the device.

    Parameters
    ----------
    name : str
        What to call it in the error.
    candidate : Tensor [rows, vocab]
        Non-negative, rows sum to 1 within 1e-6 (what float32 distributions reach).

    Returns
    -------
    Tensor of float64 [rows, vocab]

    Raises
    ------
    ValueError
        If it is not a distribution.
    """
    if candidate.ndim != 2 or candidate.shape[1] == 0:
        raise ValueError(f"{name} has shape {tuple(candidate.shape)}: it must be [rows, vocab]")
    exact = candidate.cpu().double()
    if exact.shape[0] == 0:
        return exact
    lowest = float(exact.amin())
    if not lowest >= 0:  # also catches NaN
        raise ValueError(f"{name} holds {lowest}: allowed are probabilities >= 0")
    furthest = float((exact.sum(dim=-1) - 1).abs().amax())
    if not furthest <= _SUM_TOLERANCE:
        raise ValueError(f"{name} has a row whose sum is {furthest:.3g} away from 1")
    return exact


def draw(probs: Tensor, uniforms: Tensor) -> Tensor:
    """Draw tokens by inverting the cumulative distribution.

    Parameters
    ----------
    probs : Tensor [rows, vocab]
        Non-negative weights with a positive sum; they need not be normalised.
    uniforms : Tensor of float64 [rows] or [rows, draws]
        Numbers in [0, 1).

    Returns
    -------
    Tensor of int64, shape of `uniforms`
        Never a token of probability 0, also where rounding carries a uniform near 1 past the end.

    Raises
    ------
    ValueError
        If shapes do not fit, or a row has no positive probability.
    """
    if probs.ndim != 2 or uniforms.ndim not in (1, 2) or probs.shape[0] != uniforms.shape[0]:
        raise ValueError(
            f"probs has shape {tuple(probs.shape)} and uniforms {tuple(uniforms.shape)}: they must "
            "be [rows, vocab] and [rows] or [rows, draws]"
        )
    import torch

    exact = probs.double()
    numbers = uniforms.to(device=exact.device, dtype=torch.float64)
    points = numbers.unsqueeze(1) if numbers.ndim == 1 else numbers
    if exact.shape[0] == 0:
        return torch.zeros(uniforms.shape, dtype=torch.int64, device=exact.device)
    cumulative = exact.cumsum(dim=-1)
    if exact.device.type != "cpu":
        # a parallel scan may round differently from entry to entry and step back
        cumulative = cumulative.cummax(dim=-1).values
    if not bool((cumulative[:, -1] > 0).all()):
        raise ValueError("probs: each row needs a positive probability and no NaN")
    positive = exact > 0
    vocab = exact.shape[1]
    last = vocab - 1 - positive.flip(-1).to(torch.uint8).argmax(dim=-1, keepdim=True)
    found = torch.searchsorted(cumulative, points * cumulative[:, -1:], right=True)
    found = torch.minimum(found, last)
    stuck = ~positive.gather(1, found)
    if bool(stuck.any()):  # only after a parallel scan: move on to the next possible token
        ids = torch.arange(vocab, device=exact.device).expand_as(exact)
        following = torch.where(positive, ids, vocab).flip(-1).cummin(dim=-1).values.flip(-1)
        found = following.gather(1, found)
    return found.squeeze(1) if numbers.ndim == 1 else found
