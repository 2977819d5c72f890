"""Loading a model pair: the built-in one, or two causal LMs with one tokenizer.

A device loads only the SLM and the server only the LLM; each is kept per process, since a
simulation runs many clients in one. What can be refused from a config or a tokenizer alone is
refused before weights are read (`fedhlm_app.models.vocabulary`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from fedhlm_app.models.packing import PACKED_FORMAT, read_packed
from fedhlm_app.models.vocabulary import (
    BUILTIN,
    BUILTIN_LABELS,
    TOPIC_PROMPT,
    PairError,
    check_context,
    check_same_tokenizer,
    from_transformers,
    has_topic_token,
    label_token,
    label_tokens,
    load_tokenizer,
    topic_tokens,
)
from fedhlm_assets import asset_path

__all__ = [
    "BUILTIN",
    "BUILTIN_LABELS",
    "TOPIC_PROMPT",
    "ModelPair",
    "PairError",
    "check_context",
    "check_same_tokenizer",
    "has_topic_token",
    "label_token",
    "label_tokens",
    "load_llm",
    "load_pair",
    "load_slm",
    "load_tokenizer",
    "topic_tokens",
]


@dataclass(frozen=True)
class ModelPair:
    """A small and a large model that share one tokenizer.

    Attributes
    ----------
    slm, llm : PreTrainedModel
        Causal LMs in evaluation mode.
    tokenizer : PreTrainedTokenizerBase
        The tokenizer of both.
    labels : dict of str to int
        Label name to the id of its token.
    topic_token : int or None
        Token between text and label; None where the tokenizer has none, and
        :data:`TOPIC_PROMPT` is used instead.
    """

    slm: PreTrainedModel
    llm: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    labels: dict[str, int]
    topic_token: int | None


def load_pair(
    slm: str = BUILTIN,
    llm: str = BUILTIN,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    label_names: Sequence[str] = BUILTIN_LABELS,
) -> ModelPair:
    """Load both models and their tokenizer.

    Parameters
    ----------
    slm, llm : str
        ``"builtin"``, a folder, or a hub name.
    dtype : torch.dtype
        Of both models' weights.
    device : str
        Of both models, such as ``"cpu"`` or ``"cuda:0"``.
    label_names : sequence of str
        Labels to find tokens for.

    Returns
    -------
    ModelPair
        Cached models; treat them as read-only.

    Raises
    ------
    PairError
        If the tokenizers differ or a model cannot be loaded.
    """
    check_same_tokenizer(slm, llm)
    tokenizer = load_tokenizer(llm)
    topic = topic_tokens(tokenizer)
    return ModelPair(
        slm=load_slm(slm, dtype, device),
        llm=load_llm(llm, dtype, device),
        tokenizer=tokenizer,
        labels=label_tokens(tokenizer, label_names),
        topic_token=topic[0] if has_topic_token(tokenizer) else None,
    )


def load_slm(
    name: str = BUILTIN, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> PreTrainedModel:
    """Load the device's model alone; see :func:`load_pair`."""
    return _load_model(name, "slm", dtype, device)


def load_llm(
    name: str = BUILTIN, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> PreTrainedModel:
    """Load the server's model alone; see :func:`load_pair`."""
    return _load_model(name, "llm", dtype, device)


def _load_model(name: str, role: str, dtype: torch.dtype, device: str) -> PreTrainedModel:
    """Load one model; the cache is behind this call so that defaults share an entry."""
    return _cached_model(name, role if name == BUILTIN else "", dtype, str(device))


@lru_cache(maxsize=4)
def _cached_model(name: str, role: str, dtype: torch.dtype, device: str) -> PreTrainedModel:
    """Load a model once per process."""
    folder = asset_path(f"pair/{role}") if name == BUILTIN else Path(name)
    model: PreTrainedModel
    logging: Any = transformers.logging
    logging.disable_progress_bar()
    if _is_packed(folder):
        config = AutoConfig.from_pretrained(str(folder))
        architecture: Any = getattr(transformers, config.architectures[0])
        state = read_packed(folder / "model.safetensors")
        model = architecture.from_pretrained(None, config=config, state_dict=state, dtype=dtype)
    else:
        model = from_transformers(AutoModelForCausalLM, name, f"model {name!r}", dtype=dtype)
    model.to(torch.device(device))  # type: ignore[arg-type]
    model.train(False)
    return model


def _is_packed(folder: Path) -> bool:
    """Tell whether a folder holds weights of the packed format."""
    weights = folder / "model.safetensors"
    if not weights.is_file():
        return False
    with safe_open(str(weights), framework="pt") as opened:
        return bool((opened.metadata() or {}).get("format") == PACKED_FORMAT)
