"""The pair of a benchmark that decodes: its options, the same ones everywhere."""

from __future__ import annotations

import argparse
from typing import Any

from fedhlm_app.models.load import ModelPair, load_llm, load_slm
from fedhlm_app.models.torch_names import torch_device, torch_dtype
from fedhlm_app.models.vocabulary import check_same_tokenizer, load_tokenizer
from fedhlm_app.settings import Settings


def add_pair_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--slm --llm --device --dtype``; device and number format are those of both models."""
    for role in ("slm", "llm"):
        parser.add_argument(f"--{role}", default="builtin", help="as the setting of that name")
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
