"""A small model that can take tokens back, for drafting ahead of a verification.

Several rows may take back different numbers of tokens. What all of them take back is cut off the
key-value cache; the rest is masked, which costs room until more can be cut. One row alone is
always cut exactly, so going back and on is the same as never having gone ahead.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel

from clients.decoding.slm import IntArray, LockstepDecoder, Step


class RollbackDecoder(LockstepDecoder):
    """A batch of texts that grow, and shrink when drafts are rejected.

    Parameters
    ----------
    model, prompts, hidden
        As for `LockstepDecoder`.

    Attributes
    ----------
    lengths : numpy.ndarray
        int64 [rows], tokens read of each text.
    """

    def __init__(
        self, model: PreTrainedModel, prompts: Sequence[IntArray], hidden: bool = False
    ) -> None:
        super().__init__(model, prompts, hidden)
        # Made from the configuration, layers with a sliding window forget what a rollback needs.
        self._cache = DynamicCache()
        self.lengths = np.array([len(prompt) for prompt in prompts], np.int64)

    def step(self, tokens: IntArray) -> Step:
        """Append one token to every row (int64 [rows]); the distribution of the next."""
        return self.read(tokens[:, None], np.ones(len(tokens), np.int64))

    @torch.inference_mode()
    def read(self, tokens: IntArray, counts: IntArray) -> Step:
        """Append a few tokens to each row; the distribution of the next.

        Parameters
        ----------
        tokens : numpy.ndarray
            int64 [rows, n], n >= 1; the last `counts` of each row.
        counts : numpy.ndarray
            int64 [rows], in 0 .. n; the distribution of a row that appends nothing means nothing.
        """
        width = tokens.shape[1]
        new = torch.from_numpy(np.ascontiguousarray(tokens)).to(self.model.device)
        missing = width - torch.from_numpy(counts).to(self.model.device)[:, None]
        columns = torch.arange(width, device=self.model.device)
        present = (columns >= missing).to(self._mask.dtype)
        self._padded = self._padded or bool((present == 0).any())
        self._mask = torch.cat([self._mask, present], dim=1)
        self._positions = (self._positions[:, -1:] + present.cumsum(1)).clamp(min=0)
        self.lengths = self.lengths + counts
        return self._run(new, self._positions)

    def take_back(self, counts: IntArray) -> None:
        """Forget the last tokens of each row.

        Parameters
        ----------
        counts : numpy.ndarray
            int64 [rows], >= 0; at least one token of each text has to stay.

        Raises
        ------
        ValueError
            When a text would have no token left.
        """
        if (counts < 0).any() or (counts >= self.lengths).any():
            raise ValueError(
                f"counts = {counts.tolist()}: must be from 0 and below the lengths "
                f"{self.lengths.tolist()}"
            )
        self.lengths = self.lengths - counts
        back = torch.from_numpy(counts).to(self.model.device)[:, None]
        self._positions = self._positions[:, -1:] - back
        # Masked columns in between do not count: what goes is the last present ones.
        from_end = self._mask.flip(1).cumsum(1).flip(1)
        self._mask = self._mask * (from_end > back)
        used = np.flatnonzero(self._mask.any(dim=0).cpu().numpy())
        columns = int(used[-1]) + 1
        if columns < self._mask.shape[1]:
            self._cache.crop(columns - self._mask.shape[1])
            self._mask = self._mask[:, :columns]
        self._padded = bool((self._mask == 0).any())

    def keep_rows(self, rows: IntArray) -> None:
        """Drop every row but these (int64, in order)."""
        super().keep_rows(rows)
        self.lengths = self.lengths[rows]
