"""Transformers' `Trainer` with the loss of a stage: cross entropy, mixed with KL to the LLM."""

from __future__ import annotations

import copy
import time
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer, TrainerCallback

from fedhlm_app.pair.recipe import StageRecipe
from fedhlm_app.pair.sequences import OrderByLength
from fedhlm_app.pair.shared_head import SharedHead

IGNORED = -100
"""Label of what is not predicted: Transformers leaves it out of counts and losses."""


def token_losses(
    logits: torch.Tensor, targets: torch.Tensor, teacher: torch.Tensor | None, weight: float
) -> torch.Tensor:
    """Sum of the losses of predicted tokens.

    With p the LLM's distribution and q the model's, ``weight * KL(p || q) + (1 - weight) *
    -ln q_next``, up to the entropy of p, which no gradient sees: one cross entropy against the
    mixture ``weight * p + (1 - weight) * onehot(next)``. Of a next token that is none of the
    vocabulary (see :class:`fedhlm_app.pair.shared_head.SharedHead`) only the first part counts.

    Parameters
    ----------
    logits : Tensor
        float32 [tokens, vocabulary], the model's.
    targets : Tensor
        int64 [tokens], the next tokens; with an LLM also -1, for one without a logit.
    teacher : Tensor or None
        float32 [tokens, vocabulary], the LLM's logits; None for cross entropy alone.
    weight : float
        Share of the distillation, in [0, 1].

    Returns
    -------
    Tensor
        Scalar, nats.
    """
    if teacher is None:
        return nn.functional.cross_entropy(logits, targets, reduction="sum")
    mixture = teacher.softmax(dim=-1).mul_(weight)
    if weight < 1.0:
        known = (targets >= 0).nonzero()[:, 0]
        mixture[known, targets[known]] += 1.0 - weight
    return nn.functional.cross_entropy(logits, mixture, reduction="sum")


class StageTrainer(Trainer):
    """Trainer of a stage: its loss, its order of articles, and seconds of earlier sittings."""

    def __init__(
        self,
        teacher: PreTrainedModel | None,
        head: SharedHead | None,
        recipe: StageRecipe,
        earlier: float,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self._recipe = recipe
        self._teacher: Any = None
        if teacher is not None and recipe.distillation:
            # A copy: others use that one, in its own number format.
            dtype = torch.bfloat16 if self.args.bf16 else teacher.dtype
            self._teacher = copy.deepcopy(teacher)
            self._teacher.to(self.args.device, dtype)
        self._head = None if head is None else head.to(self.args.device)
        self._threads = torch.get_num_threads()
        self._batches: Iterator[Any] | None = None
        self._ahead: Generator[Any] | None = None
        self._earlier = earlier
        self._began = time.monotonic()

    def train(self, *given: Any, **named: Any) -> Any:
        """Train; then PyTorch has its threads again."""
        try:
            return super().train(*given, **named)
        finally:
            if self._ahead is not None:
                self._ahead.close()
            torch.set_num_threads(self._threads)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Batches of like length."""
        rows: Any = self.train_dataset
        order = OrderByLength([len(row) for row in rows], self._recipe.batch, self.args.seed)
        loader = DataLoader(
            rows,
            batch_size=self.args.train_batch_size,
            sampler=order,
            collate_fn=self.data_collator,
        )
        prepared: DataLoader[Any] = self.accelerator.prepare(loader)
        return prepared

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Mean loss over the predicted tokens of an optimiser's step.

        Raises
        ------
        ValueError
            If it is not finite.
        """
        tokens, next_tokens = inputs["input_ids"], inputs["labels"][:, 1:]
        predicted = next_tokens != IGNORED
        # No mask: padding stands on the right, where a causal model's real positions never look.
        outputs = model(input_ids=tokens, use_cache=False)
        targets = next_tokens[predicted]
        logits = outputs.logits[:, :-1][predicted].float()
        if self._head is not None:
            targets = self._head.place[targets]
            with self.accelerator.autocast():
                logits = self._head.logits(logits)
        theirs = None
        if self._teacher is not None:
            theirs = inputs["theirs"] if "theirs" in inputs else self._read(inputs)
        total = token_losses(logits, targets, theirs, self._recipe.distillation)
        loss = total / (len(targets) if num_items_in_batch is None else num_items_in_batch)
        if not torch.isfinite(loss).all():
            raise ValueError(
                f"loss {loss.item()} at step {self.state.global_step}; lower the peak rate"
            )
        return (loss, outputs) if return_outputs else loss

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> Any:
        """Batches of a step; the LLM reads the next one while the SLM learns from this one.

        On processors only, where two threads that work alone need not wait for each other in every
        product; and behind a shared head only, since the LLM's logits of two steps are in memory.
        """
        beside = self._teacher is not None and self._head is not None
        if not beside or self.args.device.type != "cpu" or self._threads < 2:
            return super().get_batch_samples(epoch_iterator, num_batches, device)
        if self._ahead is None or epoch_iterator is not self._batches:
            self._batches, self._ahead = epoch_iterator, self._reading_ahead(epoch_iterator)
        return super().get_batch_samples(self._ahead, num_batches, device)

    def _reading_ahead(self, batches: Iterator[Any]) -> Generator[Any]:
        """Batches with what the LLM makes of them, each asked for one batch early."""
        waiting: list[tuple[Any, Future[torch.Tensor]]] = []
        # By their work on a token: twice as much goes backwards as forwards.
        student: Any = self.model
        learns = 3 * sum(p.numel() for p in student.parameters() if p.requires_grad)
        reads = sum(p.numel() for p in self._teacher.base_model.parameters())
        reading = min(max(round(self._threads * reads / (learns + reads)), 1), self._threads - 1)
        torch.set_num_threads(self._threads - reading)
        # The number of threads is each thread's own.
        with ThreadPoolExecutor(1, "llm", torch.set_num_threads, (reading,)) as reader:
            for batch in batches:
                waiting.append((batch, reader.submit(self._read, batch)))
                if len(waiting) == 2:
                    earlier, theirs = waiting.pop(0)
                    yield {**earlier, "theirs": theirs.result()}
            for batch, theirs in waiting:
                yield {**batch, "theirs": theirs.result()}

    def _read(self, inputs: Mapping[str, Any]) -> torch.Tensor:
        """Logits of the LLM where a token is predicted, float32 [tokens, vocabulary].

        Behind a shared head the vocabulary is that of the head.
        """
        tokens, predicted = inputs["input_ids"], inputs["labels"][:, 1:] != IGNORED
        with torch.no_grad(), self.accelerator.autocast():
            if self._head is None:
                logits: torch.Tensor = self._teacher(input_ids=tokens, use_cache=False).logits
                return logits[:, :-1][predicted].float()
            states = self._teacher.base_model(input_ids=tokens, use_cache=False).last_hidden_state
            return self._head.logits(states[:, :-1][predicted])

    def log(self, logs: dict[str, float], *rest: Any) -> None:
        """Add the seconds of all sittings."""
        logs["seconds"] = self._earlier + time.monotonic() - self._began
        super().log(logs, *rest)


class LogWithCheckpoint(TrainerCallback):
    """A checkpoint holds the figures of its very step."""

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        """Log where something is saved."""
        control.should_log |= control.should_save
