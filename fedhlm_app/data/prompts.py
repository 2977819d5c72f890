"""Items as prompts of a workload: generate, score or classify."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from fedhlm_app.data.chats import Encoded, encoded
from fedhlm_app.data.files import DataError
from fedhlm_app.data.items import Items
from fedhlm_app.models.vocabulary import label_tokens, topic_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Workload = Literal["generate", "score", "classify"]

TEXT_TOKENS = 92
"""Most text tokens of a sequence, as the built-in pair was trained on."""


@dataclass(frozen=True)
class Prompt:
    """What a client starts from.

    Attributes
    ----------
    tokens : ndarray
        int64 [tokens], bos first where the tokenizer has one.
    given : int
        How many leading tokens are context. The rest, if any, is predicted token by token with
        the true token as context (`score`).
    answer : int
        The true next token after ``tokens`` (`classify`: the label's); -1 where there is none.
    """

    tokens: np.ndarray
    given: int
    answer: int = -1


def prompts(
    items: Items,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[int] | np.ndarray,
    workload: Workload = "generate",
    prompt_tokens: int = 16,
    text_tokens: int = TEXT_TOKENS,
) -> list[Prompt]:
    """Make the prompts of some items.

    Parameters
    ----------
    items : Items
        Texts and labels.
    tokenizer : PreTrainedTokenizerBase
        Of the model pair.
    rows : sequence of int
        Items, in the order wanted.
    workload : {"generate", "score", "classify"}
        ``generate``: bos and the first ``prompt_tokens`` of the text, to be continued freely.
        ``score``: bos and the text, every token after the first predicted from the true text
        before it. ``classify``: bos, the text and what asks for the label; the label's token is
        the answer. Of a chat the prompt is all before its last answer, in the chat template; to
        ``score`` is the answer.
    prompt_tokens : int
        Longest prompt of ``generate``, without bos, at least 1. Longest prompt of a chat, which
        loses its beginning rather than the question at its end.
    text_tokens : int
        Longest text of the other two, at least 2; of a chat, with a prompt of `prompt_tokens`.

    Returns
    -------
    list of Prompt
        One an item.

    Raises
    ------
    DataError
        For an unknown workload, a length out of range, or chats that the workload or the tokenizer
        has no use for.
    """
    _check(workload, prompt_tokens, text_tokens)
    if not len(rows):
        return []
    made = encoded(items, tokenizer, rows)
    if items.chat:
        if workload == "classify":
            raise DataError(
                f"workload = 'classify': {items.name} has chats; allowed are generate and score"
            )
        most = 0 if workload == "generate" else max(0, text_tokens - prompt_tokens)
        return [_chat(one, prompt_tokens, most) for one in made]
    longest = prompt_tokens if workload == "generate" else text_tokens
    texts = [np.asarray([*one.start, *one.text[:longest]], dtype=np.int64) for one in made]
    if workload == "generate":
        return [Prompt(text, len(text)) for text in texts]
    if workload == "score":
        return [Prompt(text, 1) for text in texts]
    topic = topic_tokens(tokenizer)
    answers = list(label_tokens(tokenizer, items.label_names).values())
    asking = [np.append(text, topic).astype(np.int64) for text in texts]
    return [
        Prompt(tokens, len(tokens), answers[label])
        for tokens, label in zip(asking, items.labels(rows), strict=True)
    ]


def _check(workload: str, prompt_tokens: int, text_tokens: int) -> None:
    """Refuse an unknown workload and lengths out of range."""
    if workload not in ("generate", "score", "classify"):
        raise DataError(
            f"workload = {workload!r} is unknown; allowed are generate, score, classify"
        )
    if prompt_tokens < 1:
        raise DataError(f"prompt-tokens = {prompt_tokens} is not allowed; it must be at least 1")
    if text_tokens < 2:
        raise DataError(f"text_tokens = {text_tokens} is not allowed; it must be at least 2")


def _chat(one: Encoded, prompt_tokens: int, answer_tokens: int) -> Prompt:
    """A chat of at most so many tokens of prompt and of answer."""
    start = one.start[-prompt_tokens:]
    return Prompt(np.asarray([*start, *one.text[:answer_tokens]], dtype=np.int64), len(start))
