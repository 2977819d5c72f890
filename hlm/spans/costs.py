"""What each step of a text costs where an escalation opens a stream, in ms or in money."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hlm.ranges import require_between

_MOST = 1e12


@dataclass(frozen=True)
class SpanCosts:
    """Costs of a pair and its link, in one unit: that of the prices, or ms if there are none.

    Bytes that cost something are part of a price: those of a message of `request_price`, those of
    a kept token's id, which goes up with the next request, of `input_price`.

    Parameters
    ----------
    llm_ms
        tL, the LLM's time for a token it streams, above 0.
    slm_ms
        tS, the device's time for a draft, from 0.
    round_trip_ms
        R, from the request to the first byte of its reply, without the LLM's own time; from 0.
    window
        Tokens that the server may be ahead of what the device has acknowledged, at least 1.
    beside_ms
        What a draft made while the LLM's token is under way adds to that token, from 0: more than
        nothing where device and server share processors.
    per_ms
        What a millisecond is worth in the unit of the prices, from 0.
    input_price, output_price, request_price
        Of a token the LLM reads, of one it writes, and of a request; from 0.

    Raises
    ------
    ValueError
        Naming the field that is out of its range.
    """

    llm_ms: float
    slm_ms: float
    round_trip_ms: float
    window: int = 64
    beside_ms: float = 0.0
    per_ms: float = 1.0
    input_price: float = 0.0
    output_price: float = 0.0
    request_price: float = 0.0

    def __post_init__(self) -> None:
        require_between("llm_ms", self.llm_ms, 0.0, _MOST, open_low=True)
        require_between("window", self.window, 1, _MOST)
        for name in (
            "slm_ms", "round_trip_ms", "beside_ms",
            "per_ms", "input_price", "output_price", "request_price",
        ):  # fmt: skip
            require_between(name, getattr(self, name), 0.0, _MOST)

    @property
    def kept(self) -> float:
        """Of a token that the device keeps."""
        return self.per_ms * self.slm_ms + self.input_price

    @property
    def asked(self) -> float:
        """Of a stream's first token: the round trip and the LLM's step."""
        time = self.round_trip_ms + self.llm_ms
        return self.per_ms * time + self.request_price + self.output_price

    @property
    def opened(self) -> float:
        """Of a stream's first token where a draft was unsure before."""
        return self.per_ms * self.slm_ms + self.asked

    def streamed_ms(self, drafts: ArrayLike = 1) -> NDArray[np.float64]:
        """Time of a further token of a stream while the device makes `drafts`, of their shape.

        The slower of LLM and device sets the pace; with a narrow window the acknowledgement does,
        as `window` tokens take a round trip and a decode step at least.
        """
        acknowledged = (self.round_trip_ms + self.llm_ms) / self.window
        decoded = np.add(self.llm_ms, np.multiply(drafts, self.beside_ms))
        return np.maximum(np.maximum(decoded, acknowledged), np.multiply(drafts, self.slm_ms))

    def streamed(self, drafts: ArrayLike = 1) -> NDArray[np.float64]:
        """Of a further token of a stream; see `streamed_ms`."""
        return np.asarray(self.per_ms * self.streamed_ms(drafts) + self.output_price)

    def plain(self, tokens: int) -> float:
        """Of a text of `tokens` >= 1 that the LLM streams whole, nobody reading along."""
        return self.asked + (tokens - 1) * float(self.streamed(0))

    def overshoot(self, remaining: ArrayLike, drafts: ArrayLike = 1) -> NDArray[np.int64]:
        """LLM tokens decoded in vain at a take-back, int64.

        What the LLM writes while the device drafts and its stop travels, and the tokens already on
        their way: a round trip's worth, but no more than window and text allow.

        Parameters
        ----------
        remaining
            Tokens that the text still lacks, the one taken back included.
        drafts
            Drafts behind the decision.
        """
        late = np.ceil((self.round_trip_ms + np.multiply(drafts, self.slm_ms)) / self.llm_ms)
        return np.minimum(np.minimum(late, self.window - 1), remaining).astype(np.int64)

    def held_up_ms(
        self, kept: ArrayLike, remaining: ArrayLike, drafts: ArrayLike = 1
    ) -> NDArray[np.float64]:
        """How long the next request waits for what is decoded in vain, of their common shape.

        A step that has begun is not broken off. Where the round trip is short against it, the
        device is back before its end.

        Parameters
        ----------
        kept
            Tokens that the device keeps until it asks again.
        remaining, drafts
            At the take-back; see `overshoot`.
        """
        begun = self.llm_ms * self.overshoot(remaining, drafts)
        asked = self.round_trip_ms + np.multiply(np.add(kept, 1), self.slm_ms)
        return np.asarray(np.maximum(begun - asked, 0.0))

    @property
    def break_even(self) -> float:
        """Kept tokens that pay for one return to the LLM; infinite where none do.

        The return costs ``opened - streamed``, a kept token saves ``streamed - kept``.
        """
        streamed = float(self.streamed())
        saved = streamed - self.kept
        return max(self.opened - streamed, 0.0) / saved if saved > 0 else float("inf")
