"""Loading and saving models: the built-in one, or two causal LMs with one tokenizer.

A device loads only the SLM and the server only the LLM; each is kept per process, since a
simulation runs many clients in one. What can be refused from a config or a tokenizer alone is
refused before weights are read (`fedhlm_app.models.vocabulary`).
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from fedhlm_app.models.gguf import unpacked
from fedhlm_app.models.packing import PACKED_FORMAT, read_packed
from fedhlm_app.models.sources import BUILTIN, from_transformers
from fedhlm_app.models.vocabulary import check_same_tokenizer, load_tokenizer, vocabulary_size
from fedhlm_app.results.runs import write_atomically
from fedhlm_assets import asset_path


class ModelPair(NamedTuple):
    """Two causal LMs in evaluation mode, and the tokenizer of both."""

    slm: PreTrainedModel
    llm: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def load_pair(slm: str = BUILTIN, llm: str = BUILTIN) -> ModelPair:
    """Load both models, float32 on the CPU, and their tokenizer.

    Parameters
    ----------
    slm, llm : str
        ``"builtin"``, ``"smollm2"``, ``"smollm2-small"``, a GGUF file, a folder, or a hub name.

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
    return ModelPair(load_slm(slm), load_llm(llm), load_tokenizer(llm))


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


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save fp16 weights and the tokenizer, without changing the model in memory."""
    # Parameters, not the state dict: that one lists tied weights under both of their names.
    state = {name: weight.to(torch.float16) for name, weight in model.named_parameters()}
    model.save_pretrained(folder, state_dict=state)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["dtype"] = "float16"
    write_atomically(folder / "config.json", json.dumps(config, indent=2) + "\n")
    tokenizer.save_pretrained(folder)


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
        source, what = unpacked(name, "model"), f"model {name!r}"
        model = from_transformers(AutoModelForCausalLM, source, what, dtype=dtype)
        tokens = vocabulary_size(name)
        if tokens is not None and tokens < model.config.get_text_config().vocab_size:
            model.resize_token_embeddings(tokens)
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
