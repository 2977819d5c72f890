"""All streams that a service writes: who controls which, and how many there may be."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hlm.wire.frames import End
from hlm.wire.stream import Outcome, decode_control, encode_answer
from servers.origin import Caller
from servers.texts import SessionKey

if TYPE_CHECKING:
    from servers.llm import LanguageModelService
    from servers.stream import Stream


@dataclass
class StreamStats:
    """Counters since the service started.

    Attributes
    ----------
    opened : int
        Streams.
    tokens, overshot : int
        Tokens written after verdicts, and those of them that stops dropped.
    controls, unknown, refused, late : int
        Controls; those about no stream, and those that could not be; stops of rows that had ended.
    """

    opened: int = 0
    tokens: int = 0
    overshot: int = 0
    controls: int = 0
    unknown: int = 0
    refused: int = 0
    late: int = 0


class Streams:
    """The streams that are being written, by their keys.

    Parameters
    ----------
    service : LanguageModelService
        Which writes them.
    """

    def __init__(self, service: LanguageModelService) -> None:
        self.stats = StreamStats()
        self._service = service
        self._streams: dict[tuple[str, int], Stream] = {}
        self._of: dict[Caller, list[Stream]] = {}  # by their devices

    def __len__(self) -> int:
        return len(self._streams)

    def room(self, asking: Stream) -> int:
        """Rows that a stream may have written beside those that are.

        Each keeps a session in use; beside others no client number, nobody under several of
        them, and no tenant has more than half.
        """
        streams, sessions = self._streams.values(), self._service.engine.max_sessions
        rows = sum(len(stream.rows) for stream in streams)

        def left(own: int) -> int:
            most = max(1, sessions // 2) if rows > own else sessions
            return min(sessions - rows, most - own)

        numbered = sum(len(stream.rows) for stream in self._of.get(asking.caller, ()))
        shared = [
            sum(len(stream.rows) for stream in streams if share in stream.origin.shares)
            for share in asking.origin.shares
        ]
        return min(map(left, [numbered, *shared]))

    def add(self, stream: Stream) -> None:
        """Know a stream by its key from now on; one opened again takes the place of the first."""
        if before := self._streams.get(_key(stream)):
            before.end_all(End.STOPPED)
            self.remove(before)
        self._of.setdefault(stream.caller, []).append(stream)
        self._streams[_key(stream)] = stream
        self.stats.opened += 1

    def remove(self, stream: Stream) -> None:
        """Forget a stream that has ended."""
        if self._streams.get(_key(stream)) is stream:
            del self._streams[_key(stream)]
            self._of[stream.caller].remove(stream)
            if not self._of[stream.caller]:
                del self._of[stream.caller]

    def end_texts(self, caller: Caller, sessions: Collection[SessionKey]) -> None:
        """Write no more of texts about which their device has a later request."""
        for stream in list(self._of.get(caller, ())):
            stream.end_texts(sessions)

    def control(self, payload: bytes, device: str) -> bytes:
        """Do as a device says of a stream of its own; the answer.

        Raises
        ------
        WireError
            When the bytes are no valid control.
        """
        control = decode_control(payload, self._service.limits)
        self.stats.controls += 1
        stream = self._streams.get((device, control.key))
        if stream is None:
            self.stats.unknown += 1
            return encode_answer(Outcome.UNKNOWN)
        late = sum(index not in stream.rows for index in control.stops)
        if not stream.control(control):
            self.stats.refused += 1
            return encode_answer(Outcome.REFUSED)
        self.stats.late += late
        return encode_answer(Outcome.APPLIED)


def _key(stream: Stream) -> tuple[str, int]:
    return stream.origin.device, stream.opening.key
