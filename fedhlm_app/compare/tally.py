"""What a method did, added up text by text, and the figures of the result."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from clients.records import Stage, TokenRecords, Traffic
from hlm.channels import LINKS, Link
from hlm.wire import Rows, decode_request, encode_request

__all__ = ["Tally", "payload_bytes"]


def payload_bytes(message: bytes) -> int:
    """Bytes of a request that are there because of its drafts and what is claimed about them.

    The length of the request, less its length if it only fed the same tokens; a byte more or less
    for the padding at the end.
    """
    request = decode_request(message)
    own = request.rows.select(~request.rows.block)
    fed = Rows(own.sessions, own.starts, own.lengths, own.tokens, quiet=own.quiet)
    return len(message) - len(encode_request(replace(request, rows=fed)))


@dataclass
class Tally:
    """Sums over texts.

    Attributes
    ----------
    tokens, sent, unresolved : int
        Tokens made, those the LLM decided, and those it should have decided and did not.
    agreement, certificate : float
        Sums over the tokens that are known about, which `known` counts.
    known : int
        Tokens whose agreement is known.
    uplink, downlink, payload, messages : int
        Bytes up and down, bytes up for drafts and claims alone, and exchanges.
    device_seconds, server_seconds : float
        Compute of either side.
    correct, answered : dict
        By workload, routed tokens that are right, and all that could be.
    """

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
    device_seconds: float = 0.0
    server_seconds: float = 0.0

    def __post_init__(self) -> None:
        self.correct: dict[str, int] = {}
        self.answered: dict[str, int] = {}

    def add_text(
        self, records: TokenRecords, traffic: Traffic, seconds: float, greedy: bool, race: bool
    ) -> None:
        """Add what one call of the router did.

        Parameters
        ----------
        records : TokenRecords
            With the LLM's view of every place.
        traffic : Traffic
            Of the method alone.
        seconds : float
            Wall time of the call.
        greedy : bool
            Greedy decoding: agreement and loss are indicators.
        race : bool
            Escalated tokens are decided by coupled draws: the loss is the race's indicator.
        """
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
        self.add_traffic(traffic)
        self.device_seconds += seconds - traffic.waited

    def add_traffic(self, traffic: Traffic) -> None:
        """Add bytes, exchanges and the server's time."""
        self.uplink += traffic.uplink
        self.downlink += traffic.downlink
        self.messages += traffic.messages
        self.server_seconds += traffic.waited

    def add_answers(self, workload: str, correct: int, answered: int) -> None:
        """Add how many routed tokens are right."""
        self.correct[workload] = self.correct.get(workload, 0) + correct
        self.answered[workload] = self.answered.get(workload, 0) + answered

    def accuracy(self, workload: str) -> float | None:
        """Share of routed tokens that are right; None where nothing was asked."""
        answered = self.answered.get(workload, 0)
        return self.correct[workload] / answered if answered else None

    def tokens_per_second(self, link: Link) -> float:
        """Speed over a link; compute is in series with messages."""
        on_link = link.seconds(self.messages, self.uplink + self.downlink)
        return self.tokens / (self.device_seconds + self.server_seconds + on_link)

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
            "messages": self.messages,
            "seconds_per_token": {
                "device": self.device_seconds / self.tokens,
                "server": self.server_seconds / self.tokens,
            },
            "tokens_per_second": {link.name: self.tokens_per_second(link) for link in LINKS},
        }
