"""Who writes which token, given where drafts are sure; and what that costs.

A *course* says of each token whether the device keeps its draft, asks for it, or takes it from the
stream. The text is given, so a kept draft changes nothing behind it: of a recorded text this tells
time, tokens and requests, and not what another text would have been.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hlm.spans.costs import SpanCosts
from hlm.spans.rules import TakeBack

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

ABSENT, KEPT, OPENED, STREAMED = -1, 0, 1, 2
"""No token; the device's draft; the first of a stream; a further one of it.

`STREAMED` as a text's first token: the stream was opened with the prompt, before any draft.
"""


@dataclass(frozen=True)
class Course:
    """Who writes each token of some texts.

    Attributes
    ----------
    writer : int8 [texts, positions]
        `KEPT`, `OPENED`, `STREAMED`, or `ABSENT` behind a text's end.
    drafts : int64 [texts, positions]
        Drafts the device makes at the position.
    foreseen : bool
        The LLM is told beforehand where it will be taken back, and decodes nothing in vain.
    """

    writer: NDArray[np.int8]
    drafts: Ints
    foreseen: bool = False


@dataclass(frozen=True)
class Spent:
    """What each text took; all [texts].

    Attributes
    ----------
    cost : float64
        In the unit of the costs.
    ms : float64
        Time until the last token.
    kept, requests, stops : int64
        Tokens the device kept, round trips waited for, streams that were taken back.
    decoded, overshoot, drafts : int64
        Tokens the LLM decoded, those of them in vain, and drafts of the device.
    """

    cost: Floats
    ms: Floats
    kept: Ints
    requests: Ints
    stops: Ints
    decoded: Ints
    overshoot: Ints
    drafts: Ints


def course(sure: Bools, rule: TakeBack, lengths: Ints | None = None) -> Course:
    """The course of a device that follows `rule`.

    Local, it keeps sure drafts and opens a stream at the first unsure one; in the stream it takes
    back where the rule says so. A rule that never does needs no drafts: `plain_course`. One without
    streams is `token_course`.

    Parameters
    ----------
    sure : bool [texts, positions]
        Where the device may keep its draft.
    rule : TakeBack
        Is told that texts have `positions` tokens; the device does not know when one ends early.
    lengths : int64 [texts], optional
        Tokens of each text; by default all positions.
    """
    texts, positions = sure.shape
    if not rule.reads_along:
        return plain_course(texts, positions, lengths)
    if not rule.streams:
        return token_course(sure, lengths)
    # A run that reaches the text's end has no end.
    padded = np.pad(sure, ((0, 0), (0, rule.ahead)), constant_values=True)
    writer = np.empty((texts, positions), np.int8)
    drafts = np.ones((texts, positions), np.int64)
    local = np.ones(texts, np.bool_)
    for at in range(positions):
        sure_ahead = np.cumprod(padded[:, at : at + rule.ahead], axis=1).sum(axis=1)
        taken = rule.take_back(sure_ahead, np.full(texts, positions - at))
        drafts[:, at] = np.where(local, 1, np.minimum(sure_ahead + 1, rule.ahead))
        kept = sure[:, at] & (local | taken)
        writer[:, at] = np.where(kept, KEPT, np.where(local, OPENED, STREAMED))
        local = kept
    return _cut(Course(writer, drafts), lengths)


def plain_course(texts: int, positions: int, lengths: Ints | None = None) -> Course:
    """The LLM streams each text from its start to its end, and the device only listens."""
    shape = (texts, positions)
    return _cut(Course(np.full(shape, STREAMED, np.int8), np.zeros(shape, np.int64)), lengths)


def token_course(sure: Bools, lengths: Ints | None = None) -> Course:
    """A round trip for each unsure token."""
    writer = np.where(sure, KEPT, OPENED).astype(np.int8)
    return _cut(Course(writer, np.ones(sure.shape, np.int64), foreseen=True), lengths)


def best_course(sure: Bools, costs: SpanCosts, lengths: Ints | None = None) -> Course:
    """The cheapest course of a device that knows all drafts beforehand: what rules are held to.

    Dynamic programme over two states, with backtracking. The stream may be opened with the prompt,
    and the LLM is told how far to write.

    Parameters
    ----------
    sure : bool [texts, positions]
        Where the device may keep its draft.
    costs : SpanCosts
    lengths : int64 [texts], optional
        Tokens of each text; by default all positions.
    """
    texts, positions = sure.shape
    ends = np.full(texts, positions) if lengths is None else lengths
    local = np.zeros(texts)
    stream = np.full(texts, np.inf)
    from_stream = np.empty((positions, 2, texts), np.bool_)
    for at in range(positions):
        ways_local = (local, stream)
        go_on = stream + float(costs.streamed()) if at else np.full(texts, costs.asked)
        ways_stream = (local + costs.opened, go_on)
        from_stream[at] = [ways_local[1] < ways_local[0], ways_stream[1] < ways_stream[0]]
        there = at < ends
        local = np.where(there, np.minimum(*ways_local) + costs.kept, local)
        local = np.where(there & ~sure[:, at], np.inf, local)
        stream = np.where(there, np.minimum(*ways_stream), stream)
    writer = np.empty((texts, positions), np.int8)
    streaming = stream < local
    rows = np.arange(texts)
    for at in reversed(range(positions)):
        before = from_stream[at, streaming.astype(np.int64), rows]
        writer[:, at] = np.where(streaming, np.where(before, STREAMED, OPENED), KEPT)
        streaming = np.where(at < ends, before, streaming)
    return _cut(Course(writer, np.ones(sure.shape, np.int64), foreseen=True), lengths)


def spent(course: Course, costs: SpanCosts) -> Spent:
    """Time, tokens and requests of every text of a course.

    Overshoot is as much as `SpanCosts.overshoot` says, with the true end of each text, and holds up
    the request behind it (`SpanCosts.held_up_ms`).
    """
    writer = course.writer
    kept, opened, streamed = (writer == kind for kind in (KEPT, OPENED, STREAMED))
    remaining = np.cumsum((writer != ABSENT)[:, ::-1], axis=1)[:, ::-1]
    by_llm = opened | streamed
    stop = np.column_stack([np.zeros(len(writer), np.bool_), kept[:, 1:] & by_llm[:, :-1]])
    in_vain = stop & (not course.foreseen)
    overshoot = np.where(in_vain, costs.overshoot(remaining, course.drafts), 0).sum(axis=1)
    requests = opened.sum(axis=1) + streamed[:, 0]
    decoded = by_llm.sum(axis=1) + overshoot
    ms = (costs.round_trip_ms + costs.llm_ms) * requests
    ms = ms + costs.slm_ms * (kept | opened).sum(axis=1)
    ms = ms + np.where(streamed, costs.streamed_ms(course.drafts), 0.0)[:, 1:].sum(axis=1)
    rows, returns, stops = _returns(opened, in_vain)
    held_up = costs.held_up_ms(returns - stops, remaining[rows, stops], course.drafts[rows, stops])
    np.add.at(ms, rows, held_up)
    money = costs.input_price * kept.sum(axis=1) + costs.output_price * decoded
    money = money + costs.request_price * requests
    return Spent(
        cost=costs.per_ms * ms + money,
        ms=ms,
        kept=kept.sum(axis=1),
        requests=requests,
        stops=stop.sum(axis=1),
        decoded=decoded,
        overshoot=overshoot,
        drafts=course.drafts.sum(axis=1),
    )


def _returns(opened: Bools, stop: Bools) -> tuple[Ints, Ints, Ints]:
    """Texts and positions of requests behind a take-back, and positions of that; all int64 [n]."""
    places = np.arange(opened.shape[1])
    last = np.maximum.accumulate(np.where(stop, places, -1), axis=1)
    rows, returns = np.nonzero(opened & (last >= 0))
    return rows, returns, last[rows, returns]


def _cut(whole: Course, lengths: Ints | None) -> Course:
    if lengths is None:
        return whole
    there = np.arange(whole.writer.shape[1]) < lengths[:, None]
    writer = np.where(there, whole.writer, ABSENT).astype(np.int8)
    return replace(whole, writer=writer, drafts=np.where(there, whole.drafts, 0))
