"""The allowed values of a setting, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from fedhlm_app.settings.field import OneOf


def unit_of(field: FieldInfo) -> str:
    """Return the unit of a setting, empty where it has none."""
    extra = field.json_schema_extra
    return str(extra.get("unit", "")) if isinstance(extra, dict) else ""


def named_values(field: FieldInfo) -> list[str]:
    """Return the values of a setting that has a few, each with a name; else nothing."""
    if get_origin(field.annotation) is Literal:
        return [str(name) for name in get_args(field.annotation)]
    if field.annotation is bool:
        return ["true", "false"]
    return [name for part in field.metadata if isinstance(part, OneOf) for name in part.names]


def allowed_values(field: FieldInfo) -> str:
    """Say what a setting may hold: `an integer from 1 to 20`, `one of a, b`, `true or false`."""
    kind = field.annotation
    if kind is bool:
        return "true or false"
    if names := named_values(field):
        return "one of " + ", ".join(names)
    if kind is str:
        return "text"
    noun = "an integer" if kind is int else "a number"
    bounds = _bounds(field.metadata)
    return f"{noun} {bounds}" if bounds else noun


def in_words(value: object) -> str:
    """A setting's value as one types it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def in_short(settings: Mapping[str, object]) -> str:
    """Some settings in one line, as one types them."""
    return ", ".join(f"{key}={in_words(value)}" for key, value in settings.items())


def _bounds(metadata: list[Any]) -> str:
    found: dict[str, float] = {}
    for constraint in metadata:
        for attribute in ("ge", "gt", "le", "lt"):
            if (value := getattr(constraint, attribute, None)) is not None:
                found[attribute] = value
    phrases = [
        f"{words} {_number(found[attribute])}"
        for attribute, words in (
            ("ge", "at least"),
            ("gt", "above"),
            ("le", "at most"),
            ("lt", "below"),
        )
        if attribute in found
    ]
    return " and ".join(phrases)


def _number(value: float) -> str:
    return f"{value:,}".replace(",", "") if isinstance(value, int) else f"{value:g}"
