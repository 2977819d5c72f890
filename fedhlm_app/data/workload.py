"""From items to the texts a device routes: prompts, given texts, or articles to label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from clients.records import TextBatch, TokenRecords
from fedhlm_app.data.items import Items
from fedhlm_app.data.prompts import TEXT_TOKENS, Workload, prompts
from hlm.arrays import IntArray


@dataclass(frozen=True)
class WorkloadBatch:
    """Texts for one call of the router.

    Attributes
    ----------
    texts : TextBatch
        Prompts, or whole texts in the `score` workload.
    new_tokens : int
        Most tokens per text; 0 in the `score` workload.
    first : numpy.ndarray
        int64 [rows], the first routed position of each text.
    answers : numpy.ndarray or None
        int64 [rows, steps], the token that is right at each place, -1 where there is none.
    """

    texts: TextBatch
    new_tokens: int
    first: IntArray
    answers: IntArray | None


@dataclass(frozen=True)
class BatchMaker:
    """Makes work of one kind.

    Attributes
    ----------
    items : Items
        Texts and labels.
    tokenizer : transformers.PreTrainedTokenizerBase
        The pair's tokenizer.
    workload : str
        ``generate``, ``score`` or ``classify``.
    prompt_tokens, tokens_per_prompt : int
        Longest prompt (in `score`: context before the first routed token), and most routed
        tokens of one text. Of a chat's answer the first tokens are routed.
    """

    items: Items
    tokenizer: PreTrainedTokenizerBase
    workload: Workload
    prompt_tokens: int
    tokens_per_prompt: int

    @property
    def tokens_each(self) -> int:
        """Most routed tokens of one text."""
        return 1 if self.workload == "classify" else self.tokens_per_prompt

    def make(
        self, rows: Sequence[int] | IntArray, sessions: IntArray, tokens_each: int | None = None
    ) -> WorkloadBatch:
        """Work on some items.

        Parameters
        ----------
        rows : sequence of int
            Which items.
        sessions : numpy.ndarray
            int64 [rows], a new number for each text.
        tokens_each : int, optional
            Most routed tokens of one text; by default `tokens_each`.
        """
        most = self.tokens_each if tokens_each is None else tokens_each
        scored = self.workload == "score"
        made = prompts(
            self.items,
            self.tokenizer,
            rows,
            self.workload,
            self.prompt_tokens,
            self.prompt_tokens + most if scored else TEXT_TOKENS,
        )
        tokens = [prompt.tokens for prompt in made]
        if not scored:
            batch = TextBatch(tokens, sessions, room=most)
            answers = None
            if self.workload == "classify":
                answers = np.array([[prompt.answer] for prompt in made], np.int64)
            return WorkloadBatch(batch, most, batch.lengths.copy(), answers)
        lengths = np.array([len(text) for text in tokens], np.int64)
        if self.items.chat:
            first = np.array([prompt.given for prompt in made], np.int64)
            ends = lengths
        else:
            first, ends = scored_places(lengths, self.prompt_tokens, most)
        tokens = [text[:end] for text, end in zip(tokens, ends, strict=True)]
        batch = TextBatch(tokens, sessions, given=True)
        answers = np.full((len(tokens), most), -1, np.int64)
        for row, text in enumerate(tokens):
            answers[row, : len(text) - first[row]] = text[first[row] :]
        return WorkloadBatch(batch, 0, first, answers)


def scored_places(
    lengths: IntArray, prompt_tokens: int, most: int | IntArray
) -> tuple[IntArray, IntArray]:
    """Where routing begins in each text of the `score` workload, and where it ends: int64 [n] both.

    Parameters
    ----------
    lengths : numpy.ndarray
        int64 [n], tokens of each text after its cut to `prompt_tokens` and `most`, the first token,
        which nobody has to foretell, included.
    prompt_tokens, most : int
        Context before the first routed token, and most routed tokens.
    """
    # A text no longer than the context still has a second half to score.
    first = np.minimum(prompt_tokens + 1, np.maximum(1, lengths // 2))
    return first, np.minimum(lengths, first + most)


def correct(work: WorkloadBatch, records: TokenRecords) -> tuple[int, int]:
    """Routed tokens that are right, and routed tokens for which it is known what is right."""
    if work.answers is None:
        return 0, 0
    answers = work.answers[:, : records.token.shape[1]]
    known = records.present & (answers >= 0)
    return int((known & (records.token == answers)).sum()), int(known.sum())
