"""A grid that takes replies soon after they have come: Flower's own looks every three seconds.

A reply is announced before its parts have come, and who asks for one of these too early asks again
after a second: a look in that moment cost a round one to three of them.

It sends many messages a few at a time. A SuperLink stores those of one request without a break, and
who would write meanwhile asks SQLite every .1 s for a free moment and gives up after 5 s: a
SuperNode that looks for its message then hears of an internal error ("database is locked").
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from functools import partial

from flwr.app import Message
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_utils import pull_objects
from flwr.superlink.grid import http_grid

SOON, LATEST = 0.1, 3.0
"""Shortest and longest wait between two looks, in seconds."""
AGAIN = 0.05
"""First wait for a part of a reply that is still on its way, in seconds; others are longer."""
TOGETHER, BREAK = 10, 0.15
"""Messages of one request, and the seconds between two in which others may write."""


class PromptGrid:
    """A grid whose wait for replies is a tenth of the time that they take.

    Parameters
    ----------
    grid : Grid
        Does the sending.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        vars(http_grid)["pull_objects"] = partial(pull_objects, initial_backoff=AGAIN)

    def get_node_ids(self) -> Iterable[int]:
        """Nodes that are connected."""
        return self._grid.get_node_ids()

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Send, and wait until all have replied or `timeout` seconds are over."""
        due, all_messages = set[str](), list(messages)
        for first in range(0, len(all_messages), TOGETHER):
            if first:
                time.sleep(BREAK)
            due.update(self._grid.push_messages(all_messages[first : first + TOGETHER]))
        begin = time.monotonic()
        replies: list[Message] = []
        while True:
            came = list(self._grid.pull_messages(due))
            replies += came
            due -= {reply.metadata.reply_to_message_id for reply in came}
            gone = time.monotonic() - begin
            if not due or (timeout is not None and gone >= timeout):
                return replies
            time.sleep(min(LATEST, SOON + gone / 10))
