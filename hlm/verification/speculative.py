"""The two formulas of speculative sampling that the exact methods share.

Leviathan et al., arXiv 2211.17192; FedHLM eq. 3 is one minus `accept_probability`. A draft d from
x is accepted with probability min(1, y_d/x_d) and a rejected one is replaced by a sample of the
residual (y - x)+ / TV(x, y). The result has distribution y if, and only if, d was drawn from that
x.
"""

from __future__ import annotations

import torch
from torch import Tensor


def accept_probability(probs: Tensor, target: Tensor) -> Tensor:
    """Chance of accepting each token as a draft: min(1, target / probs).

    Parameters
    ----------
    probs, target : Tensor of float64, same shape
        x and y, whole distributions or the entries of the drafts.

    Returns
    -------
    Tensor of float64, same shape
        In [0, 1]; 1 where the distribution is 0 (such a draft says nothing against itself).
    """
    possible = probs > 0
    # dividing by a subnormal may give inf, which the minimum turns into 1
    ratio = target / torch.where(possible, probs, torch.ones_like(probs))
    return torch.where(possible, ratio.clamp(max=1.0), torch.ones_like(probs))


def residual(probs: Tensor, target: Tensor) -> Tensor:
    """Distribution of the replacement of a rejected draft: (target - probs)+, normalised.

    Parameters
    ----------
    probs, target : Tensor of float64 [rows, vocab]

    Returns
    -------
    Tensor of float64 [rows, vocab]
        The target itself in rows where both distributions are equal: nothing is rejected there.
    """
    excess = (target - probs).clamp(min=0.0)
    total = excess.sum(dim=-1, keepdim=True)
    return torch.where(total > 0, excess / torch.where(total > 0, total, 1.0), target)
