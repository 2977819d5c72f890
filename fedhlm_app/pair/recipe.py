"""The numbers of the training recipe, checked where they are set."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass


def _require(holds: bool, field: str, value: object, allowed: str) -> None:
    """Refuse a value, naming field, value and what is allowed."""
    if not holds:
        raise ValueError(f"{field} = {value!r} is not allowed; {allowed}")


@dataclass(frozen=True)
class ModelShape:
    """Size of one Llama-architecture model with tied embeddings.

    Attributes
    ----------
    hidden, layers, heads, intermediate : int
        Width, depth, attention heads (each hidden / heads wide, an even number) and width of
        the gated feed-forward layer.
    """

    hidden: int
    layers: int
    heads: int
    intermediate: int

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            _require(value >= 1, field.name, value, "it must be at least 1")
        even = self.hidden % self.heads == 0 and (self.hidden // self.heads) % 2 == 0
        _require(even, "hidden", self.hidden, f"it must be an even multiple of heads {self.heads}")


SLM_SHAPE = ModelShape(hidden=128, layers=2, heads=4, intermediate=320)
LLM_SHAPE = ModelShape(hidden=288, layers=6, heads=6, intermediate=768)


@dataclass(frozen=True)
class StageRecipe:
    """How one model is optimised.

    Attributes
    ----------
    steps : int
        Optimiser steps; 0 leaves the stage out.
    peak_rate : float
        Learning rate after warm-up, positive.
    warmup : int
        Steps of linear warm-up.
    constant_until : float
        Share of the steps after which the rate falls linearly, in [0, 1].
    final_factor : float
        The last rate as a share of the peak, in [0, 1].
    batch : int
        Articles an optimiser's step.
    distillation : float
        Weight of KL(LLM || model) in the loss, in [0, 1]; the rest is cross entropy.
    """

    steps: int
    peak_rate: float
    warmup: int = 100
    constant_until: float = 0.6
    final_factor: float = 0.02
    batch: int = 64
    distillation: float = 0.0

    def __post_init__(self) -> None:
        _require(self.steps >= 0, "steps", self.steps, "it must be 0 or more")
        _require(self.peak_rate > 0, "peak_rate", self.peak_rate, "it must be positive")
        _require(self.warmup >= 0, "warmup", self.warmup, "it must be 0 or more")
        _require(self.batch >= 1, "batch", self.batch, "it must be at least 1")
        for name in ("constant_until", "final_factor", "distillation"):
            share = getattr(self, name)
            _require(0.0 <= share <= 1.0, name, share, "it must lie in [0, 1]")


@dataclass(frozen=True)
class PairTraining:
    """Settings of ``fedhlm pair train``.

    Attributes
    ----------
    dataset, text_column, label_column : str
        As for :func:`fedhlm_app.data.load_items`.
    out : str
        Folder for tokenizer, checkpoints, both models and the model card.
    seed : int
        Of initial weights and of the order of the articles, 0 or more.
    vocabulary : int
        Tokens of the tokenizer, special ones included; at least 300 (256 bytes and specials).
    text_tokens : int
        Most text tokens of a sequence.
    slm_shape, llm_shape : ModelShape
        Sizes.
    llm, slm, distil : StageRecipe
        The three optimised stages, in this order.
    checkpoint_every : int
        Steps between checkpoints.
    threads : int
        CPU threads of PyTorch; 0 leaves its own choice.
    bfloat16 : bool
        Whether matrix products run in bfloat16.
    cpu : bool
        Train on the CPU even where PyTorch finds an accelerator.
    accumulate : int
        Parts, one after the other, that a step's batch is cut into, so that less memory is needed.
    report_to : str
        Tracker that Transformers knows, such as ``"tensorboard"``; empty for none.
    validation_rows : int
        Rows of the validation split to measure on; 0 for all.
    """

    dataset: str
    out: str
    text_column: str = ""
    label_column: str = ""
    seed: int = 1
    vocabulary: int = 4096
    text_tokens: int = 92
    slm_shape: ModelShape = SLM_SHAPE
    llm_shape: ModelShape = LLM_SHAPE
    llm: StageRecipe = StageRecipe(steps=5933, peak_rate=1.5e-3)
    slm: StageRecipe = StageRecipe(steps=2115, peak_rate=3e-3)
    distil: StageRecipe = StageRecipe(steps=2400, peak_rate=3e-3, distillation=0.8)
    checkpoint_every: int = 200
    threads: int = 0
    bfloat16: bool = True
    cpu: bool = False
    accumulate: int = 1
    report_to: str = ""
    validation_rows: int = 0

    def __post_init__(self) -> None:
        _require(self.seed >= 0, "seed", self.seed, "it must be 0 or more")
        _require(self.vocabulary >= 300, "vocabulary", self.vocabulary, "it must be at least 300")
        _require(self.text_tokens >= 2, "text_tokens", self.text_tokens, "it must be at least 2")
        _require(self.threads >= 0, "threads", self.threads, "it must be 0 or more")
        _require(
            self.checkpoint_every >= 1, "checkpoint_every", self.checkpoint_every, "at least 1"
        )
        for stage in (self.llm, self.slm, self.distil):
            parts = self.accumulate >= 1 and stage.batch % self.accumulate == 0
            _require(parts, "accumulate", self.accumulate, f"it must divide a batch, {stage.batch}")
        _require(
            self.validation_rows >= 0, "validation_rows", self.validation_rows, "it must be >= 0"
        )
