"""Models in GGUF files: unpacked once into a folder as Transformers saves models, and read there.

Transformers takes half a minute of processor time for the 135 M weights of SmolLM2, and leaves out
of model and tokenizer what the file says of starts, ends and numbers.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fedhlm_app.models.sources import (
    SMOLLM2,
    SMOLLM2_SMALL,
    PairError,
    cache_folder,
    from_transformers,
    gguf_file,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Part = Literal["tokenizer", "model", "small"]

_DIGIT_BY_DIGIT = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"})
"""Values of ``tokenizer.ggml.pre`` for which llama.cpp splits numbers (llama-vocab.cpp)."""

_ENDS = ("<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<|end_of_text|>", "<end_of_turn>")
"""Tokens that end a text or a turn wherever there are such, as llama.cpp takes them."""

_SPLITS, _STARTS = "tokenizer.ggml.pre", "tokenizer.ggml.add_bos_token"
_TOKENS, _TYPES = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"

_PADDING = re.compile(r"\[PAD\d+\]")
"""Tokens that llama.cpp's converter makes up for rows that none has (`convert_hf_to_gguf.py`)."""


def unpacked(name: str, part: Part = "tokenizer") -> str:
    """Folder that a GGUF file's model was unpacked to, now or before; other names as they are.

    ``"smollm2-small"`` is made of that of ``"smollm2"`` in the same way.

    Weights are float16 there. Folders are in :func:`cache_folder`, and good for one state of the
    file and one version of Transformers.

    Parameters
    ----------
    name : str
        A model's.
    part : {"tokenizer", "model"}
        Its tokenizer and config, or its weights; of ``"smollm2-small"`` it is always both.

    Raises
    ------
    PairError
        If the file is not there, or nothing that Transformers can read.
    """
    file = gguf_file(name)
    if file is None:
        return name
    part = "small" if name == SMOLLM2_SMALL else part
    stat = file.stat()
    key = [str(file.resolve()), stat.st_size, stat.st_mtime_ns, version("transformers")]
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    folder = cache_folder() / f"{file.stem}-{digest}" / part
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        doing = "making it of smollm2 in" if part == "small" else f"unpacking its {part} to"
        print(f"{name}: {doing} {folder}, once", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as unfinished:
            try:
                _WRITE[part](name, file, Path(unfinished) / part)
            except PairError:
                raise
            except Exception as error:  # a broken file makes its readers raise all kinds
                reason = f"{type(error).__name__}: {error}"
                raise PairError(f"model {name!r} cannot be unpacked: {reason}") from error
            try:
                os.rename(Path(unfinished) / part, folder)
            except OSError:
                # Another process was first: a folder with files is "not empty", not "there".
                if not folder.is_dir():
                    raise
    return str(folder)


def _write_tokenizer(name: str, file: Path, folder: Path) -> None:
    """Tokenizer and config, which knows where texts begin and end."""
    from transformers import AutoConfig

    tokenizer = _tokenizer(name, file)
    source, what = str(file.parent), f"config of {name!r}"
    config: Any = from_transformers(AutoConfig, source, what, gguf_file=file.name)
    known = tokenizer.get_vocab()
    ends = {tokenizer.eos_token_id, *(known[one] for one in _ENDS if one in known)} - {None}
    config.bos_token_id = tokenizer.bos_token_id
    config.pad_token_id = tokenizer.pad_token_id
    config.eos_token_id = sorted(ends) or None
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _write_model(name: str, file: Path, folder: Path) -> None:
    """Weights, with the config above."""
    import torch
    import transformers

    source, what = str(file.parent), f"model {name!r}"
    config: Any = from_transformers(transformers.AutoConfig, unpacked(name), what)
    logging: Any = transformers.logging
    logging.disable_progress_bar()
    told = logging.get_verbosity()
    options: dict[str, Any] = {"config": config, "dtype": torch.float16, "gguf_file": file.name}
    # A progress bar that no option turns off, and advice about kernels for half precision.
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        logging.set_verbosity_error()
        model: Any = from_transformers(transformers.AutoModelForCausalLM, source, what, **options)
        logging.set_verbosity(told)
    # Unpacked, it is a model like any other.
    model.hf_quantizer = None
    vars(model.config).pop("quantization_config", None)
    model.save_pretrained(folder)


def _write_small(name: str, file: Path, folder: Path) -> None:
    """First layers of the model, fitted on the built-in texts."""
    from fedhlm_app.models.carving import carve  # which loads models itself

    carve(SMOLLM2, "first", 4, folder)


_WRITE = {"tokenizer": _write_tokenizer, "model": _write_model, "small": _write_small}


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
    told: dict[str, Any] = {
        key: fields[key].contents() for key in (_SPLITS, _STARTS, _TOKENS, _TYPES) if key in fields
    }
    backend: Any = tokenizer.backend_tokenizer
    _drop_padding(backend, told.get(_TOKENS, []), told.get(_TYPES, []))
    if told.get(_SPLITS) in _DIGIT_BY_DIGIT:
        from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

        backend.pre_tokenizer = Sequence(
            [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
        )
    if told.get(_STARTS) is False:
        tokenizer.bos_token = None
    return tokenizer


def _drop_padding(backend: Any, tokens: Sequence[str], types: Sequence[int]) -> None:
    """Leave out tokens that stand for no text, of which models of one family have more or fewer.

    Parameters
    ----------
    backend : tokenizers.Tokenizer
        Changed in place.
    tokens, types : sequence
        Of the file.
    """
    from gguf import TokenType
    from tokenizers import Tokenizer

    told = zip(tokens, types, strict=False)
    padding = {one for one, kind in told if kind == TokenType.UNUSED and _PADDING.fullmatch(one)}
    if not padding:
        return
    whole = json.loads(backend.to_str())
    model, vocab = whole["model"], whole["model"]["vocab"]
    if isinstance(vocab, dict):
        model["vocab"] = {one: row for one, row in vocab.items() if one not in padding}
        model["merges"] = [one for one in model.get("merges", []) if "".join(one) not in padding]
    else:  # pieces and their scores, whose places are their ids
        while vocab and vocab[-1][0] in padding:
            vocab.pop()
    backend.model = Tokenizer.from_str(json.dumps(whole)).model
