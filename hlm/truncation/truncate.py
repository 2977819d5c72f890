"""A truncated distribution on the wire: its top-k with 8-bit weights, the rest spread evenly."""

from __future__ import annotations

import torch
from torch import Tensor

from hlm.sampling import check_probs
from hlm.truncation.quantising import quantise

WEIGHT_BITS = 8
"""Probabilities of a truncated distribution travel in units of 2**-8."""


def truncate(probs: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """The top-k of each row as ids and 8-bit weights.

    Parameters
    ----------
    probs : Tensor [rows, vocab]
        vocab >= 2.
    counts : Tensor of int64 [rows]
        k of each row, 1 to vocab - 1. (With one token left over, nothing is lost.)

    Returns
    -------
    support : Tensor of int64 [rows, widest]
        Ids by falling probability, padded with -1.
    weights : Tensor of int64 [rows, widest]
        Units of 2**-8, 0 to 255, padded with 0. A row sums to at most 2**8; the rest belongs to
        the tokens not named.

    Raises
    ------
    ValueError
        If `probs` is no distribution or a count is out of range.
    """
    exact = check_probs("probs", probs)
    rows, vocab = exact.shape
    if rows == 0:
        empty = torch.zeros((0, 0), dtype=torch.int64)
        return empty, empty.clone()
    if counts.shape != (rows,) or int(counts.min()) < 1 or int(counts.max()) > vocab - 1:
        raise ValueError(f"counts = {counts}: allowed are [{rows}] values from 1 to {vocab - 1}")
    top = torch.topk(exact, int(counts.max()), dim=-1)
    named = torch.arange(top.values.shape[1]) < counts.unsqueeze(1)
    probabilities = torch.where(named, top.values, 0.0)
    rest = (exact.sum(dim=-1, keepdim=True) - probabilities.sum(dim=-1, keepdim=True)).clamp(min=0)
    weights = quantise(torch.cat([probabilities, rest], dim=-1), WEIGHT_BITS)[:, :-1]
    # 2**8 itself does not fit a byte; one unit then goes to the tail
    return torch.where(named, top.indices, -1), weights.clamp(max=2**WEIGHT_BITS - 1)


def spread(support: Tensor, weights: Tensor, counts: Tensor, vocab: int) -> Tensor:
    """The distribution that ids and weights stand for, the same on both sides to the last bit.

    Parameters
    ----------
    support, weights : Tensor of int64 [rows, widest]
        As `truncate` returns them.
    counts : Tensor of int64 [rows]
        k of each row.
    vocab : int
        Size of the vocabulary.

    Returns
    -------
    Tensor of float64 [rows, vocab]

    Raises
    ------
    ValueError
        If an id, weight or count is out of range, or an id is named twice.
    """
    rows = support.shape[0]
    if support.ndim != 2 or weights.shape != support.shape or counts.shape != (rows,):
        raise ValueError(
            f"support {tuple(support.shape)}, weights {tuple(weights.shape)} and counts "
            f"{tuple(counts.shape)} do not fit"
        )
    if rows == 0:
        return torch.zeros((0, vocab), dtype=torch.float64)
    if int(counts.min()) < 1 or int(counts.max()) > min(support.shape[1], vocab - 1):
        raise ValueError(f"counts = {counts}: allowed are 1 to {min(support.shape[1], vocab - 1)}")
    named = torch.arange(support.shape[1]) < counts.unsqueeze(1)
    if bool((named & ((support < 0) | (support >= vocab))).any()):
        raise ValueError(f"support: allowed are ids from 0 to {vocab - 1}")
    units = torch.where(named, weights.to(torch.int64), 0)
    rest = 2**WEIGHT_BITS - units.sum(dim=-1, keepdim=True)
    if int(units.min()) < 0 or int(units.max()) >= 2**WEIGHT_BITS or int(rest.min()) < 0:
        raise ValueError(f"weights: allowed are 0 to 255, at most {2**WEIGHT_BITS} a row")
    share = rest.to(torch.float64).mul(2.0**-WEIGHT_BITS) / (vocab - counts).unsqueeze(1)
    # one more column takes the padding
    columns = torch.where(named, support, vocab)
    mentions = torch.zeros((rows, vocab + 1), dtype=torch.int64)
    mentions.scatter_add_(1, columns, torch.ones_like(columns))
    if int(mentions[:, :vocab].max()) > 1:
        raise ValueError("support: an id is named twice")
    probs: Tensor = share.expand(-1, vocab + 1).clone()
    named_probs = units.to(torch.float64).mul(2.0**-WEIGHT_BITS)
    probs.scatter_(1, columns, named_probs)
    return probs[:, :vocab]
