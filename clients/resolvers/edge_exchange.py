"""Messages to the edge server: questions, verified tokens that wait to be shared, fingerprints.

What the device learns travels with its next question, and a token that was asked about before
names that question rather than its context again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from clients.records import Traffic
from clients.resolvers.link import Link
from hlm.arrays import BoolArray, IntArray
from hlm.transport import LinkDown, Transport
from hlm.wire import WireError
from hlm.wire.edge import (
    MOST_NUMBERS,
    EdgeQuery,
    EdgeReply,
    EdgeShare,
    decode_edge_reply,
    encode_edge_query,
)
from hlm.wire.edge_probe import EdgeProbe, decode_common, encode_probe

Sketches = NDArray[np.uint8]
Reply = TypeVar("Reply")

_COMMON_HEADER = 2
"""Bytes of the answer to a probe beside its flags."""


@dataclass(frozen=True)
class EdgeResolverConfig:
    """What the messages of a device have in common.

    Attributes
    ----------
    client : int
        Number of the device.
    vocab : int
        Size of the shared vocabulary.
    cluster_size : int
        Clients of the cluster; alone, a device never asks.
    most_rows : int
        Most rows in one question.
    flush_rows : int
        Shared tokens that wait for a question before they travel on their own.
    """

    client: int
    vocab: int
    cluster_size: int
    most_rows: int = 512
    flush_rows: int = 64


class VerifiedToken(NamedTuple):
    """A token on its way to the edge server; `number` is -1 where its context was not asked about.

    Attributes
    ----------
    token : int
        What the LLM decided.
    number, line : int
        The question in which the device asked about it, and the line of it.
    key : numpy.ndarray
        uint8 [w], its context, which travels only if there was no question.
    """

    token: int
    number: int
    line: int
    key: Sketches


class EdgeExchange:
    """Exchanges messages with the edge server, and keeps what waits for the next one.

    Parameters
    ----------
    transport : Transport
        Carries bytes.
    config : EdgeResolverConfig
        See there.
    width : int
        Bytes of a context's key.

    Attributes
    ----------
    number : int
        Of the next question.
    waiting : deque of VerifiedToken
        Bounded: while the edge server is away, only the newest tokens wait for it.
    """

    def __init__(self, transport: Transport, config: EdgeResolverConfig, width: int) -> None:
        self.link = Link(transport, "edge")
        self.config = config
        self.number = 0
        self.waiting: deque[VerifiedToken] = deque(maxlen=4 * config.most_rows)
        self._width = width

    def ask(
        self, keys: Sketches, drafts: IntArray, steps: IntArray | None, traffic: Traffic
    ) -> EdgeReply | None:
        """One message with all that waits to be shared; None if no answer came.

        Parameters
        ----------
        keys : numpy.ndarray
            uint8 [n, w], contexts that are asked about.
        drafts : numpy.ndarray
            int64 [n].
        steps : numpy.ndarray or None
            int64 [n], where peers go by step.
        traffic : Traffic
            Counters, added to.
        """
        query = EdgeQuery(
            client=self.config.client,
            number=self.number,
            vocab=self.config.vocab,
            keys=keys,
            drafts=drafts,
            steps=steps,
            share=self._share(),
        )
        payload = encode_edge_query(query)
        reply = self._send(payload, lambda answer: decode_edge_reply(answer, query), traffic)
        if reply is not None:
            self.number = (self.number + 1) % MOST_NUMBERS
            self.waiting.clear()
        return reply

    def share(self, traffic: Traffic) -> bool:
        """Send what waits, without a question; whether it has arrived."""
        if not self.waiting or self.link.asleep:
            return False
        nothing = np.zeros((0, self._width), np.uint8)
        return self.ask(nothing, np.zeros(0, np.int64), None, traffic) is not None

    def show(
        self, fingerprints: IntArray, held: int, most_bytes: float, traffic: Traffic
    ) -> BoolArray | None:
        """Show fingerprints; which of all that are shown are common, bool [`held` and these].

        None if no answer came, or if question and answer would take more than `most_bytes`.
        """
        payload = encode_probe(EdgeProbe(self.config.client, fingerprints))
        answer = _COMMON_HEADER + -(-(held + len(fingerprints)) // 8)
        if self.link.asleep or len(payload) + answer > most_bytes:
            return None
        return self._send(payload, decode_common, traffic)

    def _send(
        self, payload: bytes, decode: Callable[[bytes], Reply], traffic: Traffic
    ) -> Reply | None:
        """The answer, if there is one; to be refused helps no more than to get none."""
        try:
            return self.link.exchange(payload, decode, traffic)
        except LinkDown:
            return None
        except WireError as error:
            self.link.failed(error, traffic)
            return None

    def _share(self) -> EdgeShare:
        asked = [item for item in self.waiting if item.number >= 0]
        new = [item for item in self.waiting if item.number < 0]
        return EdgeShare(
            numbers=np.array([item.number for item in asked], np.int64),
            rows=np.array([item.line for item in asked], np.int64),
            answers=np.array([item.token for item in asked], np.int64),
            keys=np.array([item.key for item in new], np.uint8).reshape(len(new), self._width),
            tokens=np.array([item.token for item in new], np.int64),
            verified=np.ones(len(new), np.bool_),
        )
