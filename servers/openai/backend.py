"""The large model behind OpenAI's API: a draft is verified by the next token of its prefix.

Texts are kept here as tokens. The server keeps what it has read of them in its own prefix cache, so
a question is the whole text and costs it the new part.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from math import log
from typing import Any

import numpy as np
import torch

from hlm.verifiers import Need
from servers.backend import Feed, Unreadable
from servers.kept_texts import KeptTexts
from servers.openai.answers import (
    BadAnswer,
    Told,
    Unnamed,
    choices_of,
    token_of_text,
    tokens_of,
    used,
)
from servers.openai.client import Client
from servers.openai.dialect import COMPLETIONS, Dialect
from servers.openai.texts import Ahead, Text
from servers.words import Words, whole

PROMPTS = 64
"""Most prompts of a request."""
REQUESTS = 16
"""Most requests at a time, but for streams: to a server that takes one prompt each, say."""
PARTS = 6
"""Most tokens that one character is made of."""
_NEXT_BEST = 1e-3
"""Nats by which the server's choice is put above the others where they tie."""

logger = logging.getLogger(__name__)

Answer = Told | Unreadable


class OpenAIBackend(KeptTexts[Text]):
    """Next tokens of an OpenAI-compatible server, greedily (see `servers.backend.Backend`).

    Parameters
    ----------
    client : Client
        Reaches it.
    model : str
        As the server names it.
    words : Words
        The tokenizer of its model.
    dialect : Dialect
        How it is asked.
    vocab : int
        Tokens of the vocabulary, at least those of the tokenizer.
    max_sessions, max_context : int
        Texts kept, and the longest of them in tokens; both >= 1.
    """

    offers = Need.TOP
    slow = False

    def __init__(
        self,
        client: Client,
        model: str,
        words: Words,
        dialect: Dialect,
        vocab: int,
        max_sessions: int,
        max_context: int,
    ) -> None:
        super().__init__(Text, vocab, max_sessions, max_context)
        self.reading = f"{model or 'a model'} at {client.url} ({dialect})"
        self._client, self._model, self._words, self._dialect = client, model, words, dialect
        self._pool = ThreadPoolExecutor(REQUESTS, thread_name_prefix="openai")

    def score(self, feeds: Sequence[Feed]) -> list[torch.Tensor | Unreadable | None]:
        """Take in new tokens and ask for the next ones (see `servers.backend.Backend`).

        Raises
        ------
        LinkDown
            When the server does not answer, or with what is unusable.
        """
        begin = time.perf_counter()
        texts = [self.taken(feed) for feed in feeds]
        wanted = [
            (text, place, feed.follow)
            for text, feed in zip(texts, feeds, strict=True)
            if text is not None
            for place in feed.wanted.tolist()
        ]
        told = iter(self._told(wanted))
        if wanted:
            self.stats.passes += 1
            self.stats.seconds += time.perf_counter() - begin
        found: list[torch.Tensor | Unreadable | None] = []
        for text, feed in zip(texts, feeds, strict=True):
            if text is None:
                found.append(None)
                continue
            answers = [next(told) for _ in feed.wanted]
            bad = next((one for one in answers if isinstance(one, Unreadable)), None)
            found.append(bad or self._rows([one for one in answers if isinstance(one, Told)]))
            upto = int(feed.wanted[-1]) if len(feed.wanted) else 0
            self.stats.tokens += max(0, upto - text.asked)
            text.asked = max(text.asked, upto)
        return found

    def _told(self, wanted: Sequence[tuple[Text, int, int]]) -> list[Answer]:
        """What the server says of places of texts, of which a stream may go on with so many."""
        streamed = [
            index
            for index, (text, place, follow) in enumerate(wanted)
            if place == len(text.tokens) and (text.ahead or (follow and self._dialect.streams))
        ]
        # All of them are written at the same time, so they are waited for together.
        ahead = self._pool.map(lambda index: self._foretold(*wanted[index]), streamed)
        found = {index: told for index, told in zip(streamed, ahead, strict=True) if told}
        left = [index for index in range(len(wanted)) if index not in found]
        prompts = [wanted[index][0].tokens[: wanted[index][1]].tolist() for index in left]
        answers: dict[int, Answer] = dict(zip(left, self._next(prompts), strict=True))
        for index, told in answers.items():
            text, place, _ = wanted[index]
            if isinstance(told, Told) and told.more and place == len(text.tokens):
                text.ahead = Ahead(place, map(Told, told.more), [told.token])
        return [answers.get(index) or found[index] for index in range(len(wanted))]

    def _foretold(self, text: Text, place: int, follow: int) -> Told | None:
        """The token at a text's end by its stream, or by an earlier answer."""
        if text.ahead is None:
            text.ahead = Ahead(place, self._stream(text.tokens.tolist(), follow + 1))
        try:
            found = text.ahead.next(text.tokens)
        except BadAnswer as error:
            logger.warning("a stream of %s ended: %s", self._client.url, error)
            found = None
        if found is None:
            text.stop()
        return found

    def _stream(self, ids: list[int], most: int) -> Generator[Told, None, None]:
        """The tokens after a text as they are written; ends where they are not all named."""
        body = self._dialect.body(self._model, self._dialect.prompt(ids, self._words), most)
        with closing(self._client.stream(COMPLETIONS, body)) as events:
            for event in events:
                if not event.get("choices"):
                    continue
                (choice,) = choices_of(event, 1)
                try:
                    yield from tokens_of(choice, self._words)
                except Unnamed:
                    if choice["text"] or choice.get("finish_reason"):
                        return

    def _next(self, texts: Sequence[list[int]]) -> list[Answer]:
        """The token after each text."""
        if not self._dialect.lists or len(texts) < 2:
            return list(self._pool.map(self._next_alone, texts))
        found: list[Answer] = []
        for begin in range(0, len(texts), PROMPTS):
            part = texts[begin : begin + PROMPTS]
            answer = self._client.ask(COMPLETIONS, self._dialect.body(self._model, part, 1))
            for ids, choice in zip(part, choices_of(answer, len(part)), strict=True):
                try:
                    found.append(tokens_of(choice, self._words)[0])
                except Unnamed:
                    found.append(self._next_alone(ids))
        return found

    def _named(self, choice: Mapping[str, Any]) -> Told | None:
        """The token that a choice names; None where it names none, and its text must tell."""
        try:
            return tokens_of(choice, self._words)[0] if self._dialect.named else None
        except Unnamed:
            return None

    def _next_alone(self, ids: list[int]) -> Answer:
        prompt = self._dialect.prompt(ids, self._words)
        if prompt is None:
            return self._next_behind(ids)
        # A part of a character has no text; its tokens are told by the whole character.
        for most in range(1, PARTS + 1):
            answer = self._client.ask(COMPLETIONS, self._dialect.body(self._model, prompt, most))
            (choice,) = choices_of(answer, 1)
            if not self._dialect.ids and used(answer, "prompt") not in (None, len(ids)):
                return Unreadable("the server reads the text as other tokens")
            if most == 1 and (named := self._named(choice)) is not None:
                return named
            text, count = choice["text"], used(answer, "completion")
            if whole(text) or choice.get("finish_reason") == "stop":
                break
        if most == 1:
            # An end of text may be counted or not.
            one = count in (None, 1, int(bool(text)))
            told = token_of_text(choice, self._words) if one else None
            return told or Unreadable(f"no token, or several, that stand for {text!r}")
        first, *more = self._words.encode(text) or [-1]
        if not whole(text) or count != 1 + len(more):
            return Unreadable("a character whose tokens the server does not tell")
        return Told(first, more=tuple(more))

    def _next_behind(self, ids: list[int]) -> Answer:
        """The token after a text that text cannot say, if the server wrote its last ones itself.

        So where a text ends in line ends that were written one by one, and are read as one token.
        """
        for back in range(1, min(PARTS, len(ids))):
            prompt = self._dialect.prompt(ids[:-back], self._words)
            if prompt is None:
                continue
            body = self._dialect.body(self._model, prompt, back + 1)
            answer = self._client.ask(COMPLETIONS, body)
            (choice,) = choices_of(answer, 1)
            before = self._words.decode(ids[:-back])
            known = self._words.decode(ids).removeprefix(before)
            text = choice["text"]
            token = self._words.token_of(text.removeprefix(known))
            if (
                token is None
                or not text.startswith(known)
                or used(answer, "completion") != back + 1
            ):
                break
            return Told(token)
        return Unreadable("no text is read as just these tokens")

    def _rows(self, told: Sequence[Told]) -> torch.Tensor:
        """float32 [n, vocab], log-probabilities: those told, and what is left spread evenly."""
        rows = torch.empty(len(told), self.vocab)
        for row, one in zip(rows, told, strict=True):
            known = dict(one.log_probs) or {one.token: 0.0}
            left = max(1.0 - sum(map(np.exp, known.values())), 1e-12) / self.vocab
            row.fill_(min(log(left), *known.values()))
            row[list(known)] = torch.tensor(list(known.values()))
            row[one.token] = max(known.values()) + _NEXT_BEST
        return rows
