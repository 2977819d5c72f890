"""One optimised stage on Transformers' `Trainer`: cross entropy, or that mixed with KL to the LLM.

AdamW with betas (.9, .95), weight decay .1 on matrices, gradient clip 1, and a checkpoint every
so many steps from which a stage goes on as if it had not been interrupted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
)

from fedhlm_app.pair.checkpoints import last_checkpoint
from fedhlm_app.pair.recipe import ModelShape, PairTraining, StageRecipe
from fedhlm_app.pair.sequences import OrderByLength, batch_of

_LOG_EVERY = 50
_IGNORED = -100  # what Transformers leaves out of counts and losses


def new_model(
    shape: ModelShape, vocabulary: int, positions: int, seed: int, specials: tuple[int, int, int]
) -> PreTrainedModel:
    """Create a Llama-architecture model with random weights.

    Parameters
    ----------
    shape : ModelShape
        Its size.
    vocabulary, positions : int
        Token ids and longest context.
    seed : int
        Of the initial weights.
    specials : tuple of int
        Ids of pad, bos and eos.
    """
    pad, bos, eos = specials
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        intermediate_size=shape.intermediate,
        max_position_embeddings=positions,
        tie_word_embeddings=True,
        pad_token_id=pad,
        bos_token_id=bos,
        eos_token_id=eos,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def token_losses(
    logits: torch.Tensor, targets: torch.Tensor, teacher: torch.Tensor | None, weight: float
) -> torch.Tensor:
    """Sum of the losses of predicted tokens.

    With p the LLM's distribution and q the model's, ``weight * KL(p || q) + (1 - weight) *
    -ln q_next``, up to the entropy of p, which no gradient sees: one cross entropy against the
    mixture ``weight * p + (1 - weight) * onehot(next)``.

    Parameters
    ----------
    logits : Tensor
        float32 [tokens, vocabulary], the model's.
    targets : Tensor
        int64 [tokens], the next tokens.
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
    mixture[torch.arange(len(targets)), targets] += 1.0 - weight
    return nn.functional.cross_entropy(logits, mixture, reduction="sum")


class _StageTrainer(Trainer):
    """Trainer of a stage: its loss, its order of articles, and seconds of earlier sittings."""

    def __init__(
        self,
        teacher: PreTrainedModel | None,
        recipe: StageRecipe,
        earlier: float,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self._recipe = recipe
        self._teacher = teacher if recipe.distillation else None
        _move(self._teacher, self.args.device)
        self._earlier = earlier
        self._began = time.monotonic()

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
        predicted = next_tokens != _IGNORED
        # No mask: padding stands on the right, where a causal model's real positions never look.
        outputs = model(input_ids=tokens, use_cache=False)
        theirs = None
        if self._teacher is not None:
            with torch.no_grad(), self.accelerator.autocast():
                theirs = self._teacher(input_ids=tokens, use_cache=False).logits
            theirs = theirs[:, :-1][predicted].float()
        targets = next_tokens[predicted]
        logits = outputs.logits[:, :-1][predicted].float()
        total = token_losses(logits, targets, theirs, self._recipe.distillation)
        loss = total / (len(targets) if num_items_in_batch is None else num_items_in_batch)
        if not torch.isfinite(loss).all():
            raise ValueError(
                f"loss {loss.item()} at step {self.state.global_step}; lower the peak rate"
            )
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *rest: Any) -> None:
        """Add the seconds of all sittings."""
        logs["seconds"] = self._earlier + time.monotonic() - self._began
        super().log(logs, *rest)


class _LogWithCheckpoint(TrainerCallback):
    """A checkpoint holds the figures of its very step."""

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        control.should_log |= control.should_save


def run_stage(
    name: str,
    model: PreTrainedModel,
    recipe: StageRecipe,
    sequences: Sequence[np.ndarray],
    settings: PairTraining,
    *,
    pad: int = 0,
    teacher: PreTrainedModel | None = None,
) -> dict[str, float]:
    """Optimise a model in place, resuming from the stage's checkpoint if there is one.

    Parameters
    ----------
    name : str
        Of the stage, and of its folder in ``checkpoints`` of the settings' folder. The loss curve
        is in ``trainer_state.json`` of the checkpoint there.
    model, teacher : PreTrainedModel
        Weights to optimise (float32), and the LLM to distil from. Both end on the CPU.
    recipe : StageRecipe
        Steps, rates and weights.
    sequences : sequence of ndarray
        Training sequences.
    settings : PairTraining
        What all stages share.
    pad : int
        Token id that fills up.

    Returns
    -------
    dict of str to float
        ``steps``, ``tokens`` seen, ``seconds`` of all sittings, and, where there was a step, the
        last mean ``loss``.

    Raises
    ------
    ValueError
        If the checkpoint was written with another recipe or seed, or the loss is not finite.
    """
    folder = Path(settings.out) / "checkpoints" / name
    folder.mkdir(parents=True, exist_ok=True)
    identity = [dataclasses.asdict(recipe), settings.seed, len(sequences)]
    checkpoint, state = last_checkpoint(folder, identity)
    if state.global_step < recipe.steps:
        trainer = _StageTrainer(
            teacher,
            recipe,
            _figures(state)["seconds"],
            model=model,
            args=_arguments(folder, recipe, settings),
            train_dataset=sequences,
            data_collator=lambda rows: _collated(rows, pad),
            callbacks=[_LogWithCheckpoint()],
        )
        print(f"{name}: {state.global_step} of {recipe.steps} steps done", file=sys.stderr)
        # Figures go where the progress bar goes: what a command prints is its result alone.
        with contextlib.redirect_stdout(sys.stderr):
            trainer.train(resume_from_checkpoint=checkpoint)
        state = trainer.state
        # Out of the mixed precision that was put around its forward pass.
        trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        _move(model, "cpu")
        _move(teacher, "cpu")
    elif checkpoint is not None:
        model.load_state_dict(type(model).from_pretrained(checkpoint).state_dict())
    model.train(False)
    return _figures(state)


def _move(model: nn.Module | None, device: torch.device | str) -> None:
    if model is not None:
        model.to(device)


def _arguments(folder: Path, recipe: StageRecipe, settings: PairTraining) -> TrainingArguments:
    """The recipe in Transformers' words."""
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=recipe.steps,
        per_device_train_batch_size=recipe.batch // settings.accumulate,
        gradient_accumulation_steps=settings.accumulate,
        learning_rate=recipe.peak_rate,
        lr_scheduler_type="warmup_stable_decay",
        warmup_steps=recipe.warmup,
        lr_scheduler_kwargs={
            "num_decay_steps": recipe.steps - int(recipe.constant_until * recipe.steps),
            "decay_type": "linear",
            "min_lr_ratio": recipe.final_factor,
        },
        adam_beta1=0.9,
        adam_beta2=0.95,
        weight_decay=0.1,
        max_grad_norm=1.0,
        bf16=settings.bfloat16,
        use_cpu=settings.cpu or not torch.accelerator.is_available(),
        seed=settings.seed,
        logging_steps=_LOG_EVERY,
        logging_nan_inf_filter=False,
        save_steps=settings.checkpoint_every,
        save_total_limit=1,
        include_num_input_tokens_seen="non_padding",
        remove_unused_columns=False,
        report_to=settings.report_to or "none",
        run_name=folder.name,
    )


def _collated(rows: Sequence[np.ndarray], pad: int) -> dict[str, torch.Tensor]:
    """A batch as Transformers counts it: what is not predicted has no label."""
    batch = batch_of(rows, pad)
    labels = batch.tokens.masked_fill(~batch.mask, _IGNORED)
    labels[:, 0] = _IGNORED
    return {"input_ids": batch.tokens, "attention_mask": batch.mask.long(), "labels": labels}


def _figures(state: TrainerState) -> dict[str, float]:
    """How far a stage has come."""
    done = {"steps": state.global_step, "tokens": state.num_input_tokens_seen, "seconds": 0.0}
    for line in state.log_history:
        # The last line of a training sums it up, with no loss of its own.
        done |= {name: line[name] for name in ("seconds", "loss") if "loss" in line}
    return done
