"""What is known of a model pair without reading weights: tokenizer, label tokens, context length.

PyTorch and Transformers take seconds to import, so they come with the first call that needs them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
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

_WHOLE_FILES = ("TokenizersBackend", "PreTrainedTokenizerFast")
"""Classes that Transformers names where `tokenizer.json` says everything."""

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
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    source = str(asset_path("pair")) if name == BUILTIN else unpacked(name)
    file = Path(source, "tokenizer_config.json")
    declared = json.loads(file.read_text("utf-8")).get("tokenizer_class") if file.is_file() else ""
    # AutoTokenizer goes by the model's type, and makes Qwen's of any tokenizer beside a Qwen2.
    kind = PreTrainedTokenizerFast if declared in _WHOLE_FILES else AutoTokenizer
    tokenizer: PreTrainedTokenizerBase = from_transformers(kind, source, f"tokenizer of {name!r}")
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
        Naming both models and a token on which they differ, or that the LLM cannot choose.
    """
    if one_tokenizer(slm, llm):
        check_logits(slm, llm)
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


def check_logits(slm: str, llm: str) -> None:
    """Refuse an LLM that has no logits for token ids that an SLM of the same tokenizer drafts.

    Raises
    ------
    PairError
        Naming both models.
    """
    small, large = vocabulary_size(slm), vocabulary_size(llm)
    if small is not None and large is not None and large < small:
        raise PairError(
            f"slm {slm!r} and llm {llm!r} have one tokenizer, of which the slm writes {small} "
            f"token ids, and the llm only {large}; give an llm with a logit for each of them"
        )


@lru_cache(maxsize=8)
def token_ids(name: str) -> int:
    """One more than the largest token id of a model's tokenizer.

    Raises
    ------
    PairError
        If there is no tokenizer under that name.
    """
    return 1 + max(load_tokenizer(name).get_vocab().values())


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
    """Token ids that a model reads and writes; None where its config does not say.

    Rows of its embedding and its head that no token of its tokenizer has are padding, of which
    models of one family have more or fewer (Qwen2.5's 151,665 tokens have 151,936 rows or 152,064),
    and are left out when it is loaded.
    """
    rows = _config_value(name, "llm", "vocab_size")
    # The built-in ones have no padding, and every run would wait for PyTorch to be told so.
    return rows if rows is None or name == BUILTIN else min(rows, token_ids(name))


def _config_value(name: str, role: str, key: str) -> int | None:
    """An entry of a model's config; None where it has none."""
    file = asset_path(f"pair/{role}/config.json") if name == BUILTIN else None
    if lean := lean_file(name):
        file = lean.with_name("config.json")
    if file:
        # Written by us and known to be good: no need for Transformers to read it.
        config = json.loads(file.read_text(encoding="utf-8"))
        told: int | None = (config | config.get("text_config", {})).get(key)
        return told
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
                    f"tokenizer; give labels as words, not numbers, whose first tokens differ"
                )
        found[name] = int(special)
    return found
