"""A small model carved out of a large one: some of its layers, and its head fitted to them.

The layers that are left out are replaced by a linear map from the state after the kept ones to the
state that the LLM gives its head, in the least squares over some ten thousand tokens, as in
https://arxiv.org/abs/2303.08112 (tuned lens). It is folded into the head, so that the small model
is one of the LLM's own architecture.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from fedhlm_app.data.chats import encoded
from fedhlm_app.data.items import load_items
from fedhlm_app.models.load import load_llm, save_model
from fedhlm_app.models.sources import PairError
from fedhlm_app.models.vocabulary import load_tokenizer
from hlm.reading.agreement import context_limit

_BATCH, _LONGEST = 16, 256
_RIDGE = 1e-3
"""Of the mean square of a feature: keeps the fit regular, and moves it by less than it errs."""


def layers_kept(keep: str, layers: int, of: int) -> list[int]:
    """Layers of a choice, in order.

    Parameters
    ----------
    keep : str
        ``first``; ``ends``: the first and the last, the first of them more where the number is odd;
        ``even``: first, last and evenly between; or numbers with commas between them, from 0.
    layers : int
        How many, where they have no numbers; at least 1, and fewer than there are.
    of : int
        Layers there are.

    Raises
    ------
    PairError
        If there are no such layers.
    """
    if keep not in ("first", "ends", "even"):
        words = keep.split(",")
        kept = [int(word) for word in words if word.strip().isdecimal()]
        if len(kept) < len(words) or kept != sorted(set(kept)) or kept[-1] >= of:
            raise PairError(
                f"--keep {keep}: allowed are first, ends, even, or rising numbers of layers from 0 "
                f"to {of - 1}, such as 0,1,{of - 1}"
            )
        return kept
    if not 1 <= layers < of:
        raise PairError(f"--layers {layers}: allowed are 1 to {of - 1}, since the LLM has {of}")
    if keep == "even":
        return [round(at * (of - 1) / max(1, layers - 1)) for at in range(layers)]
    front = layers if keep == "first" else layers - layers // 2
    return [*range(front), *range(of - (layers - front), of)]


def carve(
    llm: str,
    keep: str,
    layers: int,
    out: Path,
    dataset: str = "builtin",
    tokens: int = 30_000,
    text_column: str = "",
) -> tuple[PreTrainedModel, list[int]]:
    """Write an SLM that has some of an LLM's layers, and its tokenizer.

    Parameters
    ----------
    llm : str
        ``"builtin"``, ``"smollm2"``, a GGUF file, a folder, or a hub name.
    keep, layers
        As for :func:`layers_kept`.
    out : Path
        Folder to write.
    dataset, text_column : str
        Texts that the head is fitted on, see :func:`fedhlm_app.data.items.load_items`.
    tokens : int
        How much of them; 0 leaves the head as it is.

    Returns
    -------
    tuple
        The SLM, and numbers of the layers that it has.

    Raises
    ------
    PairError
        If the LLM cannot be loaded, has no such layers, keeps them in no one list, or is in `out`.
    DataError
        If the dataset cannot be read.
    """
    if Path(llm).resolve() == out.resolve():
        raise PairError(f"--out {out}: is the LLM's own folder, which would be lost; name another")
    items = load_items(dataset, "train", text_column=text_column) if tokens else None
    whole = load_llm(llm)
    config = whole.config.get_text_config()
    of = int(config.num_hidden_layers)
    kept = layers_kept(keep, layers, of)
    model = copy.deepcopy(whole)
    stacks = [
        (parent, name)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.ModuleList) and len(child) == of
    ]
    if len(stacks) != 1:
        raise PairError(
            f"llm {llm!r} ({type(whole).__name__}) has its {of} layers in {len(stacks)} lists; "
            "models with one can be carved"
        )
    ((parent, name),) = stacks
    stack = getattr(parent, name)
    setattr(parent, name, nn.ModuleList(stack[layer] for layer in kept))
    config = model.config.get_text_config()
    config.num_hidden_layers = len(kept)
    for key, value in list(vars(config).items()):
        if isinstance(value, list) and len(value) == of:  # such as layer_types
            setattr(config, key, [value[layer] for layer in kept])
    tokenizer = load_tokenizer(llm)
    if items is not None:
        _fit_head(model, whole, [one.start + one.text for one in encoded(items, tokenizer)], tokens)
    save_model(model, tokenizer, out)
    return model, kept


def _fit_head(
    model: Any,  # PreTrainedModel, whose methods for the head have no types
    whole: Any,
    given: list[list[int]],
    tokens: int,
) -> None:
    """Give a carved model the head that is nearest to the LLM's logits, by ridge regression."""
    longest = min(_LONGEST, context_limit(whole.config.get_text_config()))
    texts = [torch.tensor(one[:longest]) for one in given if one]
    ends = np.cumsum([len(one) for one in texts])
    texts = sorted(texts[: int(np.searchsorted(ends, tokens)) + 1], key=len)
    batches = [texts[at : at + _BATCH] for at in range(0, len(texts), _BATCH)]
    head, theirs = model.get_output_embeddings(), whole.get_output_embeddings()
    width = head.weight.shape[1]
    square, product = np.zeros((width, width)), np.zeros((width, theirs.weight.shape[1]))
    shown = Console(stderr=True)
    with torch.inference_mode():
        for batch in track(
            batches, "fitting", console=shown, transient=True, disable=not shown.is_terminal
        ):
            ids = pad_sequence(batch, batch_first=True)
            mask = pad_sequence([torch.ones_like(one) for one in batch], batch_first=True)
            ours, wanted = (
                one.base_model(ids, attention_mask=mask, use_cache=False)
                .last_hidden_state[mask.bool()]
                .double()
                .numpy()
                for one in (model, whole)
            )
            square += ours.T @ ours
            product += ours.T @ wanted
    square += _RIDGE * np.trace(square) / width * np.eye(width)
    folded = torch.from_numpy(np.linalg.solve(square, product)).float()
    untied = nn.Linear(width, head.weight.shape[0], bias=head.bias is not None)
    untied.weight.data = theirs.weight.data @ folded.T
    if head.bias is not None:
        untied.bias.data = head.bias.data
    model.set_output_embeddings(untied)
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = False
