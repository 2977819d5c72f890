"""One optimised stage on Transformers' `Trainer`: cross entropy, or that mixed with KL to the LLM.

AdamW with betas (.9, .95), weight decay .1 on matrices, gradient clip 1, and a checkpoint every
so many steps from which a stage goes on as if it had not been interrupted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_model
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    TrainerState,
    TrainingArguments,
)

from fedhlm_app.pair.checkpoints import last_checkpoint
from fedhlm_app.pair.recipe import ModelShape, PairTraining, StageRecipe
from fedhlm_app.pair.sequences import Example, batch_of
from fedhlm_app.pair.shared_head import SharedHead
from fedhlm_app.pair.trainer import IGNORED, LogWithCheckpoint, StageTrainer

_LOG_EVERY = 50


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


def run_stage(
    name: str,
    model: PreTrainedModel,
    recipe: StageRecipe,
    sequences: Sequence[Example],
    settings: PairTraining,
    *,
    pad: int = 0,
    teacher: PreTrainedModel | None = None,
    head: SharedHead | None = None,
) -> dict[str, float]:
    """Optimise a model in place, resuming from the stage's checkpoint if there is one.

    Parameters
    ----------
    name : str
        Of the stage, and of its folder in ``checkpoints`` of the settings' folder. The loss curve
        is in ``trainer_state.json`` of the checkpoint there.
    model, teacher : PreTrainedModel
        Weights to optimise (float32), which end on the CPU, and the LLM to distil from.
    recipe : StageRecipe
        Steps, rates and weights.
    sequences : sequence of Example
        Training sequences.
    settings : PairTraining
        What all stages share.
    pad : int
        Token id that fills up.
    head : SharedHead or None
        Where the model learns behind the LLM's head: that head.

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
    if head is not None:
        identity.append(f"behind the LLM's head, of {len(head.weight)} tokens")
    checkpoint, state = last_checkpoint(folder, identity)
    if state.global_step < recipe.steps:
        trainer = StageTrainer(
            teacher,
            head,
            recipe,
            _figures(state)["seconds"],
            model=model,
            args=_arguments(folder, recipe, settings),
            train_dataset=sequences,
            data_collator=lambda rows: _collated(rows, pad),
            callbacks=[LogWithCheckpoint()],
        )
        print(f"{name}: {state.global_step} of {recipe.steps} steps done", file=sys.stderr)
        # Figures go where the progress bar goes: what a command prints is its result alone.
        with contextlib.redirect_stdout(sys.stderr):
            trainer.train(resume_from_checkpoint=checkpoint)
        state = trainer.state
        # Out of the mixed precision that was put around its forward pass.
        trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        _to_cpu(model)
    elif checkpoint is not None:
        load_model(model, Path(checkpoint) / "model.safetensors")
    model.train(False)
    return _figures(state)


def _to_cpu(model: torch.nn.Module) -> None:
    model.to("cpu")


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


def _collated(rows: Sequence[Example], pad: int) -> dict[str, torch.Tensor]:
    """A batch as Transformers counts it: what is not predicted has no label."""
    batch = batch_of(rows, pad)
    labels = batch.tokens.masked_fill(~batch.predicted, IGNORED)
    return {"input_ids": batch.tokens, "attention_mask": batch.mask.long(), "labels": labels}


def _figures(state: TrainerState) -> dict[str, float]:
    """How far a stage has come."""
    done = {"steps": state.global_step, "tokens": state.num_input_tokens_seen, "seconds": 0.0}
    for line in state.log_history:
        # The last line of a training sums it up, with no loss of its own.
        done |= {name: line[name] for name in ("seconds", "loss") if "loss" in line}
    return done
