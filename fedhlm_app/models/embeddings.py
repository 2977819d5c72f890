"""The input embeddings of a run's small model, without the model where they can be had alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from fedhlm_app.models.sources import BUILTIN
from fedhlm_app.settings import Settings
from fedhlm_assets import asset_path

_WEIGHT = "model.embed_tokens.weight"


def slm_embeddings(settings: Settings) -> NDArray[np.float32]:
    """Input embeddings of the small model, float32 [vocab, size].

    The built-in ones lie in their file as they are, in fp16: an edge server is spared PyTorch and
    Transformers, which take longer to import than it works in a run.
    """
    if settings.slm == BUILTIN and settings.dtype == "float32":
        with safe_open(str(asset_path("pair/slm") / "model.safetensors"), "numpy") as opened:
            return np.asarray(opened.get_tensor(_WEIGHT), np.float32)
    from fedhlm_app.client.edge import token_embeddings
    from fedhlm_app.models.load import load_slm
    from fedhlm_app.models.torch_names import torch_dtype

    return token_embeddings(load_slm(settings.slm, torch_dtype(settings.dtype), "cpu"))
