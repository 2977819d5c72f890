"""Attention over key-value slots for texts that are packed without padding.

Nearly all the work of a model is per token and does not care whose token it is. So the new tokens
of all sessions go through it as one row, and only attention, a small part of the cost, is done
session by session, on queries padded to the longest.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from servers.engine.slots import Placement

NAME = "sdpa_slots"
"""What the implementation is called in a model's configuration."""

MOST_SCORES = 1 << 22
"""Scores that are held at once (16 MB); beyond, fused attention, which holds none."""

_active = threading.local()


@contextmanager
def packed(placement: Placement) -> Iterator[None]:
    """Within it, this thread's models with attention `NAME` read packed tokens."""
    _active.placement = placement
    try:
        yield
    finally:
        _active.placement = None


def slot_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Scaled dot-product attention, on packed queries if the engine says so.

    Parameters
    ----------
    module : torch.nn.Module
        The attention layer.
    query : torch.Tensor
        [1, heads, tokens, size] of all sessions' new tokens.
    key, value : torch.Tensor
        [sessions, key heads, length, size], whole slots.
    attention_mask : torch.Tensor
        [sessions, 1, longest, length]: bool, True where a query sees a key, or float, what is added
        to its scores (then `attention_of_few` does the work while it is small).
    **kwargs
        As for Transformers' `sdpa_attention_forward`.

    Returns
    -------
    torch.Tensor
        [1, tokens, heads, size].
    """
    placement: Placement | None = getattr(_active, "placement", None)
    if placement is None:
        plain: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, **kwargs
        )
        return plain
    tokens = query[0].transpose(0, 1)  # [tokens, heads, size]
    rows, offsets, longest = placement.rows, placement.offsets, placement.longest
    if longest == 1:
        queries = tokens.unsqueeze(2)
    else:
        queries = tokens.new_zeros(len(placement.slots), longest, *tokens.shape[1:])
        queries[rows, offsets] = tokens
        queries = queries.transpose(1, 2)
    scores = queries.shape[1] * key.shape[2] * queries.shape[0] * longest
    is_few = scores <= MOST_SCORES
    if is_few and attention_mask is not None and attention_mask.is_floating_point():
        bias = bias_of_heads(attention_mask, queries.shape[1], key.shape[1])
        found = attention_of_few(queries, key, value, bias, kwargs.get("scaling"))
    else:
        kwargs["is_causal"] = False
        found, _ = sdpa_attention_forward(module, queries, key, value, attention_mask, **kwargs)
    # [sessions, longest, heads, size] back to one row of tokens
    return (found[:, 0] if longest == 1 else found[rows, offsets]).unsqueeze(0), None


def attention_of_few(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    bias: torch.Tensor,
    scaling: float | None,
) -> torch.Tensor:
    """Attention of few queries as two batched products, on a processor faster than fused.

    Parameters
    ----------
    queries : torch.Tensor
        [sessions, heads, longest, size].
    keys, values : torch.Tensor
        [sessions, key heads, length, size]; `heads` is a multiple of `key heads`.
    bias : torch.Tensor
        Added to the scores, from `bias_of_heads`.
    scaling : float or None
        Factor of the scores; 1 / sqrt(size) by default.

    Returns
    -------
    torch.Tensor
        [sessions, longest, heads, size].
    """
    sessions, heads, longest, size = queries.shape
    groups, length = keys.shape[1], keys.shape[2]
    # Queries of heads that share a key head are queries of one head, just more of them.
    flat = queries.reshape(sessions * groups, heads // groups * longest, size)
    factor = size**-0.5 if scaling is None else scaling
    scores = torch.baddbmm(
        bias, flat, keys.reshape(sessions * groups, length, size).transpose(1, 2), alpha=factor
    )
    found = torch.bmm(scores.softmax(-1), values.reshape(sessions * groups, length, size))
    return found.view(sessions, heads, longest, size).transpose(1, 2)


def bias_of_heads(mask: torch.Tensor, heads: int, groups: int) -> torch.Tensor:
    """A mask as `attention_of_few` adds it: the same for all heads.

    Parameters
    ----------
    mask : torch.Tensor
        [sessions, 1, longest, length], 0 or -inf.
    heads, groups : int
        Heads of queries, and of keys.

    Returns
    -------
    torch.Tensor
        [sessions * groups, heads / groups * longest, length].
    """
    sessions, _, longest, length = mask.shape
    shape = (sessions * groups, heads // groups * longest, length)
    return mask.expand(sessions, heads, longest, length).reshape(shape)


AttentionInterface.register(NAME, slot_attention)
# Outside the engine the model must get the masks it would get with "sdpa".
AttentionMaskInterface.register(NAME, sdpa_mask)
