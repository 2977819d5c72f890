"""What a completion says of the next token: its id, and log-probabilities where there are any.

Servers name ids in ways of their own; each is read, and none is believed unchecked.

==============================  ==================================================================
``token_ids``                   vLLM and LMDeploy, asked by ``return_token_ids``
``logprobs.tokens``             ``token_id:17``: vLLM, asked by ``return_tokens_as_token_ids``
``logprobs.content[].id``       llama.cpp; tokens that are parts of a character are left out
text alone                      any; `Words.token_of`
==============================  ==================================================================
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hlm.transport import LinkDown
from servers.words import Words, whole

_NAMED = "token_id:"
_SLACK = 0.1
"""Nats by which the token that was chosen may lie below another: rounding in half precision."""


class BadAnswer(LinkDown):
    """An answer that says nothing usable."""


class Unnamed(BadAnswer):
    """An answer that is in order, and does not tell which token it is."""


@dataclass(frozen=True)
class Told:
    """A next token.

    Attributes
    ----------
    token : int
        The server's choice.
    log_probs : mapping
        Natural logarithms of probabilities by token, <= 0; empty where none were told.
    more : tuple of int
        Tokens that are known to follow it.
    """

    token: int
    log_probs: Mapping[int, float] = field(default_factory=dict)
    more: tuple[int, ...] = ()


def choices_of(answer: Any, count: int) -> list[Mapping[str, Any]]:
    """The choices of an answer, one for each of `count` prompts, in their order.

    Raises
    ------
    BadAnswer
        When there are not as many.
    """
    # llama.cpp answers several prompts with a list of answers.
    parts = answer if isinstance(answer, list) else [answer]
    try:
        found = [choice for part in parts for choice in part["choices"]]
        found.sort(key=lambda choice: int(choice.get("index", 0)))
    except (AttributeError, KeyError, TypeError, ValueError):
        raise BadAnswer("an answer without choices") from None
    if len(found) != count or not all(isinstance(one.get("text"), str) for one in found):
        raise BadAnswer(f"{len(found)} choices with text for {count} prompts")
    return found


def used(answer: Any, what: str) -> int | None:
    """Tokens that an answer counts as `what` ("prompt" or "completion"), None if it does not."""
    parts = answer if isinstance(answer, list) else [answer]
    told = [part.get("usage") for part in parts]
    counts = [one.get(f"{what}_tokens") if isinstance(one, dict) else None for one in told]
    found = [count for count in counts if type(count) is int]
    return sum(found) if len(found) == len(counts) else None


def tokens_of(choice: Mapping[str, Any], words: Words) -> list[Told]:
    """The tokens of a choice, by the ids that it names.

    Parameters
    ----------
    choice : mapping
        With text, as `choices_of` gives it, or an event of a stream.
    words : Words
        Of the model.

    Raises
    ------
    Unnamed
        When it names none, or not all.
    BadAnswer
        When they are none of the vocabulary, do not fit the text, or log-probabilities are none.
    """
    text, ids, logprobs = choice["text"], choice.get("token_ids"), choice.get("logprobs") or {}
    listed = _listed(logprobs)
    found = listed
    if isinstance(ids, list):
        known = [told.log_probs for told in listed or []]
        known = known if len(known) == len(ids) else [{}] * len(ids)
        found = [Told(token, values) for token, values in zip(ids, known, strict=True)]
    if not found:
        raise Unnamed("an answer that names no token ids")
    for told in found:
        _check(told, words)
    if len(found) == 1 and not words.says(found[0].token, text):
        piece = words.piece(found[0].token)
        if piece is not None and whole(text):
            raise BadAnswer(f"token {found[0].token} is {piece!r}, and not {text!r}")
        # Ids beside text lack the parts of characters; named one by one they are all there.
        if ids is None and logprobs.get("content"):
            raise Unnamed("an answer that does not name the tokens of a character")
    for told in found:
        _check_greedy(told)
    return found


def token_of_text(choice: Mapping[str, Any], words: Words) -> Told | None:
    """The one token of a choice that names no ids, by its text; None where that does not tell.

    Raises
    ------
    BadAnswer
        When log-probabilities are none.
    """
    text = choice["text"]
    token = words.token_of(text) if whole(text) else None
    if token is None and not text and choice.get("finish_reason") == "stop":
        token = words.end
    if token is None:
        return None
    listed = _by_text(choice.get("logprobs"), words)
    told = Told(token, listed if token in listed else {})
    _check(told, words)
    _check_greedy(told)
    return told


def _check(told: Told, words: Words) -> None:
    for token in (told.token, *told.log_probs):
        if type(token) is not int or not 0 <= token < words.size:
            raise BadAnswer(f"token {token!r}: the vocabulary has {words.size}")
    for token, log_prob in told.log_probs.items():
        if not isinstance(log_prob, int | float) or not log_prob <= _SLACK:
            raise BadAnswer(f"log-probability {log_prob!r} of token {token}")


def _check_greedy(told: Told) -> None:
    if told.log_probs:
        own, best = told.log_probs.get(told.token, -math.inf), max(told.log_probs.values())
        if own < best - _SLACK:
            raise BadAnswer(
                f"token {told.token} at log-probability {own:.3f} where another has {best:.3f}: "
                "the server does not decode greedily (penalties, or a sampler of its own?)"
            )


def _listed(logprobs: Any) -> list[Told] | None:
    """Tokens that log-probabilities name by their ids; None where they name none."""
    if not isinstance(logprobs, Mapping):
        return None
    try:
        if content := logprobs.get("content"):
            return [
                Told(one["id"], {top["id"]: top["logprob"] for top in [*one["top_logprobs"], one]})
                for one in content
            ]
        names, tops = logprobs.get("tokens") or [], logprobs.get("top_logprobs") or []
        own = logprobs.get("token_logprobs") or []
        if not names or not all(str(name).startswith(_NAMED) for name in names):
            return None
        ids = [int(name.removeprefix(_NAMED)) for name in names]
        found = []
        for place, token in enumerate(ids):
            top = tops[place] if place < len(tops) and tops[place] else {}
            known = {int(name.removeprefix(_NAMED)): value for name, value in top.items()}
            if place < len(own):
                known[token] = own[place]
            found.append(Told(token, known))
        return found
    except (AttributeError, KeyError, TypeError, ValueError):
        raise BadAnswer("log-probabilities that name no tokens") from None


def _by_text(logprobs: Any, words: Words) -> dict[int, float]:
    """Log-probabilities of the first token by ids, of those tokens whose text tells them."""
    tops = logprobs.get("top_logprobs") if isinstance(logprobs, Mapping) else None
    if not tops or not isinstance(tops, list) or not isinstance(tops[0], Mapping):
        return {}
    known = ((words.token_of(text), value) for text, value in tops[0].items())
    return {token: value for token, value in known if token is not None}
