"""Between tensors and rows: claims and verdicts of `hlm.verification` as fields of the wire."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from hlm.verification.interface import UNDECIDED, Claim, Verdict
from hlm.wire.messages import Row, RowReply

__all__ = ["claim_fields", "claim_of", "reply_fields", "verdict_of"]


def claim_fields(claim: Claim, index: int) -> dict[str, Any]:
    """What one row of a batch of claims puts into a wire `Row` besides its draft."""
    fields: dict[str, Any] = {}
    if claim.weight is not None:
        fields["weight"] = int(claim.weight[index])
    if claim.support is not None and claim.weights is not None and claim.counts is not None:
        count = int(claim.counts[index])
        order = claim.support[index, :count].argsort()
        fields["support"] = claim.support[index, :count][order].numpy()
        fields["weights"] = claim.weights[index, :count][order].numpy()
    elif claim.weights is not None:
        fields["weights"] = claim.weights[index].numpy()
    return fields


def claim_of(rows: Sequence[Row]) -> Claim:
    """The batch of claims that wire rows of one request make.

    Parameters
    ----------
    rows : sequence of Row
        All with a draft, and of one shape.
    """
    tokens = torch.tensor([row.draft for row in rows], dtype=torch.int64)
    if rows[0].weight is not None:
        weight = torch.tensor([row.weight for row in rows], dtype=torch.int64)
        return Claim(tokens, weight=weight)
    if rows[0].support is not None:
        counts = [0 if row.support is None else len(row.support) for row in rows]
        support = np.full((len(rows), max(1, *counts)), -1, np.int64)
        weights = np.zeros_like(support)
        for line, row in enumerate(rows):
            if row.support is not None and row.weights is not None:
                support[line, : counts[line]] = row.support
                weights[line, : counts[line]] = row.weights
        return Claim(
            tokens,
            support=torch.from_numpy(support),
            weights=torch.from_numpy(weights),
            counts=torch.tensor(counts, dtype=torch.int64),
        )
    if rows[0].weights is not None:
        stacked = np.stack([np.asarray(row.weights, np.int64) for row in rows])
        return Claim(tokens, weights=torch.from_numpy(stacked))
    return Claim(tokens)


def reply_fields(verdict: Verdict, index: int) -> dict[str, Any]:
    """What one row of a batch of verdicts puts into a wire `RowReply`."""
    fields: dict[str, Any] = {
        "accepted": bool(verdict.accepted[index]),
        "token": int(verdict.tokens[index]),
    }
    if fields["token"] != UNDECIDED:
        return fields
    if verdict.target_weights is not None:
        support = verdict.target_weights[index].nonzero()[:, 0]
        fields["target_support"] = support.cpu().numpy()
        fields["target_weights"] = verdict.target_weights[index, support].cpu().numpy()
    return fields


def verdict_of(replies: Sequence[RowReply], vocab: int) -> Verdict:
    """The batch of verdicts that wire replies give."""
    rows = len(replies)
    target: torch.Tensor | None = None
    for line, reply in enumerate(replies):
        if reply.target_support is not None and reply.target_weights is not None:
            if target is None:
                target = torch.zeros(rows, vocab, dtype=torch.int64)
            target[line, torch.from_numpy(reply.target_support)] = torch.from_numpy(
                reply.target_weights.astype(np.int64)
            )
    return Verdict(
        accepted=torch.tensor([reply.accepted for reply in replies]),
        tokens=torch.tensor([reply.token for reply in replies], dtype=torch.int64),
        target_weights=target,
    )
