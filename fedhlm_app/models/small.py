"""The small model of a device: in PyTorch, or where there is none in ONNX Runtime or llama.cpp."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from clients.decoding.llama_cpp_runtime import LlamaCppModel
from clients.decoding.onnx_runtime import OnnxModel
from clients.decoding.steps import Runtime
from fedhlm_app.models.sources import LEAN_FORMATS, lean_file
from fedhlm_app.settings import Settings, SettingsError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ALLOWED = {
    "policy": ("threshold", "random", "always", "never", "u-hlm"),
    "verifier": ("greedy", "coupled"),
    "cache_mode": ("off",),
    "device": ("cpu",),
    "dtype": ("float32",),
}
"""What a model without hidden states, on a device without PyTorch, can do."""

_NAMES = {"verifier": "verification", "cache_mode": "cache-mode"}


def load_small(settings: Settings) -> PreTrainedModel | Runtime:
    """The small model of the settings, tried with texts as long as a run's.

    Raises
    ------
    ValueError
        When it cannot be loaded, or cannot do what the settings ask of it.
    """
    if file := lean_file(settings.slm):
        for field, allowed in _ALLOWED.items():
            if (value := getattr(settings, field)) not in allowed:
                raise SettingsError(
                    f"setting {_NAMES.get(field, field)!r} = {value!r}: the slm '{settings.slm}' "
                    f"is in {LEAN_FORMATS[file.suffix].name}, which allows {', '.join(allowed)}"
                )
        return load_lean(file, settings.llm_context)
    from clients.decoding.ways import best_ways
    from fedhlm_app.models.context_length import longest_context
    from fedhlm_app.models.load import load_slm
    from fedhlm_app.models.torch_names import torch_device, torch_dtype

    model = load_slm(settings.slm, torch_dtype(settings.dtype), torch_device(settings.device))
    best_ways(model, longest_context(settings))
    return model


@lru_cache(maxsize=2)
def load_lean(file: Path, longest: int) -> Runtime:
    """Load a model once per process, for texts of so many tokens."""
    return OnnxModel(file) if file.suffix == ".onnx" else LlamaCppModel(file, longest)


def vocabulary_of(model: PreTrainedModel | Runtime) -> int:
    """Token ids that a model has logits for."""
    if isinstance(model, Runtime):
        return model.vocab
    return int(model.config.get_text_config().vocab_size)


def end_tokens(model: PreTrainedModel | Runtime) -> frozenset[int]:
    """Tokens that end a text, from the model's generation config."""
    if isinstance(model, Runtime):
        return model.end_tokens
    found: int | list[int] | None = model.generation_config.eos_token_id
    if found is None:
        return frozenset()
    return frozenset([found] if isinstance(found, int) else found)


def readable(model: PreTrainedModel | Runtime, most: int) -> int:
    """Longest text that a model reads, in tokens, and at most `most`; tried at that length."""
    if isinstance(model, Runtime):
        return min(most, model.context)
    from clients.decoding.ways import best_ways
    from hlm.reading.agreement import context_limit

    longest = min(most, context_limit(model.config.get_text_config()))
    best_ways(model, longest)
    return longest
