"""Rules that choose how many tokens to upload (CU-HLM, arXiv 2505.11788)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from hlm.line import UHLM_LINE
from hlm.truncation.k_star import k_star, k_star_online, tail_deviation, uncertainty_scale

__all__ = ["CountRule", "FixedCount", "OfflineBudget", "OnlineCount"]


class CountRule(Protocol):
    """Chooses k for a batch of tokens."""

    def choose(self, probs: Tensor, draft_probability: Tensor) -> Tensor:
        """K per row, int64 [rows], for distributions [rows, vocab] and x_d [rows]."""
        ...


@dataclass(frozen=True)
class FixedCount:
    """The same k for every token.

    Attributes
    ----------
    count : int
        k >= 1; at most vocab - 1 is used.
    """

    count: int

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count = {self.count}: allowed are values from 1")

    def choose(self, probs: Tensor, draft_probability: Tensor) -> Tensor:
        """See `CountRule.choose`."""
        del draft_probability
        count = max(min(self.count, probs.shape[1] - 1), 1)
        return torch.full((probs.shape[0],), count, dtype=torch.int64)


@dataclass(frozen=True)
class OnlineCount:
    """CU-HLM's online rule, with beta_d read off U-HLM's line.

    Attributes
    ----------
    theta_tv : float
        Allowed ratio, >= 0.
    slope, intercept : float
        The line beta = slope * u + intercept at u = 1 - x_d, clipped to [0, 1]. The defaults are
        `hlm.line.UHLM_LINE`, another pair's than yours; a line that does not fit uploads more or
        fewer tokens than theta_tv asks for, and changes nothing else.
    """

    theta_tv: float
    slope: float = UHLM_LINE[0]
    intercept: float = UHLM_LINE[1]

    def __post_init__(self) -> None:
        if not self.theta_tv >= 0:
            raise ValueError(f"theta_tv = {self.theta_tv}: allowed are values >= 0")

    def expected_rejection(self, draft_probability: Tensor) -> Tensor:
        """beta_d that the line predicts, float64 [rows] in [0, 1]."""
        return (self.slope * (1 - draft_probability) + self.intercept).clamp(0.0, 1.0)

    def choose(self, probs: Tensor, draft_probability: Tensor) -> Tensor:
        """See `CountRule.choose`."""
        rejection = self.expected_rejection(draft_probability)
        return k_star_online(probs, draft_probability, rejection, self.theta_tv)


class OfflineBudget:
    """CU-HLM's offline rule: the mean ratio over the tokens so far stays within theta_tv.

    What earlier tokens left unspent, later ones may use: token t gets the least k whose ratio is
    at most t * theta_tv less what was spent. All tokens of the object share one budget.

    Parameters
    ----------
    theta_tv : float
        Allowed mean ratio, >= 0.
    slope, intercept : float
        As in `OnlineCount`.
    """

    def __init__(
        self, theta_tv: float, slope: float = UHLM_LINE[0], intercept: float = UHLM_LINE[1]
    ) -> None:
        self._line = OnlineCount(theta_tv, slope, intercept)
        self.spent = 0.0
        self.tokens = 0

    @property
    def mean(self) -> float:
        """Mean ratio so far; 0 before the first token."""
        return self.spent / self.tokens if self.tokens else 0.0

    def choose(self, probs: Tensor, draft_probability: Tensor) -> Tensor:
        """Spend the budget on a batch; see `CountRule.choose`.

        Rows of one batch are tokens of one moment: each may use an equal part of what is left.
        """
        rows = probs.shape[0]
        if rows == 0:
            return torch.zeros(0, dtype=torch.int64)
        scale = uncertainty_scale(
            draft_probability, self._line.expected_rejection(draft_probability)
        )
        allowance = max(self._line.theta_tv * (self.tokens + rows) - self.spent, 0.0) / rows
        counts = k_star(probs, allowance * scale)
        self.spent += float((tail_deviation(probs, counts) / scale).sum())
        self.tokens += rows
        return counts
