"""The model pair: training one, packing it, loading it, measuring it.

Importing this package is cheap; PyTorch and Transformers come with the first name used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedhlm_app.pair.figures import PairFigures, evaluate_pair
    from fedhlm_app.pair.load import (
        ModelPair,
        load_llm,
        load_pair,
        load_slm,
    )
    from fedhlm_app.pair.packing import pack_model
    from fedhlm_app.pair.pipeline import PairReport, distil_pair, train_pair
    from fedhlm_app.pair.recipe import PairTraining
    from fedhlm_app.pair.vocabulary import (
        PairError,
        check_context,
        check_same_tokenizer,
        load_tokenizer,
    )

__all__ = [
    "ModelPair",
    "PairError",
    "PairFigures",
    "PairReport",
    "PairTraining",
    "check_context",
    "check_same_tokenizer",
    "distil_pair",
    "evaluate_pair",
    "load_llm",
    "load_pair",
    "load_slm",
    "load_tokenizer",
    "pack_model",
    "train_pair",
]

_MODULES = ("vocabulary", "load", "recipe", "packing", "figures", "pipeline")


def __getattr__(name: str) -> Any:
    """Import a public name from its module when it is first asked for."""
    if name in __all__:
        for module_name in _MODULES:
            module = import_module(f"{__name__}.{module_name}")
            if name in module.__all__:
                return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
