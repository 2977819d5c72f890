"""What a method did, added up text by text, and the figures of the result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from clients.records import Stage, TokenRecords, Traffic
from hlm.arrays import FloatArray
from hlm.channels import Link, Times
from hlm.wire import Request, Rows, decode_request, encode_request
from hlm.wire.stream import OPENING_KIND, decode_opening, is_control


@dataclass(frozen=True)
class Took:
    """What making a text took.

    Attributes
    ----------
    times : Times
        Over links.
    server_seconds, device_seconds : float
        Work of either side.
    round_trips : int
        Messages whose answer was waited for.
    requests : sequence of bytes
        All messages that went up.
    """

    times: Times
    server_seconds: float
    device_seconds: float
    round_trips: int
    requests: Sequence[bytes]


def request_of(message: bytes) -> Request | None:
    """The request that a message holds, or that it opens a stream with; None in a control."""
    if is_control(message):
        return None
    return (
        decode_opening(message).request
        if message[0] >> 4 == OPENING_KIND
        else decode_request(message)
    )


def payload_bytes(request: Request) -> int:
    """Bytes of a request that are there because of its drafts and what is claimed about them.

    The length of the request, less its length if it only fed the same tokens; a byte more or less
    for the padding at the end.
    """
    own = request.rows.select(~request.rows.block)
    fed = Rows(own.sessions, own.starts, own.lengths, own.tokens, quiet=own.quiet)
    return len(encode_request(request)) - len(encode_request(replace(request, rows=fed)))


@dataclass
class Tally:
    """Sums over texts.

    Parameters
    ----------
    links : sequence of Link
        Over which speeds are told.

    Attributes
    ----------
    texts, tokens, sent, unresolved : int
        Texts and tokens made, those the LLM decided, and those it should have decided and did not.
    agreement, certificate : float
        Sums over the tokens that are known about, which `known` counts.
    known : int
        Tokens whose agreement is known.
    uplink, downlink, payload, messages, round_trips : int
        Bytes up and down, bytes up for drafts and claims alone, messages, and those waited for.
    read, decoded : int
        Tokens that the LLM was given to read, and that it decided or wrote, but for overshoot.
    link_seconds, overshoot : float64 [links]
        Time, and tokens that the LLM writes in vain.
    device_seconds, server_seconds : float
        Compute of either side.
    correct, answered : dict
        By workload, routed tokens that are right, and all that could be.
    """

    links: Sequence[Link]
    texts: int = 0
    tokens: int = 0
    sent: int = 0
    unresolved: int = 0
    agreement: float = 0.0
    certificate: float = 0.0
    known: int = 0
    uplink: int = 0
    downlink: int = 0
    payload: int = 0
    messages: int = 0
    round_trips: int = 0
    read: int = 0
    decoded: int = 0
    device_seconds: float = 0.0
    server_seconds: float = 0.0

    def __post_init__(self) -> None:
        self.link_seconds: FloatArray = np.zeros(len(self.links))
        self.overshoot: FloatArray = np.zeros(len(self.links))
        self.correct: dict[str, int] = {}
        self.answered: dict[str, int] = {}

    def add_text(
        self, records: TokenRecords, traffic: Traffic, took: Took, greedy: bool, race: bool
    ) -> None:
        """Add what one call of the router did.

        Parameters
        ----------
        records : TokenRecords
            With the LLM's view of every place.
        traffic : Traffic
            Of the method alone.
        took : Took
            Time and messages.
        greedy : bool
            Greedy decoding: agreement and loss are indicators.
        race : bool
            Escalated tokens are decided by coupled draws: the loss is the race's indicator.
        """
        self.texts += 1
        present = records.present
        decided = np.isin(records.stage, (Stage.LLM_ACCEPTED, Stage.LLM_RESAMPLED)) & present
        self.tokens += records.tokens
        self.sent += int(decided.sum())
        self.unresolved += int(((records.stage == Stage.UNRESOLVED) & present).sum())
        agrees = records.agreement(greedy)[present]
        loss = records.kept_loss(greedy or race)[present]
        known = np.isfinite(agrees) & np.isfinite(loss)
        self.agreement += float(agrees[known].sum())
        self.certificate += float(loss[known].sum())
        self.known += int(known.sum())
        self.uplink += traffic.uplink
        self.downlink += traffic.downlink
        self.messages += traffic.messages
        self.decoded += traffic.decoded - traffic.overshot
        self.device_seconds += took.device_seconds
        self.server_seconds += took.server_seconds
        self.round_trips += took.round_trips
        self.link_seconds += took.times.now
        self.overshoot += took.times.overshoot
        for request in filter(None, map(request_of, took.requests)):
            self.payload += payload_bytes(request)
            self.read += int(request.rows.lengths.sum() + request.rows.drafted.sum())

    def add_answers(self, workload: str, correct: int, answered: int) -> None:
        """Add how many routed tokens are right."""
        self.correct[workload] = self.correct.get(workload, 0) + correct
        self.answered[workload] = self.answered.get(workload, 0) + answered

    def accuracy(self, workload: str) -> float | None:
        """Share of routed tokens that are right; None where nothing was asked."""
        answered = self.answered.get(workload, 0)
        return self.correct[workload] / answered if answered else None

    def figures(self) -> dict[str, Any]:
        """What the result says about the method, but for its name and properties."""
        known = max(self.known, 1)
        return {
            "tokens": self.tokens,
            "sent_to_llm": self.sent,
            "unresolved": self.unresolved,
            "trr": (self.tokens - self.sent - self.unresolved) / self.tokens,
            "llm_agreement": self.agreement / known if self.known else None,
            "accuracy": {"token": self.accuracy("score"), "label": self.accuracy("classify")},
            "certificate": self.certificate / known if self.known else None,
            "bytes_per_token": {
                "uplink": self.uplink / self.tokens,
                "downlink": self.downlink / self.tokens,
            },
            "payload_bytes_per_sent_token": self.payload / self.sent if self.sent else 0.0,
            "texts": self.texts,
            "messages": self.messages,
            "round_trips": self.round_trips,
            "llm_read": self.read,
            "llm_decoded": self._by_link(self.decoded + self.overshoot),
            "seconds_per_token": {
                "device": self.device_seconds / self.tokens,
                "server": self.server_seconds / self.tokens,
            },
            "tokens_per_second": self._by_link(self.tokens / self.link_seconds),
        }

    def _by_link(self, values: FloatArray) -> dict[str, float]:
        return {link.name: float(value) for link, value in zip(self.links, values, strict=True)}
