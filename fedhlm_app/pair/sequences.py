"""Articles as token sequences, and sequences as batches of like length.

A sequence is ``bos, text (at most 92 tokens), topic, label, eos``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers.trainer_pt_utils import LengthGroupedSampler

from fedhlm_app.data.items import Items
from fedhlm_app.models.vocabulary import label_tokens, topic_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Batch:
    """Right-padded sequences.

    Attributes
    ----------
    tokens : Tensor
        int64 [rows, length].
    mask : Tensor
        bool [rows, length], True where there is a token.
    label_positions : Tensor
        int64 [rows], where the label token stands.
    """

    tokens: torch.Tensor
    mask: torch.Tensor
    label_positions: torch.Tensor


def encode_articles(
    items: Items, tokenizer: PreTrainedTokenizerBase, text_tokens: int = 92
) -> list[np.ndarray]:
    """Turn every item into its token sequence.

    Parameters
    ----------
    items : Items
        Texts and labels.
    tokenizer : PreTrainedTokenizerBase
        Any tokenizer; a missing bos or eos token is left out.
    text_tokens : int
        Most tokens of text.

    Returns
    -------
    list of ndarray
        int32 sequences.
    """
    answers = list(label_tokens(tokenizer, items.label_names).values())
    topic = topic_tokens(tokenizer)
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    encoded = tokenizer(items.texts(), add_special_tokens=False)["input_ids"]
    return [
        np.asarray([*start, *text[:text_tokens], *topic, answers[label], *end], dtype=np.int32)
        for text, label in zip(encoded, items.labels(), strict=True)
    ]


def batch_of(sequences: Sequence[np.ndarray], pad: int = 0, after_label: int = 1) -> Batch:
    """Pad sequences on the right to one tensor.

    Parameters
    ----------
    sequences : sequence of ndarray
        At least one.
    pad : int
        Token id that fills up.
    after_label : int
        Tokens that follow the label token (1 with an eos, else 0).
    """
    lengths = np.array([len(sequence) for sequence in sequences])
    tokens = np.full((len(sequences), lengths.max()), pad, dtype=np.int64)
    for row, sequence in enumerate(sequences):
        tokens[row, : len(sequence)] = sequence
    mask = np.arange(tokens.shape[1])[None, :] < lengths[:, None]
    return Batch(
        torch.from_numpy(tokens),
        torch.from_numpy(mask),
        torch.from_numpy(lengths - 1 - after_label),
    )


def batches_by_length(lengths: Sequence[int], batch: int) -> list[np.ndarray]:
    """Give row numbers in batches of neighbouring length, shortest first."""
    order = np.argsort(np.asarray(lengths), kind="stable")
    return [order[start : start + batch] for start in range(0, len(order), batch)]


class OrderByLength(LengthGroupedSampler):
    """Rows in an order whose batches are of like length, a new one each epoch.

    The order depends on ``seed`` and the epoch alone, so a resumed training goes on with the very
    batch that an uninterrupted one would see.

    Parameters
    ----------
    lengths : sequence of int
        Tokens of each sequence.
    batch : int
        Sequences a batch.
    seed : int
        0 or more.
    """

    def __init__(self, lengths: Sequence[int], batch: int, seed: int) -> None:
        super().__init__(batch, lengths=list(lengths), generator=torch.Generator())
        self._seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Draw the order of this epoch, counted from 0."""
        (drawn,) = np.random.SeedSequence([self._seed, epoch]).generate_state(1, np.uint64)
        self.generator.manual_seed(int(drawn) >> 1)
