"""What is wrong with the settings, in words a user can act on."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

ENVIRONMENT_PREFIX = "FEDHLM_"
_MOST_HINTS = 3
# From this likeness on, a misspelling of this name and of no other.
_SURE = 0.85


class SettingsError(ValueError):
    """One or more settings are unknown, out of range or in conflict; one line for each."""


def closest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the known name nearest in spelling to `name`, or None when none is near."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return matches[0] if matches else None


def unknown_setting(name: str, known: Iterable[str]) -> str:
    """Say that a setting does not exist, with the nearest name that does."""
    spelt, names = name.replace("_", "-"), list(known)
    # One word of a name, as `threshold`, may be meant for any name that has it.
    having = [key for key in names if closest(spelt, key.split("-"), _SURE)]
    near = [closest(spelt, names, _SURE)] if closest(spelt, names, _SURE) else having
    if not near and (likely := closest(spelt, names)):
        near = [likely]
    if 0 < len(near) <= _MOST_HINTS:
        return f"unknown setting {name!r}; did you mean {' or '.join(map(repr, near))}?"
    return f"unknown setting {name!r}; `fedhlm settings --all` lists them"


def from_validation(error: ValidationError, ranges: Mapping[str, str]) -> SettingsError:
    """Turn pydantic's report into one line per setting: name, value, and what is allowed.

    Parameters
    ----------
    error : ValidationError
        What pydantic found.
    ranges : Mapping[str, str]
        For each setting (kebab-case) the words that state its allowed values.
    """
    lines = []
    for detail in error.errors():
        name = ".".join(str(part) for part in detail["loc"]).replace("_", "-")
        if detail["type"] == "extra_forbidden":
            lines.append(unknown_setting(name, ranges))
        elif not name:
            # Checks across settings carry their own complete sentence.
            lines.append(str(_context_error(detail.get("ctx"), detail["msg"])))
        else:
            value = detail["input"]
            allowed = ranges.get(name, detail["msg"])
            lines.append(f"setting {name!r} = {value!r} is not allowed: {allowed}")
    return SettingsError("\n".join(lines))


def _context_error(context: Mapping[str, Any] | None, message: str) -> object:
    return context["error"] if context and "error" in context else message
