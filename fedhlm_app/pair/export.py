"""A small model in ONNX or GGUF, for devices that cannot hold PyTorch."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import tempfile
import warnings
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from clients.decoding.onnx_runtime import PAST, PRESENT, OnnxModel
from fedhlm_app.models.gguf import unpacked
from fedhlm_app.models.load import load_slm
from fedhlm_app.models.sources import EXPORTED_FROM, SMOLLM2_SMALL, PairError, gguf_file
from fedhlm_app.models.vocabulary import load_tokenizer, vocabulary_size
from hlm.reading.agreement import context_limit

FURTHEST = 1e-3
"""Most that a logit may differ from PyTorch's, in units of the largest one."""


class _Step(nn.Module):
    """One forward pass with the key-value cache as tensors in and out."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self._model = model

    def forward(self, tokens: Tensor, mask: Tensor, positions: Tensor, *past: Tensor) -> Any:
        cache: Any = DynamicCache()
        for layer in range(len(past) // 2):
            cache.update(past[2 * layer], past[2 * layer + 1], layer)
        found: Any = self._model(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        present = [one for layer in cache.layers for one in (layer.keys, layer.values)]
        return (found.logits, *present)


def export(slm: str, out: Path, int8: bool = False) -> int:
    """Write a folder with `model.onnx`, its configuration and its tokenizer.

    A GGUF file stays one, for llama.cpp: `model.gguf`.

    Parameters
    ----------
    slm : str
        ``"builtin"``, ``"smollm2"``, a GGUF file, a folder, or a hub name.
    out : Path
        Folder to write; a model that is there is replaced once the new one is whole.
    int8 : bool
        Weights of matrices in 8 bits, and activations too while they are multiplied; of ONNX alone.

    Returns
    -------
    int
        Bytes of the model's file.

    Raises
    ------
    PairError
        If what exports is not installed, or the model cannot be loaded or exported.
    """
    gguf = None if slm == SMOLLM2_SMALL else gguf_file(slm)
    if gguf and int8:
        raise PairError(f"--int8: slm {slm!r} is a GGUF file, whose weights stay as they are")
    lacking = [name for name in ("onnx", "onnxruntime") if find_spec(name) is None]
    if lacking and not gguf:
        raise PairError(
            f"pair export needs {', '.join(lacking)}, which is not installed; "
            "`pip install 'fedhlm[onnx]'` brings it"
        )
    model, other = ("model.gguf", "model.onnx") if gguf else ("model.onnx", "model.gguf")
    # Loaded before anything is written.
    write = partial(_copy, gguf, slm) if gguf else partial(_export_onnx, load_slm(slm), slm, int8)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".unfinished-") as unfinished:
        made = Path(unfinished)
        write(made)
        size = (made / model).stat().st_size
        for file in sorted(made.iterdir()):
            file.replace(out / file.name)
    (out / other).unlink(missing_ok=True)
    return size


def _copy(gguf: Path, slm: str, made: Path) -> None:
    shutil.copytree(unpacked(slm), made, dirs_exist_ok=True)
    shutil.copyfile(gguf, made / "model.gguf")
    # The device drafts no token that stands for no text.
    config = json.loads((made / "config.json").read_text("utf-8"))
    config["vocab_size"] = vocabulary_size(slm)
    (made / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def _export_onnx(model: PreTrainedModel, slm: str, int8: bool, made: Path) -> None:
    try:
        _write(model, made / "model.onnx")
    except Exception as error:  # exporters raise all kinds for a model they cannot follow
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise PairError(f"slm {slm!r} cannot be exported: {reason}") from error
    model.config.save_pretrained(made)
    model.generation_config.save_pretrained(made)
    load_tokenizer(slm).save_pretrained(made)
    # A window of attention is not in the configuration's number of positions.
    config = json.loads((made / "config.json").read_text("utf-8"))
    config["max_position_embeddings"] = context_limit(model.config.get_text_config())
    if not int8:  # which keeps and escalates other tokens
        config[EXPORTED_FROM] = slm
    (made / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    furthest = _difference(model, OnnxModel(made / "model.onnx"))
    if not furthest <= FURTHEST:
        raise PairError(
            f"slm {slm!r} cannot be exported: logits differ by {furthest:.2g} of the largest, "
            f"allowed is {FURTHEST:g}"
        )
    if int8:
        _quantise(made / "model.onnx")


def _write(model: PreTrainedModel, file: Path) -> None:
    # Two tokens behind three, so that no size is taken for a constant.
    cache: Any = DynamicCache()
    positions = torch.tensor([[3, 4], [3, 4]])
    with torch.no_grad():
        model(torch.ones(2, 3, dtype=torch.int64), past_key_values=cache, use_cache=True)
    example = [one for layer in cache.layers for one in (layer.keys, layer.values)]
    if not example:
        raise ValueError("it keeps no keys and values")
    layers = [f"{at}.{part}" for at in range(len(cache.layers)) for part in ("key", "value")]
    past, present = ([f"{kind}.{one}" for one in layers] for kind in (PAST, PRESENT))
    inputs = (torch.ones_like(positions), torch.ones(2, 5, dtype=torch.int64), positions)
    names = ["input_ids", "attention_mask", "position_ids"]
    axes = {
        "input_ids": {0: "rows", 1: "new"},
        "attention_mask": {0: "rows", 1: "total"},
        "position_ids": {0: "rows", 1: "new"},
        "logits": {0: "rows"},
        **{name: {0: "rows", 2: "past"} for name in past},
        **{name: {0: "rows", 2: "total"} for name in present},
    }
    with torch.no_grad(), warnings.catch_warnings(), contextlib.redirect_stdout(None):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            # Left as it is found: a model that trains drops values out (GPT-2, OPT).
            _Step(model).eval(),
            (*inputs, *example),
            file,
            input_names=[*names, *past],
            output_names=["logits", *present],
            dynamic_axes=axes,
            dynamo=False,
        )


@torch.inference_mode()
def _difference(model: PreTrainedModel, exported: OnnxModel) -> float:
    """Largest difference of logits, over the largest logit, of texts that grow and shrink."""
    random = np.random.default_rng(0)
    texts = [random.integers(0, exported.vocab, length) for length in (3, 17, 9)]
    decoder = exported.decoder([text[:-2] if len(text) > 3 else text[:1] for text in texts])
    decoder.start()
    decoder.read(np.stack([text[-2:] for text in texts]), np.array([2, 2, 2]))
    decoder.take_back(np.array([1, 1, 1]))
    found = decoder.step(np.array([text[-1] for text in texts])).logits
    expected = [model(torch.from_numpy(text)[None]).logits[0, -1] for text in texts]
    wanted = torch.stack(expected).float().numpy()
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def _quantise(file: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    whole = file.rename(file.with_name("whole.onnx"))
    logging.disable(logging.WARNING)  # advice about images
    quantize_dynamic(whole, file, weight_type=QuantType.QInt8)
    logging.disable(logging.NOTSET)
    whole.unlink()
