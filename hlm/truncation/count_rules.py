"""Rules that choose how many tokens to upload (CU-HLM, arXiv 2505.11788)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hlm.line import UHLM_LINE, UncertaintyLine
from hlm.truncation.k_star import k_star_online


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
        """K of each row, int64 [rows], for distributions [rows, vocab] and x_d [rows]."""
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
        """See `FixedCount.choose`."""
        rejection = self.expected_rejection(draft_probability)
        return k_star_online(probs, draft_probability, rejection, self.theta_tv)


CountRule = FixedCount | OnlineCount


def count_rule(
    truncation_k: int, theta_tv: float, line: UncertaintyLine | None = None
) -> CountRule:
    """How many tokens of the distribution a truncated method uploads.

    Parameters
    ----------
    truncation_k : int
        The same k for every token, from 1; 0 for CU-HLM's k* rule.
    theta_tv : float
        Deviation the k* rule may leave, >= 0.
    line : UncertaintyLine, optional
        From u = 1 - x_d to the expected beta, for the k* rule; by default U-HLM's published one,
        which is what every run uses.

    Raises
    ------
    ValueError
        If a parameter is out of range.
    """
    if truncation_k < 0:
        raise ValueError(f"truncation-k = {truncation_k}: allowed are values from 0")
    if truncation_k:
        return FixedCount(truncation_k)
    return OnlineCount(theta_tv, *(() if line is None else (line.slope, line.intercept)))
