"""A small model in llama.cpp, by llama-cpp-python, for devices that cannot hold PyTorch."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from weakref import finalize

import numpy as np

from clients.decoding.steps import Runtime, Step, check_prompts, shortened
from hlm.arrays import IntArray

_AT_ONCE = 512
"""Most tokens that are given to llama.cpp at once."""


class LlamaCppModel(Runtime):
    """A model in one GGUF file, see `Runtime`.

    Parameters
    ----------
    file : Path
        With `config.json` in its folder.
    longest : int
        Tokens that each text has room for.

    Raises
    ------
    ValueError
        When the file cannot be read, or its model cannot take tokens back.
    """

    def __init__(self, file: Path, longest: int) -> None:
        import llama_cpp

        super().__init__(file)
        self.context = min(self.context, longest)
        # It writes all that it does to standard error.
        logging.getLogger("llama-cpp-python").setLevel(logging.ERROR)
        self.bindings: Any = llama_cpp
        parameters = llama_cpp.llama_model_default_params()
        self.model = llama_cpp.llama_model_load_from_file(str(file).encode(), parameters)
        if not self.model:
            raise ValueError(f"model '{file}' cannot be read by llama.cpp")
        if llama_cpp.llama_model_is_recurrent(self.model) or llama_cpp.llama_model_is_hybrid(
            self.model
        ):
            raise ValueError(f"model '{file}': has a state from which no token can be taken back")
        vocab = llama_cpp.llama_model_get_vocab(self.model)
        found = llama_cpp.llama_vocab_n_tokens(vocab)
        while found > self.vocab and self._is_padding(vocab, found - 1):
            found -= 1
        if found != self.vocab:
            raise ValueError(f"model '{file}': has {found} tokens, its config.json {self.vocab}")

    def _is_padding(self, vocab: Any, token: int) -> bool:
        """Whether a token was made up for a row that none has."""
        attributes = self.bindings.llama_vocab_get_attr(vocab, token)
        text: bytes = self.bindings.llama_vocab_get_text(vocab, token)
        return bool(attributes & self.bindings.LLAMA_TOKEN_ATTR_UNUSED) and text.startswith(b"[PAD")

    def decoder(self, prompts: Sequence[IntArray]) -> LlamaCppDecoder:
        """Begin to read texts; see `Runtime.decoder`."""
        return LlamaCppDecoder(self, prompts)


class LlamaCppDecoder:
    """Texts in lockstep that grow and shrink, as `clients.decoding.slm.LockstepDecoder`.

    Each text is a sequence of one llama.cpp context, which goes with this object.

    Parameters
    ----------
    model : LlamaCppModel
        Reads them.
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

    def __init__(self, model: LlamaCppModel, prompts: Sequence[IntArray]) -> None:
        check_prompts(prompts)
        self._model, self._prompts = model, prompts
        self._bindings = bindings = model.bindings
        self.lengths = np.zeros(len(prompts), np.int64)
        self._sequences = np.arange(len(prompts))
        parameters = bindings.llama_context_default_params()
        parameters.n_seq_max = len(prompts)
        # llama.cpp makes room in units of 256 tokens.
        parameters.n_ctx = len(prompts) * -(-model.context // 256) * 256
        parameters.n_batch = parameters.n_ubatch = _AT_ONCE
        parameters.n_threads = parameters.n_threads_batch = model.threads
        self._context = bindings.llama_init_from_model(model.model, parameters)
        if not self._context:
            raise MemoryError(f"no room for {len(prompts)} texts of {model.context} tokens")
        finalize(self, bindings.llama_free, self._context)
        self._memory = bindings.llama_get_memory(self._context)
        self._batch = bindings.llama_batch_init(_AT_ONCE, 0, 1)
        finalize(self, bindings.llama_batch_free, self._batch)

    def start(self) -> Step:
        """Read the prompts; what comes after each of them."""
        return self._read(self._prompts)

    def step(self, tokens: IntArray) -> Step:
        """Append one token to every row (int64 [rows]); what comes next."""
        return self._read(list(tokens[:, None]))

    def read(self, tokens: IntArray, counts: IntArray) -> Step:
        """Append a few tokens to each row, as `LockstepDecoder.read`; what comes next."""
        return self._read([row[len(row) - n :] for row, n in zip(tokens, counts, strict=True)])

    def take_back(self, counts: IntArray) -> None:
        """Forget the last tokens of each row, as `LockstepDecoder.take_back`."""
        self.lengths = shortened(self.lengths, counts)
        for sequence, length in zip(self._sequences.tolist(), self.lengths.tolist(), strict=True):
            self._forget(sequence, length)

    def keep_rows(self, rows: IntArray) -> None:
        """Drop every row but these (int64, in order)."""
        for sequence in np.delete(self._sequences, rows).tolist():
            self._forget(sequence, 0)
        self._sequences, self.lengths = self._sequences[rows], self.lengths[rows]

    def _forget(self, sequence: int, length: int) -> None:
        """Leave so many tokens of a text."""
        self._bindings.llama_memory_seq_rm(self._memory, sequence, length, -1)

    def _read(self, tokens: Sequence[IntArray]) -> Step:
        """Append tokens to texts, in parts that llama.cpp takes at once."""
        counts = np.array([len(one) for one in tokens])
        rows = np.repeat(np.arange(len(tokens)), counts)
        positions = np.concatenate(
            [np.arange(n, n + m) for n, m in zip(self.lengths, counts, strict=True)]
        )
        self.lengths = self.lengths + counts
        found = np.concatenate(tokens)
        last = positions == self.lengths[rows] - 1
        logits = np.zeros((len(tokens), self._model.vocab), np.float32)
        for begin in range(0, len(found), _AT_ONCE):
            part = slice(begin, begin + _AT_ONCE)
            self._decode(found[part], positions[part], self._sequences[rows[part]], last[part])
            for at in np.flatnonzero(last[part]).tolist():
                told = self._bindings.llama_get_logits_ith(self._context, at)
                logits[rows[begin + at]] = np.ctypeslib.as_array(told, (self._model.vocab,))
        return Step(logits, None)

    def _decode(
        self, tokens: IntArray, positions: IntArray, sequences: IntArray, wanted: Any
    ) -> None:
        batch, count = self._batch, len(tokens)
        batch.n_tokens = count
        for field, values in (
            (batch.token, tokens),
            (batch.pos, positions),
            (batch.n_seq_id, np.ones(count)),
            (batch.logits, wanted),
        ):
            np.ctypeslib.as_array(field, (count,))[:] = values
        for at, sequence in enumerate(sequences.tolist()):
            batch.seq_id[at][0] = sequence
        if status := self._bindings.llama_decode(self._context, batch):
            raise ValueError(
                f"llama.cpp cannot read {count} tokens more (status {status}); a text has room "
                f"for {self._model.context}"
            )
