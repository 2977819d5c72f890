"""What a user says of link, paces and prices, and what a course of texts then takes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hlm.arrays import FloatArray, IntArray
from hlm.ranges import require_between
from hlm.spans import SpanCosts, spent
from hlm.spans.courses import OPENED, STREAMED, Course, Spent
from hlm.verifiers import plain_verifier
from hlm.wire import Reply, Request, Rows, Status, encode_reply
from hlm.wire.frames import Frame, encode_frame, framed
from hlm.wire.stream import Opening, encode_opening

_MS_AN_HOUR = 3.6e6
_MOST = 1e9


@dataclass(frozen=True)
class Taken:
    """What texts took, all together.

    Attributes
    ----------
    tokens, ms, money : float
        Tokens of the texts, time until their last ones, one after the other, and what the LLM
        charges.
    requests, decoded : float
        Round trips waited for, and tokens that the LLM decoded.
    aim : float
        What the take-back rule makes least of: ms, or money with what waiting is worth.
    """

    tokens: float
    ms: float
    money: float
    requests: float
    decoded: float
    aim: float


@dataclass(frozen=True)
class Terms:
    """Link, paces and prices.

    Parameters
    ----------
    llm_ms, slm_ms
        Time of a token that the LLM streams, above 0, and of a draft, from 0.
    round_trip_ms
        Of the link, from 0.
    rate
        Its rate in either direction in Mbit/s, above 0.
    input_price, cached_price, output_price
        Of a million tokens that the LLM reads for the first time, reads again, and writes; from 0.
    request_price
        Of a request, from 0.
    hour_price
        What an hour of waiting is worth in the unit of the prices, from 0: the rule then weighs
        time and prices. None: it looks at time alone.

    Raises
    ------
    ValueError
        Naming what is out of its range.
    """

    llm_ms: float
    slm_ms: float
    round_trip_ms: float = 30.0
    rate: float = 10.0
    input_price: float = 0.0
    cached_price: float = 0.0
    output_price: float = 0.0
    request_price: float = 0.0
    hour_price: float | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None:
                above = name in ("llm_ms", "rate")
                require_between(name.replace("_", "-"), value, 0.0, _MOST, open_low=above)
        if self.hour_price == 0 and not self.priced:
            raise ValueError("hour-price=0: without any price there is nothing to make least of")

    @property
    def priced(self) -> bool:
        """Whether the LLM charges anything."""
        return any((self.input_price, self.cached_price, self.output_price, self.request_price))

    def costs(self, sizes: tuple[int, int], prefix: float) -> SpanCosts:
        """What a take-back rule is made for.

        Parameters
        ----------
        sizes : tuple of int
            Of `message_bytes`.
        prefix : float
            Tokens that stand before a request on average, which it makes the LLM read again.
        """
        exchange_ms, frame_ms = (8 * size / (1000 * self.rate) for size in sizes)
        link = max(self.llm_ms, frame_ms), self.slm_ms, self.round_trip_ms + exchange_ms
        if self.hour_price is None:
            return SpanCosts(*link)
        return SpanCosts(
            *link,
            per_ms=self.hour_price / _MS_AN_HOUR,
            input_price=self.input_price / 1e6,
            output_price=self.output_price / 1e6,
            request_price=self.request_price + prefix * self.cached_price / 1e6,
        )

    def taken(self, course: Course, costs: SpanCosts, prompts: IntArray) -> Taken:
        """Sum what a course takes.

        Parameters
        ----------
        course : Course
        costs : SpanCosts
            Of `costs`.
        prompts : int64 [texts]
            Tokens before each text.
        """
        each = spent(course, costs)
        ms, money = float(each.ms.sum()), float(self._charged(course, each, prompts).sum())
        waiting = None if self.hour_price is None else ms * self.hour_price / _MS_AN_HOUR
        return Taken(
            tokens=float((course.writer >= 0).sum()),
            ms=ms,
            money=money,
            requests=float(each.requests.sum()),
            decoded=float(each.decoded.sum()),
            aim=ms if waiting is None else money + waiting,
        )

    def _charged(self, course: Course, each: Spent, prompts: IntArray) -> FloatArray:
        """Money for each text, float64 [texts].

        A request reads the prompt and what the device kept for the first time, all else again.
        """
        writer = course.writer
        asks = writer == OPENED
        asks[:, 0] |= writer[:, 0] == STREAMED
        before = np.where(asks, prompts[:, None] + np.arange(writer.shape[1]), 0).sum(axis=1)
        kept = np.cumsum(writer == 0, axis=1)
        new = np.where(asks.any(axis=1), prompts + np.where(asks, kept, 0).max(axis=1), 0)
        tokens = self.input_price * new + self.cached_price * (before - new)
        tokens = tokens + self.output_price * each.decoded
        return np.asarray(tokens / 1e6 + self.request_price * each.requests)


def message_bytes(vocab: int, decoding: str, prompt: int) -> tuple[int, int]:
    """Bytes of an opening with its verdict, and of a streamed token, in a text's midst.

    Parameters
    ----------
    vocab, decoding
        Of the pair and the settings.
    prompt
        Tokens before the text.
    """
    greedy = decoding == "greedy"
    one = np.ones(1, np.int64)
    rows = Rows(one, prompt + 10 * one, 2 * one, np.zeros(2, np.int64), drafts=one)
    request = Request(
        plain_verifier(decoding), vocab, rows, seed=0 if greedy else 1, digest=1,
        decoding="greedy" if greedy else "sampled",
    )  # fmt: skip
    opening = encode_opening(Opening(request, 0, span=50, credit=50))
    reply = encode_reply(Reply(np.array([Status.OK]), tokens=one), request)
    frame = encode_frame(Frame({0: one}), vocab)
    return len(opening) + len(framed(reply)), len(frame)
