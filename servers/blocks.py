"""Blocks: several drafts of one text in one message, each going on from the one before it.

One pass of the model gives the distributions of all drafts of a block. The drafts are decided one
by one up to the first rejection. A last row without a draft asks for the token after a block that
is accepted whole.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from hlm.randomness import DrawKeys, Purpose, uniforms
from hlm.sampling import draw
from hlm.verification import VERIFIERS, Claim


def own_tokens(target: torch.Tensor, verifier: str, keys: DrawKeys) -> torch.Tensor:
    """What the large model puts where nothing was drafted, int64 [rows].

    Parameters
    ----------
    target : torch.Tensor
        float64 [rows, vocab], the distributions to draw from.
    verifier : str
        With a shared draw, what a draft would have been compared with, so that the text does not
        depend on where blocks begin. Otherwise a sample.
    keys : DrawKeys
        Of the places.
    """
    kind = VERIFIERS[verifier]
    if kind.shared_draw:
        anything = torch.zeros(len(target), dtype=torch.int64)
        tokens: torch.Tensor = kind().decide(target, Claim(anything), keys).tokens
        return tokens
    return draw(target, uniforms(keys, Purpose.RESAMPLE, 1)[:, 0])


def skipped(block: NDArray[np.bool_], stands: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which rows get no answer, because a row before them in their block does not stand.

    Parameters
    ----------
    block, stands : numpy.ndarray
        bool [rows]: the row goes on the block of the row before it; its draft was accepted.
    """
    if not block.any():
        return block
    rows = np.arange(len(block))
    lead = np.maximum.accumulate(np.where(block, 0, rows))
    ends = np.maximum.accumulate(np.where(block & ~np.append(True, stands)[:-1], rows, 0))
    return np.asarray(ends > lead)
