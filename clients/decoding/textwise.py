"""A device's decoder for models that lockstep does not suit: text by text, slow and right."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from clients.decoding.steps import Step, check_prompts, shortened
from hlm.arrays import IntArray
from hlm.reading.plain import Passage, PlainReading


class TextwiseDecoder:
    """Does what `LockstepDecoder` does, by one of the plain ways of reading.

    Parameters
    ----------
    reading : PlainReading
        How texts are read (`hlm.reading.plain`); used for this batch alone.
    prompts : sequence of numpy.ndarray
        int64 [length_i] token ids, each at least one token.

    Attributes
    ----------
    lengths : numpy.ndarray
        int64 [rows], tokens read of each text.

    Raises
    ------
    ValueError
        When there is no prompt, or an empty one.
    """

    def __init__(self, reading: PlainReading, prompts: Sequence[IntArray]) -> None:
        check_prompts(prompts)
        self._reading = reading
        self._texts = [np.asarray(prompt, np.int64) for prompt in prompts]
        self._keys = np.arange(len(prompts))
        self._read = np.zeros(len(prompts), np.int64)  # tokens the reading has seen, unchanged
        self.lengths = np.array([len(prompt) for prompt in prompts], np.int64)

    def start(self) -> Step:
        """Read the prompts; what comes after each."""
        return self._next()

    def step(self, tokens: IntArray) -> Step:
        """Append one token to every row (int64 [rows]); what comes after it."""
        return self.read(tokens[:, None], np.ones(len(tokens), np.int64))

    def read(self, tokens: IntArray, counts: IntArray) -> Step:
        """Append a few tokens to each row, as `LockstepDecoder.read`; what comes after them."""
        width = tokens.shape[1]
        self._texts = [
            np.concatenate([text, line[width - count :]])
            for text, line, count in zip(self._texts, tokens, counts, strict=True)
        ]
        self.lengths = self.lengths + counts
        return self._next()

    def take_back(self, counts: IntArray) -> None:
        """Forget the last tokens of each row, as `LockstepDecoder.take_back`."""
        self.lengths = shortened(self.lengths, counts)
        self._texts = [
            text[:length] for text, length in zip(self._texts, self.lengths, strict=True)
        ]
        self._read = np.minimum(self._read, self.lengths)

    def keep_rows(self, rows: IntArray) -> None:
        """Drop every row but these (int64, in order)."""
        self._texts = [self._texts[row] for row in rows]
        self._keys, self._read = self._keys[rows], self._read[rows]
        self.lengths = self.lengths[rows]

    def _next(self) -> Step:
        # The last token is fed again where nothing is new: predictions come out of feeding.
        first = np.minimum(self._read, self.lengths - 1)
        found = self._reading.read(
            [
                Passage(int(key), text, int(start), np.array([len(text)]))
                for key, text, start in zip(self._keys, self._texts, first, strict=True)
            ]
        )
        self._read = self.lengths.copy()
        hidden = [one.hidden for one in found if one.hidden is not None]
        return Step(torch.cat([one.logits for one in found]), torch.cat(hidden) if hidden else None)
