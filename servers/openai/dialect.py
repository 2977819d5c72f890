"""What a server understands, found out by trial before the first text.

Servers say little of what they can do, and answer what they do not know with an error or not at
all. So a passage is continued by a token, first in the richest way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

from servers.openai.answers import BadAnswer, Unnamed, choices_of, token_of_text, tokens_of, used
from servers.openai.client import LIMITED, Client, Refused
from servers.words import Words

COMPLETIONS, MODELS = "/completions", "/models"
NAMING = "--model NAME, or llm-backend=openai:URL#NAME"

PASSAGE = "The harbour of Gdynia, 3,471 ships a year: naïve plans (none), 12 new cranes and the"
"""Of words, numbers and marks: tokenizers that differ cut it into other numbers of tokens."""

_GREEDY = {"temperature": 0.0, "top_p": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
_FIELDS: tuple[dict[str, Any], ...] = (
    {
        "logprobs": 5,
        "n_probs": 5,
        "repetition_penalty": 1.0,
        "repeat_penalty": 1.0,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
        "cache_prompt": True,
    },
    {
        "repetition_penalty": 1.0,
        "repeat_penalty": 1.0,
        "return_token_ids": True,
        "cache_prompt": True,
    },
    {"logprobs": 5},
    {},
)
"""Fields beyond OpenAI's own, richest first; the penalties are what servers may set unasked."""


class DialectError(ValueError):
    """A server that cannot stand behind the backend; the message says what it lacks."""


@dataclass(frozen=True)
class Dialect:
    """How one server is asked.

    Attributes
    ----------
    ids : bool
        Prompts are token ids, else text.
    named : bool
        Answers name token ids, else their text tells them.
    lists : bool
        Several prompts go into one request.
    streams : bool
        Tokens come as they are written, with their ids.
    lead : bool
        The server puts the start token in front of every text that it is sent.
    fields : mapping
        Beside prompt and length, of every request.
    """

    ids: bool
    named: bool = True
    lists: bool = False
    streams: bool = False
    lead: bool = False
    fields: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        told = "logprobs" in self.fields
        return ", ".join(
            [
                "token ids" if self.ids else "text",
                "answers with ids" if self.named else "answers as text",
                *(["several prompts a request"] if self.lists else []),
                *(["streams"] if self.streams else []),
                *([] if told else ["no log-probabilities"]),
            ]
        )

    def prompt(self, ids: Sequence[int], words: Words) -> Any:
        """A text as the server takes it; None where it would read it as other tokens."""
        if self.ids:
            return list(ids)
        text = words.text_of(ids)
        if text is None or not self.lead:
            return text
        if ids[0] != words.start:
            return None
        return words.text_of(ids[1:])

    def body(self, model: str, prompt: Any, tokens: int) -> dict[str, Any]:
        """A request for so many tokens after a prompt, or after each of a list of them."""
        found = {"model": model, "prompt": prompt, "max_tokens": tokens, **_GREEDY, **self.fields}
        return {name: value for name, value in found.items() if name != "model" or value}


def choose_model(client: Client, model: str) -> tuple[str, int | None]:
    """The name to ask for, and its longest text in tokens where the server tells.

    Raises
    ------
    DialectError
        When the server does not have it, or none was named and it has several.
    LinkDown
        When it does not answer.
    """
    try:
        answer = client.ask(MODELS)
    except Refused as error:
        if model:
            return model, None
        raise DialectError(f"{error}: it does not tell its models; name one ({NAMING})") from None
    known = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(known, list) or not all(isinstance(one, dict) for one in known):
        raise DialectError(
            f"what answers at {client.url} does not speak OpenAI's API; the URL ends in /v1 as a "
            "rule, as in http://127.0.0.1:8000/v1"
        )
    lengths = {str(one.get("id")): one.get("max_model_len") for one in known}
    names = ", ".join(sorted(lengths)[:8]) or "none"
    if not model and len(lengths) != 1:
        raise DialectError(f"{client.url} serves several models; name one ({NAMING}): {names}")
    chosen = model or next(iter(lengths))
    if chosen not in lengths:
        raise DialectError(f"{client.url} does not serve the model {model!r}; it serves {names}")
    longest = lengths[chosen]
    return chosen, longest if type(longest) is int else None


def find_dialect(client: Client, model: str, words: Words, tokenizer: str) -> Dialect:
    """How a server is asked about this model.

    Parameters
    ----------
    client : Client
        Of the server.
    model : str
        As the server names it.
    words : Words
        The tokenizer that devices use.
    tokenizer : str
        Its name, for errors.

    Raises
    ------
    DialectError
        When it has no completions, reads the passage as other tokens than the tokenizer does, or
        takes text alone where the tokenizer does not give it back.
    LinkDown
        When it does not answer.
    """
    ids = words.encode(PASSAGE)
    if words.text_of(ids) is None:
        raise DialectError(f"the tokenizer {tokenizer!r} does not give text back as it was")
    trial = _Trial(client, model, words)
    count = trial.count()
    # One that does not count shows itself by answers whose ids and texts do not fit.
    lead = count == len(ids) + 1 and words.start is not None
    if count is not None and count != len(ids) + lead:
        raise DialectError(
            f"{client.url} reads a passage as {count} tokens, and the tokenizer {tokenizer!r} as "
            f"{len(ids)}: let llm (--llm) name the server's own, a folder or hub name"
        )
    found = trial.richest([words.start, *ids] if lead and words.start is not None else ids, lead)
    if found is None:
        raise DialectError(
            f"{client.url} names no token ids, and its text does not tell which tokens of "
            f"{tokenizer!r} it stands for"
        )
    if not (found.ids and found.named):
        return found
    lists = trial.takes_lists(found, ids)
    return replace(found, lists=lists, streams=trial.streams(found, ids))


class _Trial:
    """Asks for the token after the passage; a request that is refused is not sent again."""

    def __init__(self, client: Client, model: str, words: Words) -> None:
        self.client, self.model, self.words = client, model, words

    def ask(self, way: Dialect, prompt: Any) -> Any:
        body = way.body(self.model, prompt, 1)
        return self.client.ask(COMPLETIONS, body, again=LIMITED)

    def count(self) -> int | None:
        """Tokens that the server reads the passage as, where it tells."""
        for fields in _FIELDS[-2:]:
            try:
                answer = self.ask(Dialect(False, fields=fields), PASSAGE)
            except Refused as error:
                problem = error
                continue
            choices_of(answer, 1)
            return used(answer, "prompt")
        raise DialectError(f"no completions for model {self.model!r}: {problem}")

    def richest(self, ids: list[int], lead: bool) -> Dialect | None:
        """The first way of asking whose answer tells a token."""
        wrong: BadAnswer | None = None
        for takes_ids, fields in product((True, False), _FIELDS):
            way = Dialect(takes_ids, lead=lead, fields=fields)
            try:
                (choice,) = choices_of(self.ask(way, way.prompt(ids, self.words)), 1)
                try:
                    tokens_of(choice, self.words)
                    return way
                except Unnamed:
                    if token_of_text(choice, self.words) is not None:
                        return replace(way, named=False)
            except Refused:
                continue
            except BadAnswer as error:
                wrong = error
        if wrong is not None:
            raise DialectError(f"{self.client.url}: {wrong}")
        return None

    def takes_lists(self, way: Dialect, ids: list[int]) -> bool:
        """Whether it answers two prompts at once."""
        try:
            choices = choices_of(self.ask(way, [ids, ids[:-1]]), 2)
            return all(tokens_of(choice, self.words) for choice in choices)
        except (Refused, BadAnswer):
            return False

    def streams(self, way: Dialect, ids: list[int]) -> bool:
        """Whether it names the tokens that it streams."""
        body = way.body(self.model, way.prompt(ids, self.words), 2)
        try:
            with closing(self.client.stream(COMPLETIONS, body)) as events:
                return any(tokens_of(choices_of(event, 1)[0], self.words) for event in events)
        except (Refused, BadAnswer):
            return False
