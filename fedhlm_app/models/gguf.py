"""Models in GGUF files: unpacked once into a folder as Transformers saves models, and read there.

Transformers takes half a minute of processor time for the 135 M weights of SmolLM2, and leaves out
of model and tokenizer what the file says of starts, ends and numbers.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedhlm_app.models.sources import PairError, cache_folder, from_transformers, gguf_file

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_DIGIT_BY_DIGIT = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"})
"""Values of ``tokenizer.ggml.pre`` for which llama.cpp splits numbers (llama-vocab.cpp)."""

_ENDS = ("<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<|end_of_text|>", "<end_of_turn>")
"""Tokens that end a text or a turn wherever there are such, as llama.cpp takes them."""

_SPLITS, _STARTS = "tokenizer.ggml.pre", "tokenizer.ggml.add_bos_token"


def unpacked(name: str) -> str:
    """Folder that a GGUF file's model was unpacked to, now or before; other names as they are.

    Weights are float16 there. Folders are in :func:`cache_folder`, and good for one state of the
    file and one version of Transformers.

    Raises
    ------
    PairError
        If the file is not there, or nothing that Transformers can read.
    """
    file = gguf_file(name)
    if file is None:
        return name
    stat = file.stat()
    key = [str(file.resolve()), stat.st_size, stat.st_mtime_ns, version("transformers")]
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    folder = cache_folder() / f"{file.stem}-{digest}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        print(f"{name}: unpacked to {folder}, once", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as unfinished:
            _unpack(name, file, Path(unfinished) / "model")
            with contextlib.suppress(FileExistsError):  # another process was first
                os.rename(Path(unfinished) / "model", folder)
    return str(folder)


def _unpack(name: str, file: Path, folder: Path) -> None:
    """Write tokenizer and model of a GGUF file."""
    import torch
    import transformers

    tokenizer = _tokenizer(name, file)
    logging: Any = transformers.logging
    logging.disable_progress_bar()
    source, what, told = str(file.parent), f"model {name!r}", logging.get_verbosity()
    # A progress bar that no option turns off, and advice about kernels for half precision.
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        logging.set_verbosity_error()
        kind, dtype = transformers.AutoModelForCausalLM, torch.float16
        model: Any = from_transformers(kind, source, what, gguf_file=file.name, dtype=dtype)
        logging.set_verbosity(told)
    known = tokenizer.get_vocab()
    ends = {tokenizer.eos_token_id, *(known[one] for one in _ENDS if one in known)} - {None}
    for config in (model.config, model.generation_config):
        config.bos_token_id = tokenizer.bos_token_id
        config.pad_token_id = tokenizer.pad_token_id
        config.eos_token_id = sorted(ends) or None
    # Unpacked, it is a model like any other.
    model.hf_quantizer = None
    vars(model.config).pop("quantization_config", None)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _tokenizer(name: str, file: Path) -> PreTrainedTokenizerBase:
    """Tokenizer of a file; where Transformers cannot build it, the one in the file's folder."""
    from gguf import GGUFReader
    from transformers import AutoTokenizer

    source, what = str(file.parent), f"tokenizer of {name!r}"
    try:
        tokenizer: PreTrainedTokenizerBase = from_transformers(
            AutoTokenizer, source, what, gguf_file=file.name
        )
    except PairError:
        if not (file.parent / "tokenizer.json").is_file():
            raise
        beside: PreTrainedTokenizerBase = from_transformers(AutoTokenizer, source, what)
        return beside
    fields = GGUFReader(file).fields
    told = {key: fields[key].contents() for key in (_SPLITS, _STARTS) if key in fields}
    if told.get(_SPLITS) in _DIGIT_BY_DIGIT:
        from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

        backend: Any = tokenizer.backend_tokenizer
        backend.pre_tokenizer = Sequence(
            [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
        )
    if told.get(_STARTS) is False:
        tokenizer.bos_token = None
    return tokenizer
