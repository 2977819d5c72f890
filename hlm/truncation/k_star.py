"""How many tokens of a device distribution to upload: CU-HLM's choice of k (arXiv 2505.11788).

The truncated distribution xhat keeps the k most likely tokens of x and spreads the rest evenly over
the other V - k. The *deviation* at k is sum_{i>k} |x_i - xhat_i|, twice TV(x, xhat). It falls with
k: the token that leaves the tail was above its mean, so the mean drops, and with it everything that
lies below the mean, which is half of the deviation.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hlm.sampling import check_probs

# rounding of sums of 10**5 probabilities; uniform ones have deviation 0 + rounding
_SLACK = 1e-12
_BIN_SHIFT = 45  # keeps 7 of the 52 bits of the mantissa
_LOWEST_BIN = (1023 - 63) << 7
_BIN_COUNT = 64 << 7
_BIN_EDGES = np.append(
    ((np.arange(_BIN_COUNT, dtype=np.int64) + _LOWEST_BIN) << _BIN_SHIFT).view(np.float64), 2.0
)
"""Lower edge of every bin, and a number above the last."""


class _Bracket(NamedTuple):
    """Where k* can be: within the tokens of bins `enough` to `above` - 1."""

    enough: int
    above: int
    kept: int
    """Tokens in bin `above` and higher, all of which are kept."""
    mass: float
    """Their probability."""
    total: float
    """Probability of all tokens, added in the same order."""


def _softplus(value: Tensor) -> Tensor:
    return torch.log1p(torch.exp(value))


def uncertainty_scale(draft_probability: Tensor, rejection: Tensor) -> Tensor:
    """What CU-HLM divides the deviation by: (1 - x_d) l(-1) + x_d l(-beta_d), l(z) = ln(1 + e^z).

    Parameters
    ----------
    draft_probability : Tensor [rows]
        x_d in [0, 1].
    rejection : Tensor [rows]
        beta_d in [0, 1], or what the device expects it to be.

    Returns
    -------
    Tensor of float64 [rows]
        Between l(-1) = 0.313 and l(0) = 0.693.

    Raises
    ------
    ValueError
        If a value is outside [0, 1].
    """
    for name, values in (("draft_probability", draft_probability), ("rejection", rejection)):
        if not bool(((values >= 0) & (values <= 1)).all()):
            raise ValueError(f"{name}: allowed are values in [0, 1]")
    chance = draft_probability.to(torch.float64)
    certain = math.log1p(math.exp(-1.0))
    return (1 - chance) * certain + chance * _softplus(-rejection.to(torch.float64))


def _deviation(probs: Tensor, top_sums: Tensor, kept: Tensor) -> Tensor:
    """Deviation at one k per row, in one pass over the distribution.

    Twice the excess over the tail's mean m. All of the top k exceed m too, so the excess of the
    tail is that of the whole distribution less top_sum - k m, and the tail need not be told apart.
    """
    total = probs.sum(dim=-1)
    tail_tokens = (probs.shape[1] - kept).to(torch.float64)
    mean = (total - top_sums).clamp(min=0.0) / tail_tokens.clamp(min=1.0)
    excess = (probs - mean.unsqueeze(1)).clamp_(min=0.0).sum(dim=-1)
    return (2 * (excess - (top_sums - kept * mean))).clamp(min=0.0)


def _bins(row: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Bins of relative width 1/128 from 2**-63 to 1, straight from the bits of the numbers."""
    bins: npt.NDArray[np.int64] = row.view(np.int64) >> _BIN_SHIFT
    bins -= _LOWEST_BIN
    return bins.clip(0, _BIN_COUNT - 1, out=bins)


def _bracket(row: npt.NDArray[np.float64], bins: npt.NDArray[np.int64], limit: float) -> _Bracket:
    """Bound the deviation wherever k ends with a bin, and keep the k that remain possible."""
    counts = np.bincount(bins, minlength=_BIN_COUNT)
    sums = np.bincount(bins, weights=row, minlength=_BIN_COUNT)
    # tokens and mass in bin b and above; one entry more for "nothing"
    kept = np.append(counts[::-1].cumsum()[::-1], 0)
    mass = np.append(sums[::-1].cumsum()[::-1], 0.0)
    tail = row.size - kept
    mean = np.maximum(mass[0] - mass, 0.0) / np.maximum(tail, 1)
    home = _bins(mean)
    full = np.maximum((mass[home + 1] - mass) - mean * (kept[home + 1] - kept), 0.0)
    # of the mean's own bin only count and sum are known: its excess lies between these
    least = 2 * (full + np.maximum(sums[home] - mean * counts[home], 0.0))
    most = 2 * (full + counts[home] * np.maximum(_BIN_EDGES[home + 1] - mean, 0.0))
    margin = 1e-9  # wider than the rounding of these sums, so that the bracket is certain
    enough = int(np.flatnonzero((most <= limit - margin) & (kept >= 1)).max(initial=0))
    short = np.flatnonzero((least > limit + margin) | (kept == 0))
    above = int(short[short > enough].min(initial=_BIN_COUNT))
    return _Bracket(enough, above, int(kept[above]), float(mass[above]), float(mass[0]))


def _k_star_row(row: npt.NDArray[np.float64], limit: float) -> int:
    """`k_star` of one row, in a fixed number of passes and two sorts of a few tokens each."""
    bins = _bins(row)
    bracket = _bracket(row, bins, limit)
    candidates = row[(bins >= bracket.enough) & (bins < bracket.above)]
    candidates = np.sort(candidates)[::-1]
    counts = bracket.kept + np.arange(1, candidates.size + 1)
    top_sums = bracket.mass + candidates.cumsum()
    mean = np.maximum(bracket.total - top_sums, 0.0) / np.maximum(row.size - counts, 1)
    # excess of the whole distribution over each mean: exact sums above the highest mean, and the
    # few tokens between the lowest and the highest one by one
    above = row[row > mean[0]]
    between = np.sort(row[(row > mean[-1]) & (row <= mean[0])])
    first = np.searchsorted(between, mean, side="right")
    between_sums = np.append(between[::-1].cumsum()[::-1], 0.0)[first]
    larger = above.size + between.size - first
    excess = above.sum() + between_sums - mean * larger
    deviation = 2 * (excess - (top_sums - counts * mean))
    within = deviation <= limit + _SLACK
    within[-1] = True  # by the bracket, or as a tail of nothing
    answer = int(counts[int(within.argmax())])
    return max(min(answer, row.size - 1), 1)


def k_star(probs: Tensor, limit: Tensor) -> Tensor:
    """Least k >= 1 whose deviation is at most a limit.

    A histogram by magnitude bounds the deviation at every 128th of an octave; only the tokens of
    the bins that remain in question are sorted. O(V) a row unless nearly all probabilities lie
    within 1/128 of each other.

    Parameters
    ----------
    probs : Tensor [rows, vocab]
        Probabilities, not logits, in any order.
    limit : Tensor [rows]
        Largest allowed sum_{i>k} |x_i - xhat_i|, >= 0; rounding of 1e-12 is forgiven.

    Returns
    -------
    Tensor of int64 [rows]
        At least 1 and, for vocab > 1, at most vocab - 1, where the deviation is 0.

    Raises
    ------
    ValueError
        If `probs` is no distribution, or a limit is negative or NaN.
    """
    exact = check_probs("probs", probs)
    if limit.shape != exact.shape[:1] or not bool((limit >= 0).all()):
        raise ValueError(f"limit = {limit}: it must be [{exact.shape[0]}] values >= 0")
    # the two cheap answers first: one token suffices, as for a uniform or a very sharp distribution
    rows = np.ascontiguousarray(exact.numpy())
    one = torch.ones(exact.shape[0], dtype=torch.int64)
    enough = _deviation(exact, exact.amax(dim=-1), one) <= limit + _SLACK
    answers = [
        1 if simple else _k_star_row(row, allowed)
        for row, allowed, simple in zip(rows, limit.tolist(), enough.tolist(), strict=True)
    ]
    return torch.tensor(answers, dtype=torch.int64)


def k_star_online(
    probs: Tensor, draft_probability: Tensor, rejection: Tensor, theta_tv: float
) -> Tensor:
    """CU-HLM's online rule for each token by itself.

    k* = min{k : sum_{i>k} |x_i - xhat_i| / [(1 - x_d) l(-1) + x_d l(-beta_d)] <= theta_tv}.

    Parameters
    ----------
    probs : Tensor [rows, vocab]
        Probabilities in any order.
    draft_probability, rejection : Tensor [rows]
        x_d and beta_d; see `uncertainty_scale`.
    theta_tv : float
        Allowed ratio, >= 0. 0 uploads everything; a uniform distribution has k* = 1 at any.

    Returns
    -------
    Tensor of int64 [rows]

    Raises
    ------
    ValueError
        If an argument is out of range.
    """
    if not theta_tv >= 0:
        raise ValueError(f"theta_tv = {theta_tv}: allowed are values >= 0")
    return k_star(probs, theta_tv * uncertainty_scale(draft_probability, rejection))
