"""A small model carved out of a large one: some of its layers, everything else as it is."""

from __future__ import annotations

import copy
from pathlib import Path

from torch import nn
from transformers import PreTrainedModel

from fedhlm_app.models.load import load_llm
from fedhlm_app.models.sources import PairError
from fedhlm_app.models.vocabulary import load_tokenizer
from fedhlm_app.pair.pipeline import save_model


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


def carve(llm: str, keep: str, layers: int, out: Path) -> tuple[PreTrainedModel, list[int]]:
    """Write an SLM that has some of an LLM's layers, and its tokenizer.

    Parameters
    ----------
    llm : str
        ``"builtin"``, ``"smollm2"``, a GGUF file, a folder, or a hub name.
    keep, layers
        As for :func:`layers_kept`.
    out : Path
        Folder to write.

    Returns
    -------
    tuple
        The SLM, and numbers of the layers that it has.

    Raises
    ------
    PairError
        If the LLM cannot be loaded, has no such layers, or keeps them in no one list.
    """
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
    save_model(model, load_tokenizer(llm), out)
    return model, kept
