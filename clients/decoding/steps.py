"""A device's small model behind one interface: what a step of it says, and texts that it reads.

Nothing here needs PyTorch.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from hlm.arrays import Array, BoolArray, IntArray


@dataclass
class Step:
    """What the model says about the next token of every row.

    Attributes
    ----------
    logits : Array
        float32 [rows, vocab].
    hidden : Array or None
        float32 [rows, size], the last hidden state; None unless asked for.
    """

    logits: Array
    hidden: Array | None

    def select(self, rows: IntArray) -> Step:
        """The same of some rows (int64, increasing)."""
        if len(rows) == len(self.logits):
            return self
        return Step(self.logits[rows], None if self.hidden is None else self.hidden[rows])

    def merged(self, other: Step, rows: BoolArray) -> Step:
        """The same with those rows (bool [rows]) of another step."""
        hidden = None
        if self.hidden is not None and other.hidden is not None:
            hidden = _merged(self.hidden, other.hidden, rows)
        return Step(_merged(self.logits, other.logits, rows), hidden)


def _merged(old: Array, new: Array, rows: BoolArray) -> Array:
    if isinstance(old, np.ndarray):
        return np.where(rows[:, None], new, old)
    import torch

    return torch.where(torch.from_numpy(rows)[:, None], new, old)


def check_prompts(prompts: Sequence[IntArray]) -> None:
    """ValueError when there is no prompt, or an empty one."""
    if not prompts or min(len(prompt) for prompt in prompts) == 0:
        raise ValueError("prompts: at least one prompt, each of at least one token, is needed")


def left_padded(prompts: Sequence[IntArray]) -> tuple[IntArray, NDArray[np.bool_], IntArray]:
    """Prompts as one array: tokens, where there are any, and their positions, all [rows, longest].

    Raises
    ------
    ValueError
        When there is no prompt, or an empty one.
    """
    check_prompts(prompts)
    longest = max(len(prompt) for prompt in prompts)
    tokens = np.zeros((len(prompts), longest), np.int64)
    mask = np.zeros((len(prompts), longest), np.bool_)
    for row, prompt in enumerate(prompts):
        tokens[row, longest - len(prompt) :] = prompt
        mask[row, longest - len(prompt) :] = True
    return tokens, mask, np.maximum(mask.cumsum(1) - 1, 0)


def shortened(lengths: IntArray, counts: IntArray) -> IntArray:
    """Lengths int64 [rows] of texts that lose so many tokens each.

    Raises
    ------
    ValueError
        When a count is negative, or a text would have no token left.
    """
    if (counts < 0).any() or (counts >= lengths).any():
        raise ValueError(
            f"counts = {counts.tolist()}: must be from 0 and below the lengths {lengths.tolist()}"
        )
    return lengths - counts


class Decoder(Protocol):
    """A batch of texts, one token each per step; see `LockstepDecoder`."""

    def start(self) -> Step:
        """Read the prompts."""
        ...

    def step(self, tokens: IntArray) -> Step:
        """Append one token to every row."""
        ...

    def keep_rows(self, rows: IntArray) -> None:
        """Drop every row but these."""
        ...


class ShrinkingDecoder(Decoder, Protocol):
    """One whose texts can shrink again; see `LockstepDecoder`."""

    lengths: IntArray

    def read(self, tokens: IntArray, counts: IntArray) -> Step:
        """Append a few tokens to each row."""
        ...

    def take_back(self, counts: IntArray) -> None:
        """Forget the last tokens of each row."""
        ...


class Runtime(ABC):
    """A small model that runs without PyTorch: its steps are numpy arrays, without hidden states.

    Parameters
    ----------
    file : Path
        With `config.json`, and perhaps `generation_config.json`, in its folder.

    Attributes
    ----------
    threads : int
        Processor threads of models that are loaded from now on, >= 1.
    vocab : int
        Token ids that it has logits for.
    context : int
        Longest text that it reads, in tokens.
    end_tokens : frozenset of int
        Tokens that end a text.
    """

    threads: ClassVar[int] = 1

    def __init__(self, file: Path) -> None:
        config: dict[str, Any] = {}
        for name in ("config.json", "generation_config.json"):
            if (found := file.with_name(name)).is_file():
                config |= json.loads(found.read_text("utf-8"))
        config |= config.get("text_config", {})
        self.vocab = int(config["vocab_size"])
        self.context = int(config["max_position_embeddings"])
        ends = config.get("eos_token_id")
        self.end_tokens: frozenset[int] = frozenset(ends if isinstance(ends, list) else [ends]) - {
            None
        }

    @abstractmethod
    def decoder(self, prompts: Sequence[IntArray]) -> ShrinkingDecoder:
        """Begin to read texts (int64 [length_i], at least one token each)."""
