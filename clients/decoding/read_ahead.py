"""A small model that has read a few drafts further than its texts go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from clients.decoding.steps import Decoder, Runtime, ShrinkingDecoder, Step
from hlm.arrays import BoolArray, IntArray

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class ReadAhead:
    """A batch of texts that grow by a token each at a time, and drafts behind some of them.

    Drafts that the text takes up need not be read again; the others are taken back.

    Parameters
    ----------
    model : transformers.PreTrainedModel or Runtime
        The small model.
    prompts : sequence of numpy.ndarray
        int64 [length_i], at least one token each.
    hidden : bool
        Also return last hidden states.
    most : int
        Drafts that may be read behind a text, >= 0.

    Attributes
    ----------
    steps : list of Step
        What comes after each text, and behind 1 to `most` drafts.
    """

    def __init__(
        self,
        model: PreTrainedModel | Runtime,
        prompts: Sequence[IntArray],
        hidden: bool,
        most: int = 0,
    ) -> None:
        self._decoder: Decoder
        self._shrinking: ShrinkingDecoder
        if isinstance(model, Runtime):
            self._decoder = self._shrinking = model.decoder(prompts)
        else:
            from clients.decoding.ways import lockstep_decoder, rollback_decoder

            if most:
                self._decoder = self._shrinking = rollback_decoder(model, prompts, hidden)
            else:
                self._decoder = lockstep_decoder(model, prompts, hidden)
        self.steps = [self._decoder.start()]
        self._drafts = np.zeros((most, len(prompts)), np.int64)
        self._ahead = np.zeros(len(prompts), np.int64)

    @property
    def step(self) -> Step:
        """What comes after each text."""
        return self.steps[0]

    def behind(self, drafts: IntArray, depth: int, wanted: BoolArray) -> Step:
        """What comes behind `depth` drafts.

        Parameters
        ----------
        drafts : numpy.ndarray
            int64 [rows], the last of them; those before it were asked about earlier.
        depth : int
            From 1 to `most`.
        wanted : numpy.ndarray
            bool [rows]; what comes behind the others means nothing.
        """
        unread = wanted & (self._ahead < depth)
        if unread.any():
            found = self._shrinking.read(drafts[:, None], unread.astype(np.int64))
            self._put(depth, found, unread)
            self._drafts[depth - 1, unread] = drafts[unread]
            self._ahead[unread] = depth
        return self.steps[depth]

    def append(self, tokens: IntArray) -> None:
        """Let each text grow by its token, int64 [rows]."""
        ahead = self._ahead
        if not ahead.any():
            self.steps[0] = self._decoder.step(tokens)
            return
        read = (ahead > 0) & (self._drafts[0] == tokens)
        if (back := np.where(read, 0, ahead)).any():
            self._shrinking.take_back(back)
        for depth in range(1, int(ahead[read].max(initial=0)) + 1):
            self._put(depth - 1, self.steps[depth], read & (ahead >= depth))
        self._drafts = np.roll(self._drafts, -1, axis=0)
        self._ahead = np.where(read, ahead - 1, 0)
        if not read.all():
            self._put(0, self._shrinking.read(tokens[:, None], (~read).astype(np.int64)), ~read)

    def keep_rows(self, rows: IntArray) -> None:
        """Drop every row but these (int64, in order)."""
        self._decoder.keep_rows(rows)
        self._drafts, self._ahead = self._drafts[:, rows], self._ahead[rows]
        self.steps = [step.select(rows) for step in self.steps]

    def _put(self, depth: int, found: Step, rows: BoolArray) -> None:
        """Note what was found behind `depth` drafts of some rows."""
        if depth == len(self.steps):
            self.steps.append(found)
            return
        self.steps[depth] = self.steps[depth].merged(found, rows)
