"""A small model in ONNX Runtime, for devices that cannot hold PyTorch.

Inputs and outputs have the names that exporters of Transformers models give them: `input_ids`,
`attention_mask`, `position_ids` and `past_key_values.N.key` in, `logits` and `present.N.key` out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clients.decoding.steps import Runtime, Step, left_padded, shortened
from hlm.arrays import IntArray

PAST, PRESENT = "past_key_values", "present"
_INPUTS = {"input_ids", "attention_mask", "position_ids"}

Cache = dict[str, NDArray[np.float32]]
"""[rows, heads, tokens, size] by name of the input."""


class OnnxModel(Runtime):
    """A model in one file, see `Runtime`.

    Raises
    ------
    ValueError
        When the file cannot be read, or is no decoder with a key-value cache.
    """

    def __init__(self, file: Path) -> None:
        import onnxruntime

        super().__init__(file)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        try:
            session = onnxruntime.InferenceSession(
                str(file), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its own kinds, which share no other base
            raise ValueError(f"model '{file}' cannot be read: {error}") from None
        self._run = session.run
        self._outputs = [output.name for output in session.get_outputs()]
        inputs = {one.name: one.shape for one in session.get_inputs()}
        self._shapes = {name: shape for name, shape in inputs.items() if name.startswith(PAST)}
        # Models that count from the mask (ALiBi) have no positions.
        self._others = inputs.keys() - self._shapes.keys()
        if not self._shapes or self._others | {"position_ids"} != _INPUTS:
            raise ValueError(f"model '{file}': is no decoder with a key-value cache")

    def decoder(self, prompts: Sequence[IntArray]) -> OnnxDecoder:
        """Begin to read texts; see `Runtime.decoder`."""
        return OnnxDecoder(self, prompts)

    def no_past(self, rows: int) -> Cache:
        """A cache of `rows` texts without a token."""
        return {
            name: np.zeros((rows, heads, 0, size), np.float32)
            for name, (_, heads, _, size) in self._shapes.items()
        }

    def run(self, inputs: dict[str, Any]) -> tuple[NDArray[np.float32], Cache]:
        """Logits [rows, vocab] behind the last token of each row, and the longer cache."""
        known = {name: inputs[name] for name in (*self._others, *self._shapes)}
        found = dict(zip(self._outputs, self._run(self._outputs, known), strict=True))
        cache = {name: found[name.replace(PAST, PRESENT, 1)] for name in self._shapes}
        return found["logits"][:, -1], cache


class OnnxDecoder:
    """Texts in lockstep that grow and shrink, as `clients.decoding.slm.LockstepDecoder`.

    Parameters
    ----------
    model : OnnxModel
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

    def __init__(self, model: OnnxModel, prompts: Sequence[IntArray]) -> None:
        self._model, self._past = model, model.no_past(len(prompts))
        self._tokens, present, self._positions = left_padded(prompts)
        self._mask = present.astype(np.int64)
        self.lengths = present.sum(axis=1)

    def start(self) -> Step:
        """Read the prompts; what comes after each of them."""
        return self._run(self._tokens, self._positions)

    def step(self, tokens: IntArray) -> Step:
        """Append one token to every row (int64 [rows]); what comes next."""
        return self.read(tokens[:, None], np.ones(len(tokens), np.int64))

    def read(self, tokens: IntArray, counts: IntArray) -> Step:
        """Append a few tokens to each row, as `LockstepDecoder.read`; what comes next."""
        width = tokens.shape[1]
        present = (np.arange(width) >= width - counts[:, None]).astype(np.int64)
        self._mask = np.concatenate([self._mask, present], axis=1)
        positions = np.maximum(self.lengths[:, None] - 1 + present.cumsum(axis=1), 0)
        self.lengths = self.lengths + counts
        return self._run(tokens, positions)

    def take_back(self, counts: IntArray) -> None:
        """Forget the last tokens of each row, as `LockstepDecoder.take_back`."""
        self.lengths = shortened(self.lengths, counts)
        # Masked columns in between do not count: what goes is the last present ones.
        from_end = self._mask[:, ::-1].cumsum(axis=1)[:, ::-1]
        self._mask = self._mask * (from_end > counts[:, None])
        columns = int(np.flatnonzero(self._mask.any(axis=0))[-1]) + 1
        self._mask = self._mask[:, :columns]
        self._past = {name: one[:, :, :columns] for name, one in self._past.items()}

    def keep_rows(self, rows: IntArray) -> None:
        """Drop every row but these (int64, in order)."""
        self._past = {name: one[rows] for name, one in self._past.items()}
        self._mask, self.lengths = self._mask[rows], self.lengths[rows]

    def _run(self, tokens: IntArray, positions: IntArray) -> Step:
        inputs = {"input_ids": tokens, "attention_mask": self._mask, "position_ids": positions}
        inputs = {name: np.ascontiguousarray(one) for name, one in (inputs | self._past).items()}
        logits, self._past = self._model.run(inputs)
        return Step(logits, None)
