"""What is known of a model pair without reading weights: tokenizer, label tokens, context length.

PyTorch and Transformers take seconds to import, so they come with the first call that needs them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, cast

from fedhlm_app.models.gguf import unpacked
from fedhlm_app.models.sources import BUILTIN, PairError, from_transformers, lean_file
from fedhlm_assets import asset_path

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BUILTIN_LABELS = ("world", "sports", "business", "scitech")
"""Label names of the built-in corpus and of AG News, in AG News' order."""

TOPIC_PROMPT = " Topic:"
"""Stands between text and label for models without a topic token."""

_TOPIC_TOKEN = "<|topic|>"


@lru_cache(maxsize=8)
def load_tokenizer(name: str = BUILTIN, *, lean: bool = True) -> PreTrainedTokenizerBase:
    """Load a model's tokenizer.

    Parameters
    ----------
    name : str
        ``"builtin"``, ``"smollm2"``, ``"smollm2-small"``, a GGUF file, a folder, or a hub name.
    lean : bool
        That of a model in ONNX or llama.cpp's format is read without Transformers.

    Raises
    ------
    PairError
        If there is no tokenizer under that name.
    """
    if lean and (file := lean_file(name)):
        from fedhlm_app.models.lean_tokenizer import LeanTokenizer

        return cast("PreTrainedTokenizerBase", LeanTokenizer(file.parent))
    from transformers import AutoTokenizer

    source = str(asset_path("pair")) if name == BUILTIN else unpacked(name)
    tokenizer: PreTrainedTokenizerBase = from_transformers(
        AutoTokenizer, source, f"tokenizer of {name!r}"
    )
    return tokenizer


def one_tokenizer(slm: str, llm: str) -> bool:
    """Whether two models read text as the same token ids, special tokens included.

    Raises
    ------
    PairError
        If one has no tokenizer.
    """
    return slm == llm or load_tokenizer(slm).get_vocab() == load_tokenizer(llm).get_vocab()


def check_same_tokenizer(slm: str, llm: str) -> None:
    """Refuse two models that do not read text as the same token ids.

    Compares the vocabularies, special tokens included, without loading weights.

    Raises
    ------
    PairError
        Naming both models and a token on which they differ.
    """
    if one_tokenizer(slm, llm):
        return
    small = load_tokenizer(slm).get_vocab()
    large = load_tokenizer(llm).get_vocab()
    differing = min(
        (token for token in small.keys() | large.keys() if small.get(token) != large.get(token)),
        key=lambda token: (small.get(token, large.get(token, 0)), token),
    )
    raise PairError(
        f"slm {slm!r} ({len(small)} tokens) and llm {llm!r} ({len(large)} tokens) have different "
        f"tokenizers: token {differing!r} is {small.get(differing)} in the slm and "
        f"{large.get(differing)} in the llm; give two models with one tokenizer "
        "(`fedhlm pair carve` makes a small one out of a large)"
    )


@lru_cache(maxsize=8)
def fingerprint(name: str) -> str:
    """16 hexadecimal digits that differ where two models read text as other token ids.

    Parameters
    ----------
    name : str
        ``"builtin"``, a folder, or a hub name.

    Raises
    ------
    PairError
        If there is no tokenizer under that name.
    """
    pairs = sorted(load_tokenizer(name).get_vocab().items())
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()[:16]


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
    positions = _config_value(name, role, "max_position_embeddings")
    if positions is not None and longest > positions:
        raise PairError(
            f"{role} {name!r} has {positions} positions, but a context of {longest} tokens was "
            f"asked for; allowed are prompt and new tokens of at most {positions} together"
        )


def vocabulary_size(name: str) -> int | None:
    """Token ids a model has logits for, from its config; None where that does not say."""
    return _config_value(name, "llm", "vocab_size")


def _config_value(name: str, role: str, key: str) -> int | None:
    """An entry of a model's config; None where it has none."""
    if name == BUILTIN:
        # Written by us and known to be good: no need for Transformers to read it.
        config = json.loads(asset_path(f"pair/{role}/config.json").read_text(encoding="utf-8"))
        return int(config[key])
    from transformers import AutoConfig

    found = from_transformers(AutoConfig, unpacked(name), f"config of {role} {name!r}")
    found = found.get_text_config()
    value: int | None = getattr(found, key, None)
    return value


def topic_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Give the tokens that ask for the label: the topic token, or :data:`TOPIC_PROMPT`."""
    vocabulary = tokenizer.get_vocab()
    if _TOPIC_TOKEN in vocabulary:
        return [int(vocabulary[_TOPIC_TOKEN])]
    return [int(token) for token in tokenizer.encode(TOPIC_PROMPT, add_special_tokens=False)]


def label_token(name: str) -> str:
    """Give the special token of a label name, such as ``<|world|>`` for ``world``."""
    return f"<|{name}|>"


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
        If there is no label, or two would be the same token.
    """
    if not label_names:
        raise PairError(
            "the dataset has no labels, which classifying needs: name their column with "
            "label-column (by default label, topic or class)"
        )
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
