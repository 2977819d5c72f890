"""The pair of a benchmark that decodes or reads: its options, the same ones everywhere.

A benchmark without them says in its own first lines that it has no pair, and why.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fedhlm_app.models.load import ModelPair, load_llm, load_slm
from fedhlm_app.models.sources import BUILTIN
from fedhlm_app.models.torch_names import torch_device, torch_dtype
from fedhlm_app.models.vocabulary import check_same_tokenizer, load_tokenizer
from fedhlm_app.settings import Settings


def add_pair_options(parser: argparse.ArgumentParser, idle: str = "") -> None:
    """Add ``--slm --llm --device --dtype``; device and number format are those of both models.

    Parameters
    ----------
    parser : argparse.ArgumentParser
    idle : str
        The role, if any, whose model this benchmark does not load.
    """
    for role in ("slm", "llm"):
        what = "taken, but not loaded here" if role == idle else "as the setting of that name"
        parser.add_argument(f"--{role}", default=BUILTIN, help=what)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:N, mps or auto")
    parser.add_argument("--dtype", default="float32", help="float32, bfloat16 or float16")


def pair_settings(options: argparse.Namespace, **others: Any) -> Settings:
    """The settings that those options and others say; ValueError names one that is not allowed."""
    pair = {name: getattr(options, name) for name in ("slm", "llm", "device", "dtype")}
    large = {"llm_device": options.device, "llm_dtype": options.dtype}
    given = {name.replace("_", "-"): value for name, value in (pair | large | others).items()}
    return Settings.from_sources(given, {})


def load_models(settings: Settings) -> ModelPair:
    """Load both models of the settings, and their tokenizer."""
    check_same_tokenizer(settings.slm, settings.llm)
    how = torch_dtype(settings.dtype), torch_device(settings.device)
    slm, llm = load_slm(settings.slm, *how), load_llm(settings.llm, *how)
    return ModelPair(slm, llm, load_tokenizer(settings.llm))


def load_small(settings: Settings) -> PreTrainedModel:
    """Load the device's model of the settings alone."""
    return load_slm(settings.slm, torch_dtype(settings.dtype), torch_device(settings.device))


def server_words(settings: Settings) -> list[str]:
    """What `fedhlm serve llm` is told to serve the LLM of the settings."""
    named = ["--slm", settings.slm, "--llm", settings.llm]
    placed = [f"llm-device={settings.llm_device}", f"llm-dtype={settings.llm_dtype}"]
    return [*named, "--set", placed[0], "--set", placed[1]]


def start_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """What every text begins with: the token of a beginning, or else of an end, as in training."""
    start = tokenizer.bos_token_id
    return int(tokenizer.eos_token_id if start is None else start)


def embeddings_of(model: PreTrainedModel) -> NDArray[np.float32]:
    """Input embeddings, float32 [vocab, dim]."""
    table: Any = model.get_input_embeddings()
    found: NDArray[np.float32] = table.weight.float().numpy(force=True)
    return found


def digest_of(models: Iterable[PreTrainedModel], *data: bytes) -> str:
    """16 hexadecimal digits that stand for data and weights."""
    key = hashlib.sha256(b"".join(data))
    for model in models:
        for parameter in model.parameters():
            key.update(parameter.detach().flatten().view(torch.uint8).numpy(force=True).tobytes())
    return key.hexdigest()[:16]
