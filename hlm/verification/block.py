"""Several pending drafts at once, token by token or as one block.

Block verification (Sun et al., arXiv 2403.10444, algorithm 2) accepts a longer prefix on average
than testing token by token, and both leave the joint law of the text untouched.

For drafts d_1 ... d_n with device laws x_i and target laws y_i (each given the drafts before it)
an *outcome* is how many drafts stand and which token follows them; y_{n+1} is the law after all.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hlm.sampling import draw
from hlm.verification import speculative

__all__ = ["Outcomes", "block_outcomes", "block_verify", "tokenwise_outcomes", "tokenwise_verify"]


@dataclass(frozen=True)
class Outcomes:
    """The law of what verification does with given drafts.

    Attributes
    ----------
    accepted : Tensor of float64 [rows, block + 1]
        Chance that exactly 0, 1, ..., block drafts stand.
    next_laws : Tensor of float64 [rows, block + 1, vocab]
        Law of the token that follows, for each of these counts.
    """

    accepted: Tensor
    next_laws: Tensor

    def sample(self, uniforms: Tensor) -> tuple[Tensor, Tensor]:
        """Draw the count and the next token, both int64 [rows], from uniforms [rows, 2]."""
        counts = draw(self.accepted, uniforms[:, 0])
        rows = torch.arange(counts.shape[0])
        return counts, draw(self.next_laws[rows, counts], uniforms[:, 1])


def _checked(
    draft_laws: Tensor, target_laws: Tensor, drafts: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """X and y as float64 on the CPU, and their entries at the drafts, [rows, block]."""
    if draft_laws.ndim != 3 or draft_laws.shape[1] == 0:
        raise ValueError(
            f"draft_laws has shape {tuple(draft_laws.shape)}: it must be [rows, block >= 1, vocab]"
        )
    rows, block, vocab = draft_laws.shape
    if target_laws.shape != (rows, block + 1, vocab) or drafts.shape != (rows, block):
        raise ValueError(
            f"target_laws {tuple(target_laws.shape)} and drafts {tuple(drafts.shape)}: they must "
            f"be {(rows, block + 1, vocab)} and {(rows, block)}"
        )
    if drafts.numel() and not 0 <= int(drafts.min()) <= int(drafts.max()) < vocab:
        raise ValueError(f"drafts: allowed are ids from 0 to {vocab - 1}")
    x = draft_laws.to(device="cpu", dtype=torch.float64)
    y = target_laws.to(device="cpu", dtype=torch.float64)
    index = drafts.to("cpu").unsqueeze(2)
    return x, y, x.gather(2, index).squeeze(2), y[:, :block].gather(2, index).squeeze(2)


def tokenwise_outcomes(draft_laws: Tensor, target_laws: Tensor, drafts: Tensor) -> Outcomes:
    """Speculative sampling of each draft in turn, up to the first rejection.

    Parameters
    ----------
    draft_laws : Tensor [rows, block, vocab]
        x_1 ... x_n, the laws the drafts were drawn from.
    target_laws : Tensor [rows, block + 1, vocab]
        y_1 ... y_{n+1}.
    drafts : Tensor of int64 [rows, block]

    Returns
    -------
    Outcomes

    Raises
    ------
    ValueError
        If shapes do not fit or a draft is outside the vocabulary.
    """
    x, y, x_of_draft, y_of_draft = _checked(draft_laws, target_laws, drafts)
    accept = speculative.accept_probability(x_of_draft, y_of_draft)
    ones = torch.ones_like(accept[:, :1])
    reached = torch.cat([ones, accept.cumprod(dim=1)], dim=1)
    stops = torch.cat([1 - accept, ones], dim=1)
    next_laws = torch.cat([speculative.residual(x, y[:, :-1]), y[:, -1:]], dim=1)
    return Outcomes(reached * stops, next_laws)


def block_outcomes(draft_laws: Tensor, target_laws: Tensor, drafts: Tensor) -> Outcomes:
    """Block verification: judge every prefix, keep the longest that passes.

    With p_0 = 1 and p_i = min(1, p_{i-1} y_i(d_i)/x_i(d_i)), the prefix of length i passes with
    chance h_i = s_i / (s_i + 1 - p_i), s_i = sum (p_i y_{i+1} - x_{i+1})+, and the whole block
    with chance p_n. After i < n drafts the next token has the law (p_i y_{i+1} - x_{i+1})+ / s_i.

    Parameters
    ----------
    draft_laws, target_laws, drafts
        As in `tokenwise_outcomes`.

    Returns
    -------
    Outcomes

    Raises
    ------
    ValueError
        If shapes do not fit or a draft is outside the vocabulary.
    """
    x, y, x_of_draft, y_of_draft = _checked(draft_laws, target_laws, drafts)
    rows, block, _ = x.shape
    possible = x_of_draft > 0
    ratios = torch.where(possible, y_of_draft / torch.where(possible, x_of_draft, 1.0), torch.inf)
    prefix = torch.ones((rows, block + 1), dtype=torch.float64)
    for length in range(1, block + 1):  # each p needs the one before; blocks are short
        # an impossible draft (x = 0) never comes up; nan_to_num keeps 0 * inf harmless
        product = (prefix[:, length - 1] * ratios[:, length - 1]).nan_to_num(nan=0.0)
        prefix[:, length] = product.clamp(max=1.0)
    scaled = prefix[:, :block].unsqueeze(2) * y[:, :block]
    excess = (scaled - x).clamp(min=0.0)
    excess_sum = excess.sum(dim=2)
    denominator = excess_sum + 1 - prefix[:, :block]
    # 0/0 is p = 1 with equal laws: the prefix certainly stands
    passes = torch.where(denominator > 0, excess_sum / denominator.clamp(min=1e-300), 1.0)
    passes = torch.cat([passes, prefix[:, block:]], dim=1)
    passes[:, 0] = 1.0  # if nothing longer passes, no draft stands
    fails_after = (1 - passes).flip(1).cumprod(dim=1).flip(1)
    none_longer = torch.cat([fails_after[:, 1:], torch.ones((rows, 1), dtype=torch.float64)], dim=1)
    positive = (excess_sum > 0).unsqueeze(2)
    divisor = torch.where(positive, excess_sum.unsqueeze(2), 1.0)
    follow = torch.where(positive, excess / divisor, y[:, :block])
    return Outcomes(passes * none_longer, torch.cat([follow, y[:, block:]], dim=1))


def tokenwise_verify(
    draft_laws: Tensor, target_laws: Tensor, drafts: Tensor, uniforms: Tensor
) -> tuple[Tensor, Tensor]:
    """Verify pending drafts token by token.

    Crosses the link: drafts and their laws up; the count and one token down. Exact: the accepted
    drafts and the next token have the target's joint law. Each draft is rejected with probability
    TV(x_i, y_i) once it is reached.

    Parameters
    ----------
    draft_laws, target_laws, drafts
        As in `tokenwise_outcomes`.
    uniforms : Tensor of float64 [rows, 2]
        Numbers in (0, 1).

    Returns
    -------
    accepted : Tensor of int64 [rows]
        How many drafts stand, 0 to block.
    next_tokens : Tensor of int64 [rows]
        The token after them.
    """
    return tokenwise_outcomes(draft_laws, target_laws, drafts).sample(uniforms)


def block_verify(
    draft_laws: Tensor, target_laws: Tensor, drafts: Tensor, uniforms: Tensor
) -> tuple[Tensor, Tensor]:
    """Verify pending drafts as one block.

    Crosses the link: drafts and their laws up; the count and one token down. Exact: the accepted
    drafts, the next token, and whatever the target says after it have the target's joint law. On
    average no fewer drafts stand than token by token; a block of one is the same.

    Parameters
    ----------
    draft_laws, target_laws, drafts, uniforms
        As in `tokenwise_verify`.

    Returns
    -------
    accepted : Tensor of int64 [rows]
        How many drafts stand, 0 to block.
    next_tokens : Tensor of int64 [rows]
        The token after them.
    """
    return block_outcomes(draft_laws, target_laws, drafts).sample(uniforms)
