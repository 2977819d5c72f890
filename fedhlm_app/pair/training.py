"""One optimised stage: cross entropy, or cross entropy mixed with KL to the LLM.

AdamW with betas (.9, .95), weight decay .1 on matrices, gradient clip 1, and a checkpoint every
so many steps from which a stage goes on as if it had not been interrupted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from fedhlm_app.pair.recipe import ModelShape, StageRecipe
from fedhlm_app.pair.sequences import Batch, batch_of, shuffled_batches

__all__ = ["new_model", "run_stage", "stage_loss", "write_atomically"]

_BETAS = (0.9, 0.95)
_WEIGHT_DECAY = 0.1
_CLIP = 1.0
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


def stage_loss(
    model: PreTrainedModel, teacher: PreTrainedModel | None, batch: Batch, weight: float
) -> torch.Tensor:
    """Mean loss over the predicted tokens of a batch.

    With p the LLM's law and q the model's, ``weight * KL(p || q) + (1 - weight) * -ln q_next``,
    up to the entropy of p, which no gradient sees: one cross entropy against the mixture
    ``weight * p + (1 - weight) * onehot(next)``.

    Parameters
    ----------
    model, teacher : PreTrainedModel
        The teacher may be None where ``weight`` is 0.
    batch : Batch
        Sequences.
    weight : float
        Share of the distillation, in [0, 1].

    Returns
    -------
    Tensor
        Scalar, nats a token.
    """
    inputs, predicted = batch.tokens[:, :-1], batch.mask[:, 1:]
    targets = batch.tokens[:, 1:][predicted]  # [tokens]
    # Only real positions reach the vocabulary matrix: it is most of the work of a small model.
    logits = _logits_at(model, inputs, predicted)  # [tokens, vocab]
    if teacher is None or weight == 0.0:
        return nn.functional.cross_entropy(logits, targets)
    with torch.no_grad():
        mixture = _logits_at(teacher, inputs, predicted).softmax(dim=-1).mul_(weight)
        mixture[torch.arange(len(targets)), targets] += 1.0 - weight
    return nn.functional.cross_entropy(logits, mixture)


def _logits_at(model: PreTrainedModel, inputs: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """Give float32 logits [tokens, vocab] at the positions of a mask.

    Padding stands on the right, where a causal model's real positions never look.
    """
    causal_lm: Any = model
    body, head = causal_lm.get_decoder(), causal_lm.get_output_embeddings()
    hidden = body(input_ids=inputs, use_cache=False).last_hidden_state[where]
    logits: torch.Tensor = head(hidden)
    return logits.float()


def run_stage(
    name: str,
    model: PreTrainedModel,
    recipe: StageRecipe,
    sequences: Sequence[np.ndarray],
    folder: Path,
    *,
    seed: int,
    pad: int = 0,
    teacher: PreTrainedModel | None = None,
    bfloat16: bool = True,
    checkpoint_every: int = 200,
    stop_after: int | None = None,
) -> dict[str, float]:
    """Optimise a model in place, resuming from the stage's checkpoint if there is one.

    Parameters
    ----------
    name : str
        Of the stage, in progress and file names.
    model, teacher : PreTrainedModel
        Weights to optimise (float32), and the LLM to distil from.
    recipe : StageRecipe
        Steps, rates and weights.
    sequences : sequence of ndarray
        Training sequences.
    folder : Path
        Where ``NAME.checkpoint`` and ``NAME.jsonl`` (loss curve) are kept.
    seed, pad, bfloat16, checkpoint_every
        As in :class:`PairTraining`.
    stop_after : int, optional
        Stop with a checkpoint after this step, for runs in several sittings.

    Returns
    -------
    dict of str to float
        ``steps``, ``tokens`` seen, ``seconds`` of all sittings, last mean ``loss``.

    Raises
    ------
    ValueError
        If the checkpoint was written with another recipe or seed, or the loss is not finite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / f"{name}.checkpoint"
    optimiser = _optimiser(model)
    identity = json.dumps([dataclasses.asdict(recipe), seed, len(sequences)], sort_keys=True)
    progress = _restore(checkpoint, model, optimiser, identity)
    last_step = recipe.steps if stop_after is None else min(stop_after, recipe.steps)
    lengths = [len(sequence) for sequence in sequences]
    order = shuffled_batches(lengths, recipe.batch, seed, int(progress["steps"]))
    model.train()
    recent: list[float] = []
    started, earlier = time.monotonic(), progress["seconds"]
    with _bar() as bar:
        task = bar.add_task(name, total=recipe.steps, completed=int(progress["steps"]), loss="")
        for step in range(int(progress["steps"]), last_step):
            batch = batch_of([sequences[row] for row in next(order)], pad)
            loss = _step(model, teacher, optimiser, recipe, step, batch, bfloat16)
            if not math.isfinite(loss):
                raise ValueError(f"{name}: loss {loss} at step {step}; lower the peak rate")
            recent.append(loss)
            progress["steps"] = step + 1
            progress["tokens"] += int(batch.mask[:, 1:].sum())
            progress["seconds"] = earlier + time.monotonic() - started
            if (step + 1) % _LOG_EVERY == 0 or step + 1 == last_step:
                progress["loss"] = sum(recent) / len(recent)
                recent.clear()
                _append_curve(folder / f"{name}.jsonl", progress)
                if not bar.console.is_terminal:
                    bar.console.print(_line(name, recipe, progress))
            if (step + 1) % checkpoint_every == 0 or step + 1 == last_step:
                _save(checkpoint, model, optimiser, identity, progress)
            bar.update(task, completed=step + 1, loss=f"loss {loss:.3f}")
    model.train(False)
    return progress


def _step(
    model: PreTrainedModel,
    teacher: PreTrainedModel | None,
    optimiser: torch.optim.Optimizer,
    recipe: StageRecipe,
    step: int,
    batch: Batch,
    bfloat16: bool,
) -> float:
    """Do one optimiser step and give its loss."""
    for group in optimiser.param_groups:
        group["lr"] = recipe.rate(step)
    precision: Any = (
        torch.autocast("cpu", dtype=torch.bfloat16) if bfloat16 else contextlib.nullcontext()
    )
    with precision:
        loss = stage_loss(model, teacher, batch, recipe.distillation)
    optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(model.parameters(), _CLIP)
    optimiser.step()
    return float(loss.detach())


def _optimiser(model: PreTrainedModel) -> torch.optim.AdamW:
    """Create the recipe's AdamW: decay on matrices only."""
    parameters = list(model.parameters())
    return torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": _WEIGHT_DECAY},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ],
        betas=_BETAS,
    )


def _restore(
    checkpoint: Path, model: PreTrainedModel, optimiser: torch.optim.Optimizer, identity: str
) -> dict[str, float]:
    """Load a checkpoint if there is one; give how far the stage has come."""
    if not checkpoint.exists():
        return {"steps": 0, "tokens": 0, "seconds": 0.0, "loss": math.nan}
    saved = torch.load(checkpoint, weights_only=True)
    if not _same_so_far(json.loads(saved["identity"]), json.loads(identity), saved["progress"]):
        raise ValueError(
            f"{checkpoint} was written with other settings ({saved['identity']}) than asked for "
            f"now ({identity}); give the same settings or another folder"
        )
    model.load_state_dict(saved["model"])
    optimiser.load_state_dict(saved["optimiser"])
    return dict(saved["progress"])


def _same_so_far(saved: list[Any], asked: list[Any], progress: dict[str, float]) -> bool:
    """Tell whether the steps done would have been the same under the settings asked for.

    A stage may become shorter or longer while its rate has not begun to fall: up to there, the
    number of steps changes nothing.
    """
    (old, *old_data), (new, *new_data) = saved, asked
    if {**old, "steps": 0} != {**new, "steps": 0} or old_data != new_data:
        return False
    constant = min(old["steps"], new["steps"]) * new["constant_until"]
    return bool(old["steps"] == new["steps"] or progress["steps"] <= constant)


def _save(
    checkpoint: Path,
    model: PreTrainedModel,
    optimiser: torch.optim.Optimizer,
    identity: str,
    progress: dict[str, float],
) -> None:
    """Write a checkpoint so that a crash leaves either the old or the new one."""
    state = {
        "identity": identity,
        "model": model.state_dict(),
        "optimiser": optimiser.state_dict(),
        "progress": dict(progress),
    }
    unfinished = checkpoint.with_suffix(".part")
    torch.save(state, unfinished)
    os.replace(unfinished, checkpoint)


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old or the new text, never half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)


def _append_curve(path: Path, progress: dict[str, float]) -> None:
    """Add a point to the loss curve."""
    with path.open("a", encoding="utf-8") as curve:
        curve.write(json.dumps(progress) + "\n")


def _line(name: str, recipe: StageRecipe, progress: dict[str, float]) -> str:
    """Say in one line how far a stage is, for logs that are no terminal."""
    per_step = progress["seconds"] / max(progress["steps"], 1)
    left = (recipe.steps - progress["steps"]) * per_step
    return (
        f"{name} {int(progress['steps'])}/{recipe.steps} loss {progress['loss']:.3f} "
        f"{per_step:.2f} s/step, {left / 60:.1f} min left"
    )


def _bar() -> Progress:
    """Create the progress bar of a stage."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
