"""Why a run failed, out of thousands of lines of log."""

from __future__ import annotations

import re

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_EXCEPTION = re.compile(r"^\s*(?:\w+\.)*\w*(?:Error|Exception|Interrupt|Exit)\b.*\S")
_LEVEL = re.compile(r"^\s*(?:\S+ \S+ )?ERROR\b")
# Flower frames each exception with these, which say nothing of the cause.
_NOISE = ("raised an exception", "Exit Code: 700", "ray.exceptions.RayTaskError")


def plain(text: str) -> str:
    """Return text without terminal colours."""
    return _ANSI.sub("", text)


def last_errors(log: str, most: int = 5) -> list[str]:
    """Return the last distinct lines of a log that name an error, oldest first.

    Parameters
    ----------
    log : str
        The whole log.
    most : int
        Lines to return at most.
    """
    found: dict[str, None] = {}
    for line in reversed(plain(log).splitlines()):
        names_error = _EXCEPTION.match(line) or _LEVEL.match(line)
        if names_error and not any(noise in line for noise in _NOISE):
            found.setdefault(line.strip())
        if len(found) == most:
            break
    return list(reversed(found))
