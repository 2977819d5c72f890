"""The stages of making a pair: tokenizer, LLM, SLM, distillation; each resumes by itself.

Folder layout: ``tokenizer/``, ``checkpoints/``, ``slm/``, ``llm/``, ``MODEL_CARD.md`` and
``report.json``.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations import get_available_reporting_integrations
from transformers.utils import is_accelerate_available

from fedhlm_app.data.files import DataError
from fedhlm_app.data.items import Items, has_splits, load_items
from fedhlm_app.data.partitions import split_client
from fedhlm_app.models.load import load_llm, load_slm, save_model
from fedhlm_app.models.sources import PairError
from fedhlm_app.models.vocabulary import check_same_tokenizer, load_tokenizer
from fedhlm_app.pair.card import model_card
from fedhlm_app.pair.figures import PairFigures, evaluate_pair, rounded
from fedhlm_app.pair.recipe import ModelShape, PairTraining
from fedhlm_app.pair.sequences import chat_tokens, encode_items
from fedhlm_app.pair.shared_head import fold_head, share_head
from fedhlm_app.pair.tokenizer import train_tokenizer
from fedhlm_app.pair.training import new_model, run_stage
from fedhlm_app.results.runs import write_atomically

_HELD_OUT = 0.05
"""Share of the items that is held out where the dataset has no splits."""


@dataclass(frozen=True)
class PairReport:
    """What a training gave.

    Attributes
    ----------
    folder : Path
        Where the pair is; ``slm`` and ``llm`` in it load like any model folder.
    figures : PairFigures
        On the validation split.
    stages : dict
        Per optimised stage: steps, tokens, seconds, last loss.
    """

    folder: Path
    figures: PairFigures
    stages: dict[str, dict[str, float]]


def train_pair(settings: PairTraining) -> PairReport:
    """Train a pair from nothing; called again, go on where the last call stopped.

    Parameters
    ----------
    settings : PairTraining
        Recipe, data and folder.

    Returns
    -------
    PairReport
        Also written to ``report.json`` and ``MODEL_CARD.md`` in the folder.

    Raises
    ------
    ValueError
        If the data cannot be read, the folder holds checkpoints of other settings, or the extra
        `train` is not installed.
    """
    _prepare(settings)
    out = Path(settings.out)
    items, held_out = _items(settings)
    if items.chat:
        raise DataError(
            f"dataset = {items.name} has chats, for which a new tokenizer has no template; give "
            "texts, or go on training a model that was made for chats (pair distil)"
        )
    if (out / "tokenizer" / "tokenizer.json").exists():
        tokenizer = load_tokenizer(str(out / "tokenizer"))
    else:
        tokenizer = train_tokenizer(
            items.texts(), items.label_names, settings.vocabulary, out / "tokenizer"
        )
    sequences = encode_items(items, tokenizer, settings.text_tokens)
    pad = int(tokenizer.pad_token_id or 0)
    stages: dict[str, dict[str, float]] = {}
    models: dict[str, PreTrainedModel] = {}
    for name, shape, recipe in (
        ("llm", settings.llm_shape, settings.llm),
        ("slm", settings.slm_shape, settings.slm),
    ):
        models[name] = _fresh(shape, tokenizer, settings)
        stages[name] = run_stage(name, models[name], recipe, sequences, settings, pad=pad)
    if settings.distil.steps:
        stages["distil"] = run_stage(
            "distil",
            models["slm"],
            settings.distil,
            sequences,
            settings,
            pad=pad,
            teacher=models["llm"],
        )
    for name, model in models.items():
        save_model(model, tokenizer, out / name)
    return _report(settings, models["slm"], models["llm"], tokenizer, held_out, stages)


def distil_pair(slm: str, llm: str, settings: PairTraining, tokens: int = 0) -> PairReport:
    """Go on training an SLM towards an LLM, without touching the LLM.

    Parameters
    ----------
    slm, llm : str
        Models with one tokenizer, see :func:`fedhlm_app.models.load.load_pair`.
    settings : PairTraining
        Data, folder, and the recipe of its ``distil`` stage.
    tokens : int
        Tokens to learn from, in place of the recipe's steps; 0: as those say.

    Returns
    -------
    PairReport
        The distilled SLM is in ``slm`` of the folder.
    """
    check_same_tokenizer(slm, llm)
    _prepare(settings)
    tokenizer = load_tokenizer(llm)
    items, held_out = _items(settings, labelled=False)
    # Loaded models are kept for others: this one is changed.
    student, teacher = copy.deepcopy(load_slm(slm)), load_llm(llm)
    longest = chat_tokens(student, teacher)
    sequences = encode_items(items, tokenizer, settings.text_tokens, longest)
    if tokens:
        a_step = settings.distil.batch * sum(map(len, sequences)) / len(sequences)
        recipe = dataclasses.replace(settings.distil, steps=math.ceil(tokens / a_step))
        settings = dataclasses.replace(settings, distil=recipe)
    pad = int(tokenizer.pad_token_id or 0)
    head = share_head(student, teacher, sequences) if settings.distil.distillation else None
    done = run_stage(
        "distil", student, settings.distil, sequences, settings, pad=pad, teacher=teacher, head=head
    )
    if head is not None:
        fold_head(student, teacher)
    save_model(student, tokenizer, Path(settings.out) / "slm")
    return _report(settings, student, teacher, tokenizer, held_out, {"distil": done})


def _items(settings: PairTraining, *, labelled: bool = True) -> tuple[Items, Items]:
    """Read training and held-out items; a dataset without splits gives up a share."""
    read = functools.partial(
        load_items,
        settings.dataset,
        text_column=settings.text_column,
        label_column=settings.label_column,
        labelled=labelled,
    )
    items = read("train")
    if has_splits(settings.dataset):
        return items, read("validation")
    rows, held_out = split_client(np.arange(len(items)), _HELD_OUT, settings.seed)
    return items.subset(np.sort(rows)), items.subset(np.sort(held_out))


def _prepare(settings: PairTraining) -> None:
    """Refuse what this installation cannot do; limit PyTorch's threads where asked to."""
    if not is_accelerate_available():
        raise PairError(
            "training a pair needs Accelerate, which is not installed; "
            "`pip install 'fedhlm[train]'` brings it"
        )
    trackers = get_available_reporting_integrations()  # type: ignore[no-untyped-call]
    if settings.report_to and settings.report_to not in trackers:
        raise PairError(
            f"report_to = {settings.report_to!r} is not allowed; "
            f"trackers installed here: {', '.join(trackers) or 'none'}"
        )
    if settings.threads:
        torch.set_num_threads(settings.threads)


def _fresh(
    shape: ModelShape, tokenizer: PreTrainedTokenizerBase, settings: PairTraining
) -> PreTrainedModel:
    """Create a model whose positions hold a whole sequence, rounded up to a multiple of 64."""
    positions = -(-(settings.text_tokens + 4) // 64) * 64
    pad, bos, eos = (
        int(token)
        for token in (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id)
    )
    return new_model(shape, len(tokenizer), positions, settings.seed, (pad, bos, eos))


def _report(
    settings: PairTraining,
    slm: PreTrainedModel,
    llm: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    held_out: Items,
    stages: dict[str, dict[str, float]],
) -> PairReport:
    """Measure the pair and write report and model card."""
    figures = evaluate_pair(
        slm, llm, tokenizer, held_out, settings.text_tokens, settings.validation_rows
    )
    out = Path(settings.out)
    report: dict[str, Any] = {
        "settings": dataclasses.asdict(settings),
        "stages": stages,
        "figures": rounded(figures),
    }
    write_atomically(out / "report.json", json.dumps(report, indent=2) + "\n")
    configs = (slm.config, llm.config)
    card = model_card(settings, figures, stages, configs, len(tokenizer), chat=held_out.chat)
    write_atomically(out / "MODEL_CARD.md", card)
    return PairReport(out, figures, stages)
