"""Items as token sequences, and sequences as batches of like length.

Of an article it is ``bos, text (at most 92 tokens), topic, label, eos``, without topic and label
where it has none; of a chat its prompt and last answer, of which the answer is to foretell.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers.trainer_pt_utils import LengthGroupedSampler

from fedhlm_app.data.chats import check_answers, encoded
from fedhlm_app.data.items import Items
from fedhlm_app.models.sources import PairError
from fedhlm_app.models.vocabulary import label_tokens, topic_tokens
from hlm.reading.agreement import context_limit

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


logger = logging.getLogger(__name__)

_CHAT_TOKENS = 256


@dataclass(frozen=True)
class Example:
    """A sequence to learn from.

    Attributes
    ----------
    tokens : ndarray
        int32 [length].
    first : int
        The first token that is predicted, >= 1: those before it are given.
    """

    tokens: np.ndarray
    first: int = 1

    def __len__(self) -> int:
        """Give the number of tokens."""
        return len(self.tokens)


@dataclass(frozen=True)
class Batch:
    """Right-padded sequences.

    Attributes
    ----------
    tokens : Tensor
        int64 [rows, length].
    mask : Tensor
        bool [rows, length], True where there is a token.
    predicted : Tensor
        bool [rows, length], True where there is one that is predicted.
    label_positions : Tensor
        int64 [rows], where the label token stands.
    """

    tokens: torch.Tensor
    mask: torch.Tensor
    predicted: torch.Tensor
    label_positions: torch.Tensor


def chat_tokens(*models: PreTrainedModel) -> int:
    """Most tokens of a chat that some models learn from, or are measured on."""
    limits = (context_limit(model.config.get_text_config()) for model in models)
    return min(_CHAT_TOKENS, *limits)


def label_answers(items: Items, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens that answer with each label, in order.

    None of chats, of items without labels, and where two labels would be one token: what is learned
    from texts does not depend on them.
    """
    return [] if items.chat else list(_label_answers(items.label_names, tokenizer))


@lru_cache(maxsize=8)  # so that it warns once
def _label_answers(names: tuple[str, ...], tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    try:
        return tuple(label_tokens(tokenizer, names).values()) if names else ()
    except PairError as error:
        logger.warning("labels are left out: %s", error)
        return ()


def encode_items(
    items: Items,
    tokenizer: PreTrainedTokenizerBase,
    text_tokens: int = 92,
    longest_chat: int = _CHAT_TOKENS,
) -> list[Example]:
    """Turn every item into its token sequence.

    Parameters
    ----------
    items : Items
        Texts with labels or without, or chats.
    tokenizer : PreTrainedTokenizerBase
        Any tokenizer; a missing bos or eos token is left out.
    text_tokens : int
        Most tokens of a text.
    longest_chat : int
        Most tokens of a chat, >= 2; its prompt has at most half of them.

    Returns
    -------
    list of Example
        One an item; fewer where chats have an empty answer.
    """
    check_answers(items)
    made = encoded(items, tokenizer)
    if items.chat:
        half = longest_chat // 2
        chats = [(one.start[-half:], one.text) for one in made]
        return [
            Example(np.asarray([*start, *answer][:longest_chat], dtype=np.int32), len(start))
            for start, answer in chats
            if answer
        ]
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    topic = topic_tokens(tokenizer)
    asked = [[*topic, answer] for answer in label_answers(items, tokenizer)]
    asked = asked or [[] for _ in items.label_names or ("",)]
    return [
        Example(
            np.asarray([*one.start, *one.text[:text_tokens], *asked[label], *end], dtype=np.int32)
        )
        for one, label in zip(made, items.labels(), strict=True)
    ]


def batch_of(examples: Sequence[Example], pad: int = 0, after_label: int = 1) -> Batch:
    """Pad sequences on the right to one tensor.

    Parameters
    ----------
    examples : sequence of Example
        At least one.
    pad : int
        Token id that fills up.
    after_label : int
        Tokens that follow the label token (1 with an eos, else 0).
    """
    lengths = np.array([len(example) for example in examples])
    tokens = np.full((len(examples), lengths.max()), pad, dtype=np.int64)
    for row, example in enumerate(examples):
        tokens[row, : len(example)] = example.tokens
    places = np.arange(tokens.shape[1])[None, :]
    mask = places < lengths[:, None]
    first = np.array([example.first for example in examples])
    return Batch(
        torch.from_numpy(tokens),
        torch.from_numpy(mask),
        torch.from_numpy(mask & (places >= first[:, None])),
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
