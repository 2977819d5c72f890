"""Counters as Prometheus reads them (text format 0.0.4), and an event a line for logs."""

from __future__ import annotations

import json
import logging
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # An actor counts as well, and needs no web server.
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)

PAGE_TYPE = "text/plain; version=0.0.4"
"""The page's content type."""

logger = logging.getLogger(__name__)

Values = Mapping[str, float]
"""Numbers by their labels, as ``path="/v1/exchange",status="200"``; one without is under ''."""


class Histogram:
    """How often values were at most so large.

    Parameters
    ----------
    bounds : collection of float
        Increasing.
    """

    def __init__(self, bounds: Collection[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def lines(self, name: str, labels: str = "") -> Iterator[str]:
        """What Prometheus reads of it."""
        total, comma = 0, "," if labels else ""
        for bound, count in zip((*self.bounds, "+Inf"), self.counts, strict=True):
            total += count
            yield f'{name}_bucket{{{labels}{comma}le="{bound}"}} {total}'
        braces = f"{{{labels}}}" if labels else ""
        yield f"{name}_sum{braces} {self.sum!r}"
        yield f"{name}_count{braces} {total}"


class Page:
    """A page of metrics, each named ``fedhlm_...``."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def add(self, kind: str, name: str, about: str, values: Values | float) -> None:
        """Add a ``counter`` or a ``gauge``, which may have one value or several by labels."""
        self._head(kind, name, about)
        for labels, value in (values if isinstance(values, Mapping) else {"": values}).items():
            self._lines.append(f"fedhlm_{name}{f'{{{labels}}}' if labels else ''} {value}")

    def add_histograms(self, name: str, about: str, found: Mapping[str, Histogram]) -> None:
        """Add histograms by their labels."""
        self._head("histogram", name, about)
        for labels, histogram in found.items():
            self._lines += histogram.lines(f"fedhlm_{name}", labels)

    def _head(self, kind: str, name: str, about: str) -> None:
        self._lines += [f"# HELP fedhlm_{name} {about}", f"# TYPE fedhlm_{name} {kind}"]

    def text(self) -> str:
        """The page, for whoever scrapes it."""
        return "\n".join([*self._lines, ""])


class Watch:
    """Counts every request of an application, and logs it where somebody listens; never a text.

    What stands behind it writes into ``about`` of the scope: ``device``, the name of who asks, and
    ``refused``, why it was not answered.

    Parameters
    ----------
    app : ASGI application
        What is watched.
    seen : Seen
        Where it is counted.
    """

    def __init__(self, app: ASGIApp, seen: Seen) -> None:
        self.app = app
        self.seen = seen

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and count it once it is answered."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status, about = time.monotonic(), 0, scope.setdefault("about", {})

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, sending)
        finally:
            seconds = time.monotonic() - began
            self.seen.count(scope["path"], status, seconds, about)
            if logger.isEnabledFor(logging.INFO):
                told = {"path": scope["path"][:200], "status": status, "seconds": round(seconds, 6)}
                asker = {"from": (scope.get("client") or ("",))[0]}
                logger.info("request", extra={"fields": {**told, **asker, **about}})


class Seen:
    """What `Watch` has counted.

    Parameters
    ----------
    paths : collection of str
        Those that are told apart; others count as one.
    """

    def __init__(self, paths: Collection[str]) -> None:
        self._seconds = {path: Histogram(SECONDS) for path in (*paths, "other")}
        self._requests: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()

    def count(self, path: str, status: int, seconds: float, about: Mapping[str, str]) -> None:
        """Count an answer."""
        path = path if path in self._seconds else "other"
        self._seconds[path].observe(seconds)
        self._requests[f'path="{path}",status="{status}"'] += 1
        if "refused" in about:
            self._refused[f'reason="{about["refused"]}"'] += 1

    def add_to(self, page: Page) -> None:
        """Add what was counted to a page."""
        page.add("counter", "requests_total", "Requests by path and status.", self._requests)
        page.add("counter", "refused_total", "Requests refused, by reason.", self._refused)
        paths = {f'path="{path}"': one for path, one in self._seconds.items()}
        page.add_histograms("request_seconds", "Seconds from headers to the answer's end.", paths)


class JsonLines(logging.Formatter):
    """Records of the log as JSON, one a line."""

    def format(self, record: logging.LogRecord) -> str:
        """A line."""
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        told: dict[str, Any] = {"time": when, "level": record.levelname.lower()}
        told |= {"event": record.getMessage(), **getattr(record, "fields", {})}
        if record.exc_info:
            told["trace"] = self.formatException(record.exc_info)
        return json.dumps(told)
