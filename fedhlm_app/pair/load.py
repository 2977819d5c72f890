"""Loading a model pair: the built-in one, or any two causal LMs with one tokenizer.

A device loads only the SLM and the server only the LLM; each is kept per process, since a
simulation runs many clients in one. What can be refused from a config or a tokenizer alone is
refused before weights are read.
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
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from fedhlm_app.pair.packing import PACKED_FORMAT, read_packed
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

BUILTIN = "builtin"
"""Name of the pair that comes with FedHLM, for ``slm`` and for ``llm``."""

BUILTIN_LABELS = ("world", "sports", "business", "scitech")
"""Label names of the built-in corpus and of AG News, in AG News' order."""

TOPIC_PROMPT = " Topic:"
"""Stands between text and label for models without a topic token."""

_TOPIC_TOKEN = "<|topic|>"


class PairError(ValueError):
    """Two models cannot work as a pair, or one cannot be loaded as asked."""


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


def label_token(name: str) -> str:
    """Give the special token of a label name, such as ``<|world|>`` for ``world``."""
    return f"<|{name}|>"


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


@lru_cache(maxsize=8)
def load_tokenizer(name: str = BUILTIN) -> PreTrainedTokenizerBase:
    """Load a model's tokenizer.

    Parameters
    ----------
    name : str
        ``"builtin"``, a folder, or a hub name.

    Raises
    ------
    PairError
        If there is no tokenizer under that name.
    """
    source = str(asset_path("pair")) if name == BUILTIN else name
    tokenizer: PreTrainedTokenizerBase = _from_transformers(
        AutoTokenizer, source, f"tokenizer of {name!r}"
    )
    return tokenizer


def check_same_tokenizer(slm: str, llm: str) -> None:
    """Refuse two models that do not read text as the same token ids.

    Compares the vocabularies, special tokens included, without loading weights.

    Raises
    ------
    PairError
        Naming both models and a token on which they differ.
    """
    if slm == llm:
        return
    small = load_tokenizer(slm).get_vocab()
    large = load_tokenizer(llm).get_vocab()
    if small == large:
        return
    differing = min(
        (token for token in small.keys() | large.keys() if small.get(token) != large.get(token)),
        key=lambda token: (small.get(token, large.get(token, 0)), token),
    )
    raise PairError(
        f"slm {slm!r} ({len(small)} tokens) and llm {llm!r} ({len(large)} tokens) have different "
        f"tokenizers: token {differing!r} is {small.get(differing)} in the slm and "
        f"{large.get(differing)} in the llm; give two models with one tokenizer"
    )


def check_context(name: str, longest: int, role: str = "llm") -> None:
    """Refuse a context that is longer than a model's positions, from its config alone.

    Parameters
    ----------
    name : str
        ``"builtin"``, a folder, or a hub name.
    longest : int
        Tokens of the longest context, prompt and new tokens together.
    role : str
        ``"slm"`` or ``"llm"``: which of the built-in models, and the word in the message.

    Raises
    ------
    PairError
        If ``longest`` exceeds ``max_position_embeddings``.
    """
    source = str(asset_path(f"pair/{role}")) if name == BUILTIN else name
    config = _from_transformers(AutoConfig, source, f"config of {role} {name!r}")
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and longest > positions:
        raise PairError(
            f"{role} {name!r} has {positions} positions, but a context of {longest} tokens was "
            f"asked for; allowed are prompt and new tokens of at most {positions} together"
        )


def has_topic_token(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Tell whether a tokenizer has the topic token of a pair trained here."""
    return _TOPIC_TOKEN in tokenizer.get_vocab()


def topic_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Give the tokens that ask for the label: the topic token, or :data:`TOPIC_PROMPT`."""
    vocabulary = tokenizer.get_vocab()
    if _TOPIC_TOKEN in vocabulary:
        return [int(vocabulary[_TOPIC_TOKEN])]
    return [int(token) for token in tokenizer.encode(TOPIC_PROMPT, add_special_tokens=False)]


def label_tokens(
    tokenizer: PreTrainedTokenizerBase, label_names: Sequence[str] = BUILTIN_LABELS
) -> dict[str, int]:
    """Find the token that answers with each label.

    A tokenizer trained here has one special token per label. For any other, a label is
    represented by the first token of its name as a word (with a leading space).

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
        Any tokenizer.
    label_names : sequence of str
        At least one name.

    Returns
    -------
    dict of str to int
        Label name to token id, in the order given; ids are distinct.

    Raises
    ------
    PairError
        If two labels would be the same token.
    """
    vocabulary = tokenizer.get_vocab()
    found: dict[str, int] = {}
    for name in label_names:
        special = vocabulary.get(label_token(name))
        if special is None:
            special = tokenizer.encode(f" {name}", add_special_tokens=False)[0]
        for other, token in found.items():
            if token == special:
                raise PairError(
                    f"labels {other!r} and {name!r} both begin with token {special} of this "
                    f"tokenizer; give label names whose first tokens differ"
                )
        found[name] = int(special)
    return found


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
        model = _from_transformers(AutoModelForCausalLM, name, f"model {name!r}", dtype=dtype)
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


def _from_transformers(kind: Any, source: str, what: str, **options: Any) -> Any:
    """Call ``kind.from_pretrained`` and name what was asked for when it fails."""
    try:
        return kind.from_pretrained(source, **options)
    except (OSError, ValueError) as error:
        raise PairError(
            f"cannot load the {what}: {error}; allowed are 'builtin', a folder written by "
            f"save_pretrained, or a hub name"
        ) from error
