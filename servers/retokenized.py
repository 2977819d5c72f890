"""A large model behind another tokenizer than the devices': text is what both have in common.

To devices it is a backend of their own token ids. Where one asks for the token after its text, the
large model goes on from *its* tokens of that text until a word is whole, and the device's tokenizer
reads that word. A boundary that both tokenizers share is remembered, and what the large model wrote
up to one is never read anew: as long as a device takes its tokens, the text is the large model's
own greedy text. What a device put in their place is read into the large model's tokens behind the
last such boundary.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from hlm.sampling import checked_top_token
from hlm.verifiers import Need
from servers.backend import Backend, Feed, Unreadable
from servers.kept_texts import KeptText, KeptTexts
from servers.words import Words, ends_whole

AHEAD = 12
"""Most tokens that the large model writes before a word counts as whole."""

_OTHERS = -30.0
"""Logit of tokens that were not chosen, where the chosen one has 0."""


@dataclass
class _Text(KeptText):
    own: list[int] = field(default_factory=list)
    """Tokens of the large model, some perhaps ahead of `course`."""
    course: list[int] = field(default_factory=list)
    """Tokens of the device that the large model read, then those that it wants."""
    shared: list[tuple[int, int]] = field(default_factory=list)
    """So many tokens of `course` and so many of `own` are the same text."""


Asking = Generator[list[int], int, list[int]]
"""Asks for the large model's token after some, and ends with the device's at its places."""


class Retokenized(KeptTexts[_Text]):
    """Next tokens of a model with another tokenizer, greedily (see `servers.backend.Backend`).

    Parameters
    ----------
    model : Backend
        Of the large model's tokens.
    small, large : Words
        The devices' tokenizer, and the large model's.
    vocab : int
        Token ids that devices have logits for.
    """

    offers = Need.TOP

    def __init__(self, model: Backend, small: Words, large: Words, vocab: int) -> None:
        super().__init__(_Text, vocab, model.max_sessions, model.max_context)
        self.stats, self.slow = model.stats, model.slow
        self.reading = f"{model.reading}, as text: its tokenizer is another than the devices'"
        self._model, self._small, self._large = model, small, large
        self._start = [] if large.start is None else [large.start]

    def score(self, feeds: Sequence[Feed]) -> list[torch.Tensor | Unreadable | None]:
        """Take in new tokens and ask for the next ones (see `servers.backend.Backend`).

        Raises
        ------
        LinkDown
            When a model that runs elsewhere does not answer.
        """
        texts = [self.taken(feed) for feed in feeds]
        found: list[torch.Tensor | Unreadable | None] = [None] * len(feeds)
        asking: dict[int, Asking] = {}
        told: dict[int, int | None] = {}
        for index, (text, feed) in enumerate(zip(texts, feeds, strict=True)):
            if text is not None:
                asking[index], told[index] = self._read(text, feed.wanted.tolist()), None
                text.asked = max([text.asked, *feed.wanted[-1:].tolist()])
        while told:
            wanted: dict[int, tuple[Feed, list[int]]] = {}
            for index, token in told.items():
                try:
                    # A generator is begun by sending it nothing.
                    ids = asking[index].send(token)  # type: ignore[arg-type]
                except StopIteration as end:
                    found[index] = self._rows(end.value)
                except Unreadable as reason:
                    found[index] = reason
                else:
                    wanted[index] = feeds[index], ids
            told = {}
            for index, answer in zip(wanted, self._next(list(wanted.values())), strict=True):
                if isinstance(answer, Unreadable):
                    found[index] = answer
                else:
                    told[index] = answer
        return found

    def _read(self, text: _Text, places: list[int]) -> Asking:
        tokens = text.tokens.tolist()
        found = []
        for place in places:
            if text.course[:place] != tokens[:place] or not text.shared:
                self._rejoin(text, tokens[:place])
            if len(text.course) == place:
                yield from self._write(text)
            found.append(text.course[place])
        return found

    def _rejoin(self, text: _Text, tokens: list[int]) -> None:
        """Read what a device put in the place of the large model's words."""
        said = self._small.said(tokens)
        if said is None:
            raise Unreadable("it has a special token, which text does not tell")
        if not ends_whole(said):
            raise Unreadable("it is empty, or ends inside a character")
        same = _alike(text.course, tokens)
        shared = [(small, large) for small, large in text.shared if small <= same]
        own = self._large.extended(text.own[: shared[-1][1]], said) if shared else None
        if own is None:
            shared, own = [], self._large.extended(self._start, said)
        if own is None:
            raise Unreadable(f"the large model's tokenizer does not keep {said[-40:]!r} as it is")
        text.own, text.course = own, tokens
        text.shared = [*shared, (len(tokens), len(own))]

    def _write(self, text: _Text) -> Generator[list[int], int, None]:
        """Go on with the large model until a word is whole, and read it as the device would."""
        place, begin = text.shared[-1]
        if place < len(text.course):
            raise Unreadable("the large model has ended it")
        said, ended = [self._large.said(text.own[:begin]) or ""], False
        while len(said) <= AHEAD:
            at = begin + len(said) - 1
            if at == len(text.own):
                if at > (most := self._model.max_context):
                    raise Unreadable(f"it has more than {most} tokens of the large model")
                text.own.append((yield text.own.copy()))
            now = self._large.said(text.own[: at + 1])
            if ended := now is None:  # a special token
                break
            said.append(now)
            if said[-2] != said[0] and _between_words(*said[-2:]):
                said.pop()
                break
        whole = [n for n, one in enumerate(said) if n and one != said[0] and ends_whole(one)]
        if ended and not whole:
            if self._small.end is None:
                raise Unreadable("the large model has ended it, which no token of the device tells")
            text.course = [*text.course, self._small.end]
            return
        course = self._small.extended(text.course, said[whole[-1]]) if whole else None
        if course is None:
            raise Unreadable(f"the device's tokenizer does not keep {said[-1][-40:]!r} as it is")
        text.course = course
        text.shared.append((len(course), begin + whole[-1]))

    def _next(self, wanted: Sequence[tuple[Feed, list[int]]]) -> list[int | Unreadable]:
        """The large model's token after each list of its tokens."""
        found = self._model.score([self._feed(*one) for one in wanted]) if wanted else []
        answers: list[int | Unreadable] = []
        for one, logits in zip(wanted, found, strict=True):
            if logits is None:  # its place went to others of the same call
                (logits,) = self._model.score([self._feed(*one)])
            if isinstance(logits, torch.Tensor):
                answers.append(int(checked_top_token(logits)[0]))
            else:
                answers.append(logits or Unreadable("the large model has no place for it"))
        return answers

    def _feed(self, feed: Feed, ids: list[int]) -> Feed:
        held = self._model.held(feed.session)
        start = _alike(self._model.tokens(feed.session).tolist(), ids) if held else 0
        tokens, place = np.array(ids[start:], np.int64), np.array([len(ids)])
        return Feed(feed.session, start, tokens, place, owner=feed.owner)

    def _rows(self, tokens: list[int]) -> torch.Tensor:
        """float32 [n, vocab]: all of the probability on the tokens."""
        rows = torch.full((len(tokens), self.vocab), _OTHERS)
        rows[torch.arange(len(tokens)), torch.tensor(tokens, dtype=torch.int64)] = 0.0
        return rows


def _alike(one: list[int], other: list[int]) -> int:
    """How many tokens two texts begin with alike."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(one), len(other)))


def _between_words(text: str, further: str) -> bool:
    """Whether what a text goes on with begins another word."""
    return (
        ends_whole(text)
        and not text[-1].isspace()
        and further.startswith(text)
        and further[len(text) : len(text) + 1].isspace()
    )
